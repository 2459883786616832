"""What of a module travels: its weights by name, as float32, and back again.

All float parameters and float buffers that persist, under the names of the module's ``state_dict``. Whole numbers (counters,
positions) stay where they are. What comes back has exactly those names and shapes, or is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloister.errors import FederationError
from cloister.federated.updates import Arrays


def weights_of(module: nn.Module) -> dict[str, NDArray[Any]]:
    """Copies, which later training does not change."""
    return arrays_of(module.state_dict().items())


def put_weights(module: nn.Module, arrays: Arrays) -> None:
    """Let ``module`` compute with ``arrays``. Raises :class:`~cloister.errors.FederationError`; then nothing has changed."""
    put_arrays(dict(module.state_dict()), arrays)


def arrays_of(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, NDArray[Any]]:
    """Of named tensors those that travel."""
    return {
        name: np.array(tensor.detach().float().numpy(), copy=True)
        for name, tensor in tensors
        if tensor.is_floating_point()
    }


def put_arrays(tensors: dict[str, Tensor], arrays: Arrays) -> None:
    """Write ``arrays`` into the tensors of their names, as :func:`put_weights` does."""
    into = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if into.keys() != arrays.keys():
        raise FederationError("the arrays are not those of the task's model", todo="see the task's settings")
    for name, tensor in into.items():
        if arrays[name].shape != tuple(tensor.shape):
            raise FederationError(
                f"{name[:80]} has the shape {arrays[name].shape}, and not {tuple(tensor.shape)}",
                todo="see the task's settings",
            )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name], dtype=np.float32)))
