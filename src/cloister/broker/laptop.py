"""Laptop mode: a broker whose owner and operator are one person, with a passphrase and no TEE to speak of.

The same machinery as everywhere: a manifest, signed rules, signed orders. Only the owner's key is derived from the
state key, so whoever knows the passphrase is the owner and can change any rule. That is what this mode is, and
``status`` says so.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import sqlalchemy as sa

from cloister.appraisal.policy import load_policy
from cloister.broker import tables
from cloister.broker.administration import Administration
from cloister.broker.clock import RisingClock
from cloister.broker.keystores import Keystore
from cloister.broker.resources import repository_of
from cloister.broker.state import State, create_state, new_state_id, open_state, read_document
from cloister.broker.state_key import Cost, StateDocument, StateKey, lock_by_passphrase, open_by_passphrase
from cloister.broker.wire import Done
from cloister.encoding import encode_json
from cloister.errors import UsageError
from cloister.manifest.acceptance import AcceptedManifest, accept_genesis
from cloister.manifest.manifest import Manifest, governing, origin
from cloister.manifest.order import Action, Order
from cloister.manifest.quorum import Quorum
from cloister.manifest.rule import AcceptedRule, Rule
from cloister.manifest.signed import Kind, Signed, sign
from cloister.manifest.signers import Ed25519Signer

APPLICATION: Final = "laptop"
OWNER: Final = "laptop"
OWNER_LABEL: Final = "cloister/broker-laptop-owner/v1"


def _wall_clock() -> int:
    return int(time.time())


@dataclass(frozen=True, slots=True)
class Laptop:
    """An opened state in laptop mode, and its owner's pen."""

    state: State
    administration: Administration
    signer: Ed25519Signer

    @classmethod
    def create(
        cls,
        directory: Path,
        passphrase: bytes,
        *,
        cost: Cost | None = None,
        now: Callable[[], int] = _wall_clock,
    ) -> Self:
        """Make a state directory. Raises :class:`UsageError` if there is a state already."""
        if (directory / tables.DATABASE).exists():
            raise UsageError(f"{directory} holds a broker's state already")
        tables.make_directory(directory)
        engine = tables.open_database(tables.sqlite_url(directory))
        create_laptop_state(engine, passphrase, cost=cost, now=now)
        return cls.open_engine(engine, passphrase, now=now)

    @classmethod
    def open(
        cls,
        directory: Path,
        passphrase: bytes,
        *,
        stores: Mapping[str, Keystore] | None = None,
        placed: Mapping[str, str] | None = None,
        now: Callable[[], int] = _wall_clock,
    ) -> Self:
        """Open a state directory. Raises :class:`UsageError` (none there) or ``KeystoreError``."""
        if not (directory / tables.DATABASE).is_file():
            raise UsageError(
                f"{directory} holds no broker's state",
                todo="`cloister broker put` makes one when it is given --init",
            )
        tables.require_private(directory)
        engine = tables.open_database(tables.sqlite_url(directory))
        return cls.open_engine(engine, passphrase, stores=stores, placed=placed, now=now)

    @classmethod
    def open_engine(
        cls,
        engine: sa.Engine,
        passphrase: bytes,
        *,
        stores: Mapping[str, Keystore] | None = None,
        placed: Mapping[str, str] | None = None,
        now: Callable[[], int] = _wall_clock,
    ) -> Self:
        """Open the state in this database."""
        document = read_document(engine)
        key = open_by_passphrase(document, passphrase)
        clock = RisingClock(now)
        state = open_state(engine, key, origin=None, clock=clock, stores=stores, placed=placed)
        return cls(state, Administration(state, clock, lambda: document), owner_signer(key))

    def put(self, path: str, content: bytes) -> Done:
        """Store the next version of a resource."""
        self._own(repository_of(path))
        return self._order("put", path, content)

    def destroy(self, path: str) -> Done:
        """Shred a resource."""
        return self._order("destroy", path)

    def rotate_key(self, repository: str) -> Done:
        """Give a repository a new key-encryption key."""
        return self._order("rotate-key", repository)

    def destroy_key(self, repository: str, version: int) -> Done:
        """Shred one version of a repository's key-encryption key."""
        return self._order("destroy-key", repository, version=version)

    def allow(self, path: str, policies: tuple[str, ...], *, releases: int | None = None) -> AcceptedRule:
        """Let workloads that meet one of these policies (TOML) read a resource, and nobody else."""
        for text in policies:
            load_policy(text, name="policy")
        self._own(repository_of(path))
        before = self.state.authority.rule(path)
        rule = Rule(
            application=APPLICATION,
            resource=path,
            version=1 if before is None else before.rule.rule.version + 1,
            previous="" if before is None else before.rule.digest,
            workloads={},
            policies=policies,
            purposes="any",
            window="always",
            releases="unlimited" if releases is None else releases,
        )
        return self.state.authority.submit_rule(self._sign("rule", encode_json(rule)))

    def _own(self, repository: str) -> None:
        """See to it that the manifest names the owner of this repository."""
        self.state.journal.catch_up()  # a broker may be serving the same state
        before = self.state.authority.manifest
        if governing(before.manifest, repository) is not None:
            return
        following = laptop_manifest(
            self.signer,
            version=before.manifest.version + 1,
            previous=before.digest,
            issued=max(before.manifest.issued, self.administration.now()),
            repositories=(*before.manifest.resources, repository),
        )
        self.state.authority.submit_manifest(self._sign("manifest", encode_json(following)))

    def _order(self, action: Action, subject: str, content: bytes = b"", *, version: int = 0) -> Done:
        self.state.journal.catch_up()
        order = Order(
            application=APPLICATION,
            broker=self.state.id,
            action=action,
            subject=subject,
            version=version or self.administration.next_version(action, subject),
            content_sha256=hashlib.sha256(content).hexdigest() if action == "put" else "",
        )
        return self.administration.execute(self._sign("order", encode_json(order)), content)

    def _sign(self, kind: Kind, document: bytes) -> Signed:
        return sign(kind, document, [self.signer])


def create_laptop_state(
    engine: sa.Engine, passphrase: bytes, *, cost: Cost | None = None, now: Callable[[], int] = _wall_clock
) -> StateDocument:
    """A new state in an empty database, opened by ``passphrase``."""
    clock = RisingClock(now)
    document, key = lock_by_passphrase(passphrase, state=new_state_id(), now=clock(), cost=cost)
    create_state(engine, document, key, first_manifest(owner_signer(key), clock()), clock=clock)
    return document


def owner_signer(key: StateKey) -> Ed25519Signer:
    """The pen of whoever knows the passphrase."""
    return Ed25519Signer(key.derive(OWNER_LABEL))


def first_manifest(signer: Ed25519Signer, now: int) -> AcceptedManifest:
    """Version 1: one owner, no resources yet, no witnesses."""
    manifest = laptop_manifest(signer, version=1, previous="", issued=now, repositories=())
    return accept_genesis(sign("manifest", encode_json(manifest), [signer]), origin=origin(manifest))


def laptop_manifest(
    signer: Ed25519Signer, *, version: int, previous: str, issued: int, repositories: tuple[str, ...]
) -> Manifest:
    """The manifest of laptop mode with these repositories."""
    alone = Quorum(owners=(OWNER,), threshold=1)
    return Manifest(
        application=APPLICATION,
        version=version,
        previous=previous,
        issued=issued,
        owners={OWNER: signer.key},
        update=alone,
        broker=(),
        workloads={},
        resources=dict.fromkeys(repositories, alone),
        witnesses="none",
        operators={},
        auditors={},
    )
