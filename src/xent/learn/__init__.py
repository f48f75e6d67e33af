"""What is learnt or fitted with the losses, a module each; import the one you need.

Nothing here is loaded by ``import xent``.
"""
