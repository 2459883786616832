"""What training begins with: the model that the parties agreed on, opened by the aggregator without any party's data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cloister.attester.launch import this_program
from cloister.encoding import from_hex
from cloister.errors import FederationError
from cloister.federated.agreement import AgreedFederation
from cloister.federated.opening import open_model
from cloister.federated.tasks import Opening, find_task
from cloister.federated.updates import encode_arrays
from cloister.sealing import KeySource


def first_model(
    agreed: AgreedFederation, path: Path, *, signers: Sequence[str], keys: KeySource | None
) -> bytes:
    """Its arrays as safetensors. Raises FederationError for another model or code than agreed, and what opening raises."""
    federation = agreed.federation
    if federation.task.code != this_program().hex():
        raise FederationError(
            "the parties agreed on other code than this program's",
            todo="install the version that they signed",
        )
    accepted = frozenset(from_hex(one, 32, what="an index signer") for one in signers)
    opened = open_model(path, federation.task.model, accepted, keys)
    try:
        training = find_task(federation.task.plugin)(
            Opening(model=opened.files, settings=federation.task.settings)
        )
        opened.confirm()
        return encode_arrays(training.arrays())
    finally:
        opened.files.close()
        opened.discard()
