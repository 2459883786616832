"""Low-bit linear layers for PyTorch on CPUs, under models that keep the ``generate`` API of ``transformers``.

Importing this loads no library: torch is imported by the modules that compute.
"""
