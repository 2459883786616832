"""Custody of the state key: a broker is locked until its owners, a peer, or a passphrase open its state.

Locked, it shows its evidence and takes shares, and does nothing else. It counts as open only when the whole state was
read and checked and the witnesses said that there is none newer. Shares that are made are new_shares.py's.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa

from cloister.broker import tables
from cloister.broker.audit import Fact
from cloister.broker.clock import RisingClock
from cloister.broker.keystores import Keystore
from cloister.broker.new_shares import NewShares, locked
from cloister.broker.offers import Offers
from cloister.broker.state import (
    State,
    create_state,
    new_state_id,
    open_state,
    read_document,
)
from cloister.broker.state_key import (
    KEY_SIZE,
    Share,
    StateDocument,
    StateKey,
    open_by_passphrase,
    open_by_shares,
)
from cloister.broker.wire import Progress
from cloister.broker.witnessing import require_addresses
from cloister.errors import (
    BrokerError,
    CloisterError,
    KeystoreError,
    KeystoreUnavailable,
    NetworkError,
)
from cloister.manifest.acceptance import AcceptedManifest, accept_genesis
from cloister.manifest.signed import Signed

RETRY_SECONDS: Final = 2.0
"""How often witnesses that did not answer are asked again."""

_log = logging.getLogger("cloister.broker")


Waiting = tuple[State, str, bool]
"""A state that was read and checked and waits for its witnesses, how it was opened, and whether by shares."""


class Locked(BrokerError):
    """The state waits for its owners' shares."""


class Custody:
    """One process's hold on one state. Thread-safe."""

    def __init__(
        self,
        engine: sa.Engine,
        *,
        clock: RisingClock,
        origin: str | None,
        stores: Mapping[str, Keystore] | None = None,
        placed: Mapping[str, str] | None = None,
        witnesses: Mapping[str, str] | None = None,
    ) -> None:
        self.clock = clock
        self._engine = engine
        self._origin = origin
        self._stores = stores
        self._placed = placed
        self._witnesses = witnesses
        self._lock = threading.RLock()
        self._state: State | None = None
        self._waiting: Waiting | None = None
        self._refusal: CloisterError | None = None
        self._closing = threading.Event()
        self._logged = False
        self._offered = Offers()
        self._shares = NewShares(engine, lambda: self.state)

    def close(self) -> None:
        """Ask no witness any more, if it still waits for them."""
        self._closing.set()

    @property
    def opened(self) -> bool:
        """Is the state open?"""
        return self._state is not None

    @property
    def state(self) -> State:
        """The opened state. Raises :class:`Locked`."""
        if self._state is None:
            if self._refusal is not None:
                raise self._refusal
            if self._waiting is not None:
                raise Locked(
                    "this broker waits for its witnesses", todo="they serve its log: `cloister owner status`"
                )
            raise Locked("this broker's state is locked", todo="its owners run `cloister owner unlock`")
        return self._state

    def document(self) -> StateDocument:
        """How the state is opened. While it is locked this is the database's word; once it is open, it is checked."""
        if self._state is None:
            return read_document(self._engine)
        return self._shares.checked(self._state)[1]

    def create(self, genesis: Signed) -> None:
        """Make a new state under its first manifest: the update quorum's owners hold the shares of its key."""
        manifest = accept_genesis(genesis, origin=self._origin or "")
        require_addresses(manifest.manifest.witnesses, self._witnesses or {})
        with self._lock:
            key = StateKey(os.urandom(KEY_SIZE))
            state_id = new_state_id()
            lock, shares = locked(manifest.manifest, state_id, key)
            document = StateDocument(id=state_id, created=self.clock(), lock=lock)
            create_state(self._engine, document, key, manifest, clock=self.clock)
            self._shares.keep(shares)
            self._open(key, "made; its owners hold shares of its key", made=True)

    def open_by_passphrase(self, passphrase: bytes) -> None:
        """Laptop mode. Raises :class:`KeystoreError`."""
        with self._lock:
            key = open_by_passphrase(self.document(), passphrase)
            self._open(key, "opened by a passphrase (laptop mode)", made=True)

    def open_from_peer(self, key: bytes) -> None:
        """With the key that a peer released to this attested broker."""
        with self._lock:
            self._open(StateKey(key), "opened by a peer broker")

    def offer(self, share: Share, *, floor: int = 1) -> Progress:
        """Take one owner's share; with enough of them the state opens. Raises ``ShareRefused``, :class:`KeystoreError`.

        ``floor`` is the version of the manifest that this owner knows: for an older one its share does not count.
        """
        with self._lock:
            if self._state is None and self._waiting is None:
                document = self.document()
                self._offered.add(document, share, floor)
                if self._offered.enough(document):
                    key = open_by_shares(document, self._offered.shares)
                    owners = ", ".join(self._offered.owners)
                    self._open(key, f"opened by shares of {owners}", by_shares=True)
                    self._offered = Offers()
            return self.progress()

    def progress(self) -> Progress:
        """How far opening has come."""
        with self._lock:
            state, waiting = self._state, self._waiting
            if state is not None:
                return Progress(open=True, have=0, need=0)
            if waiting is not None:
                return Progress(open=False, have=0, need=0, log_key=waiting[0].journal.log_key.hex())
            have, need = self._offered.nearest(self.document())
            return Progress(open=False, have=have, need=need)

    def hand_out(self, owner: str) -> Share:
        """The share of ``owner``, as long as it was not acknowledged. Raises :class:`UnknownResource`."""
        with self._lock:
            return self._shares.hand_out(owner)

    def acknowledge(self, owner: str, signed: Signed) -> Progress:
        """As :meth:`NewShares.acknowledge`."""
        with self._lock:
            return self._shares.acknowledge(owner, signed)

    def submit_manifest(self, signed: Signed) -> AcceptedManifest:
        """As :meth:`NewShares.submit_manifest`."""
        with self._lock:
            return self._shares.submit_manifest(signed)

    def _open(self, key: StateKey, how: str, *, made: bool = False, by_shares: bool = False) -> None:
        """``made``: by this process, or a laptop's. Any other state has to be vouched for by its owners."""
        state = open_state(
            self._engine,
            key,
            origin=self._origin,
            clock=self.clock,
            stores=self._stores,
            placed=self._placed,
            witnesses=self._witnesses,
        )
        if not made:
            document = self._shares.checked(state)[1]
            state.require_genuine(document)
            if by_shares:
                self._offered.require_known(document, state.authority.manifest.manifest.version)
        self._waiting, self._refusal = (state, how, by_shares), None
        self._start(self._waiting)
        if self._state is None:
            threading.Thread(target=self._keep_trying, name="cloister-witnesses", daemon=True).start()

    def _keep_trying(self) -> None:
        """Ask the witnesses again until they answer. Nobody waits for this."""
        waiting = self._waiting
        while waiting is not None and self._waiting is waiting:
            if self._closing.wait(RETRY_SECONDS):
                return
            try:
                self._start(waiting)
            except Exception as error:
                _log.error("the state stays closed (%s)", type(error).__name__)

    def _start(self, waiting: Waiting) -> None:
        """Ask the witnesses whether there is a newer state; if they or the database do not answer, later again.

        A fork or a rollback that they know of is raised, and the state stays closed.
        """
        state, how, by_shares = waiting
        try:
            state.witnessing.start()
            state.mesh.renew()
            if not self._logged:
                state.journal.transact(lambda transaction: transaction.log(Fact("start", "done", reason=how)))
                self._logged = True
            state.witnessing.require(state.journal.size)
            with self._lock:
                if self._waiting is not waiting:
                    return  # another attempt came first
                if by_shares:
                    self._shares.renew_lost(state)
                self._state, self._waiting = state, None
        except (NetworkError, KeystoreUnavailable) as error:
            _log.warning("the state waits for its witnesses: %s", error.what)
        except BaseException as error:
            # They have seen a newer state, or another: this one stays closed, and says why.
            if self._waiting is waiting:
                self._refusal = (
                    error if isinstance(error, CloisterError) else KeystoreError("the state cannot be used")
                )
                self._waiting = None
            raise


def holds_state(engine: sa.Engine) -> bool:
    """Is there a state in this database? A schema that is not there counts as none."""
    return bool(tables.schema_version(engine)) and tables.exists(engine)
