"""What a serving workload is launched with, in the form that is measured.

Everything that changes what the workload will do or whom it trusts is here, and nothing else: the port and
the address are the operator's business, so moving a service does not change its reference values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import cloister
from cloister.attester.launch import launch_events, program_digest
from cloister.encoding import Record, encode_json
from cloister.evidence.eventlog import LaunchEvent

FORMAT: Final = "cloister/serve-configuration/v1"


class ServeConfiguration(Record, frozen=True, kw_only=True):
    """Measured into the launch as its canonical JSON (docs/spec/serve-configuration.md)."""

    format: Literal["cloister/serve-configuration/v1"] = FORMAT
    model_name: str
    """The name clients ask for."""
    engine: str
    context_length: int
    """Tokens per request, prompt and answer together."""
    slots: int
    """Requests answered at the same time."""
    index_signers: tuple[str, ...]
    """Ed25519 public keys (hexadecimal) whose signature on a model's index is believed."""
    broker_policy: str | None
    """Digest of the policy by which the key broker is appraised; None where keys come from an owner's file."""
    api_keys_required: bool


def serving_events(configuration: ServeConfiguration, model_index: bytes) -> Sequence[LaunchEvent]:
    """The launch events of a serving workload: configuration, this program, the model's index digest (32 bytes)."""
    return launch_events(config=encode_json(configuration), program=this_program(), model_index=model_index)


def this_program() -> bytes:
    """The digest of the installed package, as the launcher measures it."""
    return program_digest(Path(cloister.__file__).parent)
