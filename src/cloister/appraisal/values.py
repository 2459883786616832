"""Lists of accepted values, as every table of a policy has them: never empty, nothing twice, exact lengths."""

from __future__ import annotations

from typing import Literal

from cloister.encoding import from_hex
from cloister.errors import AppraisalRefused, FormatError

Values = tuple[str, ...] | Literal["any"]
"""Accepted digests in lower-case hexadecimal, or the spelled-out word."""


def check_digests(name: str, values: tuple[str, ...], size: int) -> None:
    """``values`` of field ``name`` are digests of ``size`` bytes. Raises :class:`~cloister.errors.FormatError`."""
    check_some(name, values)
    for value in values:
        from_hex(value, size, what=name)


def check_some(name: str, values: tuple[str, ...]) -> None:
    """At least one value, none twice. Raises :class:`~cloister.errors.FormatError`."""
    if not values:
        raise FormatError(
            f"{name} is an empty list", todo="an empty list would accept nothing, or everything"
        )
    check_unique(name, values)


def check_unique(name: str, values: tuple[str, ...]) -> None:
    """No value twice. Raises :class:`~cloister.errors.FormatError`."""
    if len(set(values)) != len(values):
        raise FormatError(f"{name} lists a value twice")


def one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """``value`` is among ``accepted``. Raises :class:`~cloister.errors.AppraisalRefused`."""
    if value not in accepted:
        shown = value if len(value) <= 96 else f"{value[:96]}…"
        raise AppraisalRefused(
            f"{name} is {shown or 'empty'}, which the policy does not list",
            todo="this is another workload, or its reference values changed: compare before you add it",
        )
