"""One event of a firmware or launch log, whatever format it came in (tcg_log.py, dstack_log.py).

A log proves nothing by itself: it is replayed, and the verifier compares the end with a signed register. What an
event's *digest* covers is known for some kinds only; ``vouched`` says so, and nobody may believe ``data`` without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LOCALITY_EVENT: Final = "EV_NO_ACTION StartupLocality"
"""Kind of the one event that extends nothing and yet counts: where a TPM's PCR 0 starts (last byte of its data)."""


@dataclass(frozen=True, slots=True)
class MeasuredEvent:
    """What was extended into ``register`` (RTMR 0 … 3, or PCR 0 … 23)."""

    register: int
    kind: str
    """As the specification spells it, such as ``EV_EFI_VARIABLE_BOOT``; the log's word."""
    digest: bytes
    """The bytes that were extended: 48 for an RTMR, the bank's size for a PCR; none for :data:`LOCALITY_EVENT`."""
    data: bytes
    """The event's data as the log has it."""
    vouched: bool
    """``digest`` was recomputed from ``data`` or a part of it (``covered``), so the register vouches for that."""
    name: str = ""
    """What a person would call it, such as ``kernel-command-line``; the log's word, empty where it has none."""
    covered: bytes | None = None
    """The part of ``data`` that the digest covers; None where it covers something that is not in the log."""


def replay_registers(events: Iterable[MeasuredEvent], *, algorithm: str) -> dict[int, bytes]:
    """The registers after ``events``, from all zeros: extend is H(register ‖ digest).

    ``algorithm`` is ``sha384`` for RTMRs, the bank's for PCRs. Registers that no event touched are absent.
    """
    size = hashlib.new(algorithm).digest_size
    registers: dict[int, bytes] = {}
    for event in events:
        if event.kind == LOCALITY_EVENT:
            registers[event.register] = bytes(size - 1) + event.data[-1:]
            continue
        before = registers.get(event.register, bytes(size))
        registers[event.register] = hashlib.new(algorithm, before + event.digest).digest()
    return registers
