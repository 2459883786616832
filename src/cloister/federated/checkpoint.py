"""A run after a round, sealed on the host's disk: what an aggregator that was killed goes on from.

One sealed file (suite 1, docs/spec/sealed-file.md), written whole or not at all. Its key is in no file: the aggregator
hands it to every agent that it admits, and a later aggregator gets it back from any of them, attested both times. A file of
another federation, of another key or with anything else in it is refused; an older one of the same run is told by the
round that agents have seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import CloisterError, FederationError, FormatError
from cloister.federated.progress import Fact, decode_facts, encode_fact
from cloister.federated.rounds import Kept
from cloister.federated.sealed_record import read_sealed, write_sealed
from cloister.federated.updates import decode_arrays, encode_arrays
from cloister.sealing.key_file import KeyFile

NAME: Final = "checkpoint.sealed"
MAX_HEAD: Final = 64 * 1024
MAX_CHECKPOINT: Final = 64 << 30
_LENGTH: Final = 8


class _Head(Record, frozen=True, kw_only=True):
    format: Literal["cloister/federation-checkpoint/v1"] = "cloister/federation-checkpoint/v1"
    federation: str
    run: str
    round: int
    over: bool
    noise: str
    """The secret of the run's noise, in hexadecimal."""
    model: int
    """Bytes of the model's safetensors, and so on, in this order."""
    state: int
    facts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What was read."""

    run: str
    over: bool
    """Whether the run had ended with all its rounds."""
    kept: Kept
    facts: tuple[Fact, ...]


def key_uri(federation: str) -> str:
    """What the file calls its key, which no broker has. ``federation`` is the document's digest."""
    return f"kbs:///federation/checkpoint/{federation[:32]}"


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, federation: str, key: bytes) -> None:
    """Replace the checkpoint in ``folder``. Raises UsageError where that cannot be written."""
    model = encode_arrays(checkpoint.kept.model)
    state = encode_arrays(checkpoint.kept.state) if checkpoint.kept.state else b""
    facts = b"".join(map(encode_fact, checkpoint.facts))
    head = encode_json(
        _Head(
            federation=federation, run=checkpoint.run, round=checkpoint.kept.number, over=checkpoint.over,
            noise=checkpoint.kept.secret.hex(),
            model=len(model), state=len(state), facts=len(facts),
        )
    )  # fmt: skip
    parts = (len(head).to_bytes(_LENGTH, "big"), head, model, state, facts)
    write_sealed(folder / NAME, parts, key_uri=key_uri(federation), kek=key)


def newest_checkpoint(
    folder: Path, *, federation: str, keys: Sequence[bytes], seen: int
) -> tuple[bytes, Checkpoint] | None:
    """The checkpoint that a run goes on from and its key, one of ``keys``; None where a run begins.

    ``seen`` is the last round of which a party saw the end. Raises FederationError for an older one, and where none opens.
    """
    reason = "nobody has a key"
    for key in keys:
        try:
            found = read_checkpoint(folder, federation=federation, key=key)
        except CloisterError as error:
            reason = error.what
            continue
        if found is None:
            if seen:
                raise FederationError(
                    f"parties have seen round {seen}, and there is no checkpoint",
                    todo="restore the aggregator's state folder",
                )
            return None
        if found.kept.number < seen:
            raise FederationError(
                f"the checkpoint is of round {found.kept.number}, and parties have seen round {seen}",
                todo="somebody restored an older one: restore the newest",
            )
        return key, found
    raise FederationError(
        f"the checkpoint of an earlier run cannot be used ({reason})",
        todo="start an agent that took part in it, or remove the state folder to begin anew",
    )


def read_checkpoint(folder: Path, *, federation: str, key: bytes) -> Checkpoint | None:
    """The checkpoint in ``folder``, None where there is none. Raises FederationError, and the errors of sealing."""
    data = read_sealed(folder / NAME, KeyFile(key, key_uri(federation)), limit=MAX_CHECKPOINT)
    if data is None:
        return None
    length = int.from_bytes(data[:_LENGTH], "big")
    if length > MAX_HEAD:
        raise FormatError(f"{NAME} has no head")
    begin = _LENGTH + length
    head = decode_json(data[_LENGTH:begin], _Head, what=NAME, limit=MAX_HEAD)
    sizes = (head.model, head.state, head.facts)
    if min(sizes) < 0 or begin + sum(sizes) != len(data):
        raise FormatError(f"{NAME} does not have the parts that its head says")
    if head.federation != federation:
        raise FederationError(f"{NAME} is of another federation, or of another version of it")
    parts = []
    for size in sizes:
        parts.append(data[begin : begin + size])
        begin += size
    kept = Kept(
        head.round,
        decode_arrays(parts[0], what="the checkpoint's model", limit=len(parts[0])),
        decode_arrays(parts[1], what="the checkpoint's state", limit=len(parts[1])) if parts[1] else {},
        _secret(head.noise),
    )
    facts = decode_facts(parts[2], what="the checkpoint's facts")
    return Checkpoint(run=head.run, over=head.over, kept=kept, facts=facts)


def _secret(text: str) -> bytes:
    if re.fullmatch(r"([0-9a-f]{64})?", text) is None:
        raise FormatError(f"{NAME} has no secret of its noise")
    return bytes.fromhex(text)
