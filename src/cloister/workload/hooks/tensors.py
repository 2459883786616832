"""Sealed paths for ``torch.load``, ``torch.save`` and ``safetensors``.

Readers that take file objects get ours. What maps a file gets the path of one that was restored to private memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

from cloister.workload.hooks.paths import as_file, open_sealed, restored, sealed_url
from cloister.workload.hooks.seams import Around, Seam, argument, replaced, translated

_FRAMEWORKS: Final = ("torch", "numpy", "flax", "tensorflow", "paddle", "mlx")


def _load(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    url = sealed_url(argument(args, kwargs, 0, "f"))
    if url is None:
        return wrapped(*args, **kwargs)
    if kwargs.get("mmap"):
        args, kwargs = replaced(args, kwargs, 0, "f", restored(url))
        return wrapped(*args, **kwargs)
    with open_sealed(url, "rb") as file:
        args, kwargs = replaced(args, kwargs, 0, "f", file)
        return wrapped(*args, **kwargs)


def _save(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    url = sealed_url(argument(args, kwargs, 1, "f"))
    if url is None:
        return wrapped(*args, **kwargs)
    with open_sealed(url, "wb") as file:
        args, kwargs = replaced(args, kwargs, 1, "f", file)
        return wrapped(*args, **kwargs)


def _save_tensors(framework: str) -> Around:
    def around(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        url = sealed_url(argument(args, kwargs, 1, "filename"))
        if url is None:
            return wrapped(*args, **kwargs)
        module = importlib.import_module(f"safetensors.{framework}")
        tensors = args[0] if args else kwargs.get("tensors", kwargs.get("tensor_dict"))
        data = module.save(tensors, metadata=argument(args, kwargs, 2, "metadata"))
        with open_sealed(url, "wb") as file:
            file.write(data)
        return None

    return around


SEAMS: Final = (
    Seam("torch.serialization", "load", _load),
    Seam("torch.serialization", "save", _save, writes=True),
    Seam("safetensors", "safe_open", translated(as_file, (0, "filename"))),
    *(
        seam
        for framework in _FRAMEWORKS
        for seam in (
            Seam(f"safetensors.{framework}", "load_file", translated(as_file, (0, "filename"))),
            Seam(f"safetensors.{framework}", "save_file", _save_tensors(framework), writes=True),
        )
    ),
)
