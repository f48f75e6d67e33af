"""The harness of ``xent bench``: contestants, their processes, timing, memory, reports."""
