"""What a workload opens when it gets its order: data and base model with the order's keys, and what it keeps on the disk."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from cloister.encoding import from_hex
from cloister.errors import FederationError, KeyUnavailable, UsageError
from cloister.federated.agreement import AgreedFederation
from cloister.federated.federation import MILLION, Privacy
from cloister.federated.identity import Identity
from cloister.federated.ledger import Ledger
from cloister.federated.messages import TaskOrder
from cloister.federated.secure.memory import Memory
from cloister.federated.secure.work import SecureWork
from cloister.federated.tasks import ExamplePrivacy, Opening, Training, find_task
from cloister.inference.model import OpenedModel, find_model
from cloister.sealing import KeySource
from cloister.sealing.access import Access
from cloister.sealing.opening import open as open_sealed

_log = logging.getLogger("cloister.federated")


@dataclass(frozen=True, slots=True)
class Places:
    """Where a workload finds things. ``data`` and ``model`` are on the host's disk, sealed or, the model, plain."""

    memory: Path
    """A private folder in memory, empty, that ends with the process."""
    data: Path
    model: Path
    state: Path | None = None
    """Where the ledger of spent privacy lies, and what secure aggregation remembers, sealed. It outlives the process."""


class GivenKeys:
    """The keys of an order: a :class:`~cloister.sealing.KeySource`."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._keys = keys

    def __repr__(self) -> str:
        return f"GivenKeys({', '.join(sorted(self._keys))})"

    def key(self, uri: str) -> bytes:
        found = self._keys.get(uri)
        if found is None:
            raise KeyUnavailable(
                f"the agent gave no key at {uri}",
                todo="hand it to the agent with `cloister federation join --data-key`",
            )
        return found


def open_task(places: Places, agreed: AgreedFederation, order: TaskOrder, undo: ExitStack) -> Training:
    """The plugin, open. Raises FederationError for another model than was agreed on, and what opening raises."""
    federation = agreed.federation
    signers = frozenset(from_hex(one, 32, what="an index signer") for one in order.signers)
    keys = GivenKeys(order.keys)
    opened = open_model(places.model, federation.task.model, signers, keys)
    undo.callback(opened.discard)
    undo.callback(opened.files.close)
    access = Access(keys=keys, signers=signers)

    def read(name: str) -> BinaryIO:
        return cast("BinaryIO", open_sealed(places.data / name, "rb", access=access))

    privacy = _example_privacy(federation.privacy)
    ledger = None if privacy is None else _ledger(places, agreed, order, privacy, undo)
    opening = Opening(
        model=opened.files, settings=federation.task.settings, read=read,
        proximal=federation.aggregation.proximal_ppm / MILLION, privacy=privacy,
        spend=None if ledger is None else ledger.spend,
    )  # fmt: skip
    training = find_task(federation.task.plugin)(opening)
    opened.confirm()
    return training


def open_secure(
    places: Places, agreed: AgreedFederation, order: TaskOrder, identity: Identity, undo: ExitStack
) -> SecureWork:
    """A party's side of secure aggregation. Raises UsageError without a place for what it has to remember."""
    if places.state is None:
        raise UsageError(
            "this workload was not told where to keep in which rounds its update was hidden",
            todo="start it with --state, always with the same folder",
        )
    memory = Memory(
        places.state, first=order.digest, party=order.party, keys=GivenKeys(order.keys), key_uri=order.output
    )  # fmt: skip
    undo.callback(memory.close)
    secure = SecureWork(agreed.federation, order.party, identity, memory)
    secure.know(order.peers)
    return secure


def open_model(path: Path, digest: str, signers: frozenset[bytes], keys: KeySource | None) -> OpenedModel:
    """The model that the parties agreed on. Raises FederationError for another one, and what opening raises."""
    model = find_model(path, signers=signers)
    if model.digest.hex() != digest:
        raise FederationError(
            f"{path} is not the model that the parties agreed on",
            todo=f"its digest is {model.digest.hex()}, and they signed {digest}",
        )
    return model.open(keys)


def _example_privacy(privacy: Literal["none"] | Privacy) -> ExamplePrivacy | None:
    if not isinstance(privacy, Privacy) or privacy.of != "examples":
        return None
    return ExamplePrivacy(
        noise=privacy.noise_ppm / MILLION, clip=privacy.clip_ppm / MILLION, delta=1 / privacy.delta_inverse,
        epsilon=privacy.epsilon_ppm / MILLION,
    )  # fmt: skip


def _ledger(
    places: Places, agreed: AgreedFederation, order: TaskOrder, privacy: ExamplePrivacy, undo: ExitStack
) -> Ledger:
    if places.state is None:
        raise UsageError(
            "this workload was not told where to keep what privacy it spends",
            todo="start it with --state, always with the same folder",
        )
    ledger = Ledger(
        places.state, first=order.digest, version=agreed.digest, party=order.party, privacy=privacy,
        keys=GivenKeys(order.keys), key_uri=order.output,
    )  # fmt: skip
    undo.callback(ledger.close)
    _log.info("privacy: epsilon %.4g of %.6g is spent so far", ledger.spent(), privacy.epsilon)
    return ledger
