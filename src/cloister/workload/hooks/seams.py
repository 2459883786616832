"""Where libraries are changed: a function or method of a module, and what happens around its call.

The library's signature, documentation and results stay. A wrapped function is pickled by its name, as the library's own is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import wrapt

Around: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Called with the library's function, the positional and the keyword arguments, in place of the function."""


@dataclass(frozen=True, slots=True)
class Seam:
    """``name`` (dots for attributes of classes) of ``module``."""

    module: str
    name: str
    around: Around
    writes: bool = False
    """Refuse the module where it lacks this: a program would write in the clear."""


class _Hooked(wrapt.FunctionWrapper[..., Any]):
    """Pickled as what the name stands for, in the process that loads it."""

    def __init__(self, wrapped: Any, wrapper: Any, module: str, name: str) -> None:
        super().__init__(wrapped, wrapper)
        self._self_place = (module, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, self._self_place

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return _find, self._self_place


def apply_when_imported(seam: Seam) -> None:
    """Change the module when it is imported; at once where it is already."""

    def apply(module: Any) -> None:
        try:
            parent, attribute, original = wrapt.resolve_path(module, seam.name)
        except AttributeError:
            if seam.writes:
                raise ImportError(
                    f"cloister: {seam.module} has no {seam.name}, so what it writes could not be sealed; "
                    "use a release of it that this release of cloister knows",
                    name=seam.module,
                ) from None
            return

        def around(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return seam.around(wrapped, args, kwargs)

        wrapt.apply_patch(parent, attribute, _Hooked(original, around, seam.module, seam.name))

    wrapt.register_post_import_hook(apply, seam.module)


def translated(
    place: Callable[[Any], Any], *arguments: tuple[int, str], then: Around | None = None
) -> Around:
    """Passes what ``place`` makes of these arguments (position, and name). Absent ones stay absent."""

    def around(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        positional, named = list(args), dict(kwargs)
        for position, name in arguments:
            if name in named:
                named[name] = place(named[name])
            elif 0 <= position < len(positional):
                positional[position] = place(positional[position])
        return (then or _call)(wrapped, tuple(positional), named)

    return around


def argument(args: Sequence[Any], kwargs: dict[str, Any], position: int, name: str) -> Any:
    """The value of an argument, or None."""
    return kwargs[name] if name in kwargs else args[position] if 0 <= position < len(args) else None


def replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with another value for one that is there."""
    if name in kwargs:
        return args, {**kwargs, name: value}
    return (*args[:position], value, *args[position + 1 :]), kwargs


def _call(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return wrapped(*args, **kwargs)


def _find(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found
