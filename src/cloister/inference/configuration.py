"""What a serving workload is launched with, in the form that is measured.

Everything that changes what the workload will do or whom it trusts is here, and nothing else: the port, the address and the
number of threads are the operator's business, so moving or tuning a service does not change its reference values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from cloister.attester.launch import launch_events, this_program
from cloister.encoding import Record, encode_json, labelled_hash
from cloister.evidence.eventlog import LaunchEvent
from cloister.inference.engines import KvCache, Precision, Speculation

FORMAT: Final = "cloister/serve-configuration/v4"
_UPSTREAM_LABEL: Final = "cloister/upstream-model/v1"


class MeasuredAdapter(Record, frozen=True, kw_only=True):
    """Which adapter is added to the model."""

    digest: str
    """What :attr:`cloister.inference.adapter.Adapter.digest` says, 64 lower-case hexadecimal digits."""
    folder: str = ""
    """Where inside the directory it lies; "" for its top."""


class MeasuredKnowledge(Record, frozen=True, kw_only=True):
    """Which documents' rules hold, and what computes their vectors."""

    rules: str
    """Digest of the rules, 64 lower-case hexadecimal digits."""
    encoder: str
    """Digest of the encoder, as a model's."""


class ServeConfiguration(Record, frozen=True, kw_only=True):
    """Measured into the launch as its canonical JSON (docs/spec/serve-configuration.md)."""

    format: Literal["cloister/serve-configuration/v4"] = FORMAT
    model_name: str
    """The name clients ask for."""
    engine: str
    """"auto" for what the model's own ``optimized.json`` names, or else the usual one of its kind."""
    context_length: int
    """Tokens per request, prompt and answer together."""
    slots: int
    """Requests answered at the same time."""
    index_signers: tuple[str, ...]
    """Ed25519 public keys (hexadecimal) whose signature on a model's index is believed."""
    broker_policy: str | None
    """Digest of the policy by which the key broker is appraised; None where keys come from an owner's file."""
    api_keys_required: bool
    adapter: MeasuredAdapter | None = None
    """What is added to the model; None where it answers as it is."""
    precision: Precision | None = None
    """Of the weights while they compute; None as ``optimized.json`` or else the engine says."""
    kv_cache: KvCache | None = None
    prefix_cache: bool = False
    """Whether prompts are kept, each for the API key that asked with it."""
    speculation: Speculation | None = None
    draft: str | None = None
    """Digest of the model whose guesses are checked (64 hexadecimal digits), as a model is measured."""
    upstream: str | None = None
    """Address of the server of this TEE that computes in place of an engine."""
    knowledge: MeasuredKnowledge | None = None
    """Who may ask which documents; None where the workload has none."""


def serving_events(configuration: ServeConfiguration, model_index: bytes) -> Sequence[LaunchEvent]:
    """The launch events of a serving workload: configuration, this program, the model's index digest (32 bytes)."""
    return launch_events(config=encode_json(configuration), program=this_program(), model_index=model_index)


def upstream_index(address: str) -> bytes:
    """What is measured as the model where another server holds it: 32 bytes that stand for no model file."""
    return labelled_hash(_UPSTREAM_LABEL, address.encode())
