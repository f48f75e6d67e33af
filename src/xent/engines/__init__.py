"""The engines: three ways to compute the same numbers, and the choice among them.

==============  =========================  ==============================
engine          rows (softmax family)      elements (sigmoid family)
==============  =========================  ==============================
``reference``   ``rows/reference.py``      ``elements/reference.py``
``native``      ``rows/native.py``         ``elements/native.py``
``triton``      ``rows/triton.py``         ``elements/triton.py``
==============  =========================  ==============================

* ``reference`` is plain PyTorch: any device, dtype and transform. It is the specification.
* ``native`` is C++ for CPU tensors (``csrc/``; ``core.py`` says what is compiled in).
* ``triton`` is for GPUs (kernels: ``triton/``); in Triton's interpreter, which is for tests, it
  takes CPU tensors.

``contract.py`` says what an engine must offer, ``choice.py`` which engine a call takes,
``modes.py`` when memory may be read at all. Engines know tensors only; a linear head is opened in
``heads/``.
"""
