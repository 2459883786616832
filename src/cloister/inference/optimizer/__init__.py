"""``cloister optimize``: the engine, the form of the weights and the settings that are best for a model on this machine.

:func:`optimize_directory` is the way in. The model is the owner's, in the clear, and stays as it is; what is chosen goes
into a new folder, whole or not at all, with ``optimized.json`` beside it.
"""

from __future__ import annotations

from cloister.inference.optimizer.optimizing import Outcome, optimize_directory

__all__ = ["Outcome", "optimize_directory"]
