"""``[nvidia]`` of a policy: how many GPUs and switches of which kind, in which state. SKELETON, to be completed."""

from __future__ import annotations

from typing import Literal

from cloister.encoding import Record
from cloister.errors import FormatError
from cloister.verifier.nvidia import NvidiaRules


class NvidiaReference(Record, frozen=True, kw_only=True):
    """``[nvidia]``: its presence requires device evidence, its absence refuses any."""

    gpus: int
    """Exactly so many GPUs."""
    revocation: Literal["required", "unchecked"]


def check_nvidia(nvidia: NvidiaReference) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""
    if not 0 <= nvidia.gpus <= 64:
        raise FormatError("gpus must be 0 to 64")


def nvidia_rules(nvidia: NvidiaReference) -> NvidiaRules:
    """The part that the verifier enforces."""
    return NvidiaRules(revocation_required=nvidia.revocation == "required")
