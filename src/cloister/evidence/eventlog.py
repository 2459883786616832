"""The launch event log: what was extended into a runtime register, in the open, so that a policy can name it.

A log proves nothing by itself. Its digests are recomputed here from names and payloads, replayed, and the
verifier compares the end with the quoted register (docs/spec/event-log.md). Logs of other firmware (CCEL)
have readers of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json, labelled_hash
from cloister.errors import EventLogMismatch

EVENT_LABEL = "cloister/launch-event/v1"
FORMAT: Final = "cloister/launch-events/v1"
REGISTER_SIZE = 48
LAUNCH_PCR: Final = 15
"""The PCR of a TPM that takes launch events: reset by a boot only, and kept by systemd for the system's identity."""
MAX_EVENTS = 256
MAX_PAYLOAD = 4096
MAX_LOG = 1 << 20

CONFIG_EVENT = "cloister.config"
PROGRAM_EVENT = "cloister.program"
MODEL_INDEX_EVENT = "cloister.model-index"


class LaunchEvent(Record, frozen=True, kw_only=True):
    """One extension of the register. ``payload`` is usually a SHA-256 digest of what was launched."""

    name: str
    payload: bytes


class _Log(Record, frozen=True, kw_only=True):
    format: Literal["cloister/launch-events/v1"] = FORMAT
    events: tuple[LaunchEvent, ...]


def event_digest(event: LaunchEvent, *, algorithm: str = "sha384") -> bytes:
    """What is extended for ``event``: the hash over label, name and payload; SHA-384 for RTMRs, a PCR's bank else."""
    return labelled_hash(EVENT_LABEL, event.name.encode(), event.payload, algorithm=algorithm)


def extend(register: bytes, digest: bytes, *, algorithm: str = "sha384") -> bytes:
    """H(register ‖ digest), as TDX extends an RTMR (TDX module specification, TDG.MR.RTMR.EXTEND) and TPMs a PCR."""
    return hashlib.new(algorithm, register + digest).digest()


def replay(events: Iterable[LaunchEvent], *, algorithm: str = "sha384") -> bytes:
    """The register after ``events``, from all zeros."""
    register = bytes(hashlib.new(algorithm).digest_size)
    for event in events:
        register = extend(register, event_digest(event, algorithm=algorithm), algorithm=algorithm)
    return register


def encode_event_log(events: Iterable[LaunchEvent]) -> bytes:
    """The canonical wire form."""
    return encode_json(_Log(events=tuple(events)))


def parse_event_log(data: bytes) -> tuple[LaunchEvent, ...]:
    """Decode a log: bounded, no name twice. Raises :class:`FormatError` or :class:`EventLogMismatch`."""
    events = decode_json(data, _Log, what="launch event log", limit=MAX_LOG).events
    if not 1 <= len(events) <= MAX_EVENTS:
        raise EventLogMismatch(f"a launch event log has 1 to {MAX_EVENTS} events, not {len(events)}")
    names = [event.name for event in events]
    if len(set(names)) != len(names):
        raise EventLogMismatch(
            "a launch event is named twice", todo="a policy could not say which one it means"
        )
    for event in events:
        if not 1 <= len(event.name) <= 64 or len(event.payload) > MAX_PAYLOAD:
            raise EventLogMismatch(f"launch event {event.name[:64]!r} is out of its bounds")
    return events
