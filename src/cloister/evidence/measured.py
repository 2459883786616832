"""One event of a firmware or launch log, whatever format it came in (tcg_log.py, dstack_log.py).

A log proves nothing by itself: it is replayed, and the verifier compares the end with a signed register. What an
event's *digest* covers is known for some kinds only; ``vouched`` says so, and nobody may believe ``data`` without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MeasuredEvent:
    """What was extended into ``register`` (RTMR 0 … 3, or PCR 0 … 23)."""

    register: int
    kind: str
    """As the specification spells it, such as ``EV_EFI_VARIABLE_BOOT``."""
    digest: bytes
    """The bytes that were extended: 48 for an RTMR, the bank's size for a PCR."""
    data: bytes
    """The event's data as the log has it."""
    vouched: bool
    """``digest`` was recomputed from ``data``, so the register vouches for the data."""
    name: str = ""
    """A name that a policy can ask for, such as ``kernel-command-line``; empty where it has none."""


def replay_registers(events: Iterable[MeasuredEvent], *, algorithm: str) -> dict[int, bytes]:
    """The registers after ``events``, from all zeros: extend is H(register ‖ digest).

    ``algorithm`` is ``sha384`` for RTMRs, the bank's for PCRs. Registers that no event touched are absent.
    """
    registers: dict[int, bytes] = {}
    for event in events:
        before = registers.get(event.register, bytes(hashlib.new(algorithm).digest_size))
        registers[event.register] = hashlib.new(algorithm, before + event.digest).digest()
    return registers
