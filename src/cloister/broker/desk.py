"""The desk: one method for each endpoint of the table, between HTTP and what owners, auditors and workloads ask.

Who may ask is checked before anything else, by the endpoint's own entry in the table; a method sees a person or an
attested session only after that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from cloister.broker import desk_workloads
from cloister.broker.administration import Administration
from cloister.broker.custody import Custody
from cloister.broker.endpoints import Endpoint
from cloister.broker.metrics import Metrics
from cloister.broker.profiles import Collateral, DeviceCollateral
from cloister.broker.service import Broker, Witnessless
from cloister.broker.session import Sessions
from cloister.broker.signed_request import Nonces, Person, require_person
from cloister.broker.state_key import PassphraseLock, Share, parse_share
from cloister.broker.token import TokenSigner
from cloister.broker.wire import (
    MAX_ENTRIES,
    Bundle,
    Entries,
    EvidenceAnswer,
    HeadAnswer,
    KeyListing,
    Listing,
    Manifests,
    Next,
    Nonce,
    OrderRequest,
    Proof,
    Status,
    Unlock,
)
from cloister.encoding import Record, decode_json, encode_json, from_hex
from cloister.errors import CloisterError, FormatError, NetworkError, UnknownResource, UsageError
from cloister.evidence.key_material import BrokerIdentity
from cloister.manifest.names import check_path
from cloister.manifest.order import Action
from cloister.manifest.signed import encode_signed, parse_signed
from cloister.sealing.uri import parse_key_uri

MAX_MANIFESTS = 16
LOOKED_AT_SECONDS = 1.0
"""How old the newest co-signed head may be for somebody who asks for it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, its parts checked for form only."""

    endpoint: Endpoint
    path: str
    names: Mapping[str, str]
    query: Mapping[str, int]
    body: bytes
    cookie: str | None
    bearer: str | None
    authorization: str

    @property
    def resource(self) -> str:
        """``repository/type/tag`` of the path. Raises :class:`FormatError`."""
        path = "/".join(self.names[name] for name in ("repository", "type", "tag"))
        parse_key_uri(f"kbs:///{path}")
        return path


class Desk:
    """Everything that one broker process serves. Its methods block; the server calls them in threads."""

    def __init__(
        self,
        custody: Custody,
        *,
        sessions: Sessions,
        tokens: TokenSigner,
        metrics: Metrics,
        collateral: Collateral | None = None,
        device_collateral: DeviceCollateral | None = None,
    ) -> None:
        self.custody = custody
        self.metrics = metrics
        self._sessions = sessions
        self._tokens = tokens
        self._collateral = collateral
        self._device_collateral = device_collateral
        self._nonces = Nonces()
        self._lock = threading.Lock()
        self._broker: Broker | None = None
        self._shown = BrokerIdentity()
        self.changed: Callable[[], None] = lambda: None
        """Called when what :meth:`shown` gives has changed."""

    def shown(self) -> BrokerIdentity:
        """What the broker's own evidence binds: the manifest in force and the root of its mesh; nothing while locked."""
        if not self.custody.opened:
            return BrokerIdentity()
        state = self.custody.state
        return BrokerIdentity(
            mesh_root_sha256=state.mesh.root_sha256, manifest_sha256=state.authority.manifest.digest
        )

    def newest_manifest(self) -> bytes | None:
        """The signed manifest in force, for whoever accepts brokers by it; None while locked."""
        if not self.custody.opened:
            return None
        return encode_signed(self.custody.state.authority.manifest.signed)

    def confirm(self) -> None:
        """Have the witnesses see what was just written, before anybody is told that it is in force.

        Raises :class:`~cloister.broker.service.Witnessless`: it was written, and nothing is released before they saw it.
        """
        try:
            self.custody.state.witnessing.require(self.custody.state.journal.size)
        except (NetworkError, UsageError) as error:
            what = f"it was written, but the witnesses have not seen it ({error.what})"
            raise Witnessless(what, todo=error.todo) from None

    def refresh(self) -> None:
        """Show new keys if a share, another replica or an owner changed what the evidence binds."""
        shown = self.shown()
        with self._lock:
            if shown == self._shown:
                return
            self._shown = shown
        self.changed()

    @property
    def broker(self) -> Broker:
        """The service over the opened state. Raises :class:`~cloister.broker.custody.Locked`."""
        state = self.custody.state
        with self._lock:
            if self._broker is None:
                self._broker = Broker(
                    state,
                    clock=self.custody.clock,
                    sessions=self._sessions,
                    tokens=self._tokens,
                    metrics=self.metrics,
                    collateral=self._collateral,
                    device_collateral=self._device_collateral,
                )
            return self._broker

    def serve(self, asked: Asked) -> bytes:
        """The JSON answer. Raises what problems.py has a name for."""
        access = asked.endpoint.access
        if self.custody.opened and asked.endpoint.name not in _WITHOUT_DATABASE:
            # Another replica may have taken a manifest that ends somebody's role.
            self.custody.state.journal.catch_up()
        if access == "session":
            session = self.broker.session(asked.cookie, asked.bearer)
            try:
                answer = desk_workloads.SERVED[asked.endpoint.name](self, asked, session)
            except CloisterError as error:
                event: Literal["certificate", "tree"] = "tree" if asked.names else "certificate"
                resource = f"kbs:///{asked.resource}" if asked.names else ""
                self.broker.refused(event, error, session.digest, resource=resource)
                raise
        elif access == "public":
            answer = _PUBLIC[asked.endpoint.name](self, asked)
        else:
            person = require_person(
                asked.authorization,
                broker=self.custody.state.id,
                method=asked.endpoint.method,
                path=asked.path,
                body=asked.body,
                manifest=self.custody.state.authority.manifest.manifest,
                roles=access,
                nonces=self._nonces,
                now=self.custody.clock(),
            )
            answer = _SIGNED[asked.endpoint.name](self, asked, person)
        # Whatever was asked: opening, another replica or an owner may have changed what the evidence binds.
        self.refresh()
        return encode_json(answer)

    def gather(self) -> bytes:
        """Prometheus' exposition of this process."""
        self.metrics.locked.set(0 if self.custody.opened else 1)
        self.metrics.sessions.set(self._sessions.open)
        if self.custody.opened:
            self.metrics.entries.set(self.custody.state.journal.size)
            self.metrics.witnesses.set(self.custody.state.witnessing.threshold)
        return self.metrics.render()

    # -- for anybody --------------------------------------------------------------------------------------------------

    def status(self, _asked: Asked | None = None) -> Status:
        """What anybody may know."""
        progress, document = self.custody.progress(), self.custody.document()
        laptop = isinstance(document.lock, PassphraseLock)
        if not progress.open:
            return Status(
                open=False,
                have=progress.have,
                need=progress.need,
                state=document.id,
                laptop=laptop,
                log_key=progress.log_key,
            )
        state = self.custody.state
        manifest = state.authority.manifest
        return Status(
            open=True,
            have=0,
            need=0,
            state=state.id,
            laptop=laptop,
            application=manifest.manifest.application,
            origin=state.authority.origin,
            manifest=manifest.digest,
            manifest_version=manifest.manifest.version,
            witnesses=state.witnessing.threshold,
            log=state.log,
            log_key=state.journal.log_key.hex(),
            size=state.journal.size,
        )

    def nonce(self, _asked: Asked) -> Nonce:
        return Nonce(nonce=self._nonces.draw(self.custody.clock()), broker=self.custody.document().id)

    def manifests(self, asked: Asked) -> Manifests:
        found = self.custody.state.authority.manifests()
        start = max(1, asked.query["from"]) - 1
        return Manifests(manifests=tuple(one.signed for one in found[start : start + MAX_MANIFESTS]))

    def submit_manifest(self, asked: Asked) -> Status:
        self.custody.submit_manifest(parse_signed(asked.body))
        self.custody.state.mesh.renew()
        self.confirm()
        return self.status()

    def submit_rule(self, asked: Asked) -> Next:
        accepted = self.custody.state.authority.submit_rule(parse_signed(asked.body))
        self.confirm()
        return self._next(accepted.rule.version + 1, accepted.digest)

    def order(self, asked: Asked) -> Record:
        request = decode_json(asked.body, OrderRequest, what="order", limit=asked.endpoint.max_body)
        done = self._administration.execute(request.order, request.content)
        self.confirm()
        return done

    def next_order(self, asked: Asked, _person: Person) -> Next:
        action, subject = asked.names["action"], asked.names["rest"]
        check_path(subject, what="the subject", parts=range(1, 4))
        if action == "rule":
            found = self.custody.state.authority.rule(subject)
            if found is None:
                return self._next(1)
            return self._next(found.rule.rule.version + 1, found.rule.digest)
        if action not in get_args(Action):
            raise FormatError(f"an order is to {', '.join(get_args(Action))}")
        return self._next(self._administration.next_version(action, subject))

    def unlock(self, asked: Asked) -> Record:
        offered = decode_json(asked.body, Unlock, what="share", limit=asked.endpoint.max_body)
        if offered.manifest_version < 1:
            raise FormatError("manifests begin with version 1")
        return self.custody.offer(parse_share(encode_json(offered.share)), floor=offered.manifest_version)

    def head(self, _asked: Asked) -> HeadAnswer:
        journal = self.custody.state.journal
        journal.catch_up()
        # Whoever looks wants a head that witnesses have seen; without them the older one says how far they have.
        self.custody.state.witnessing.refresh(LOOKED_AT_SECONDS)
        return HeadAnswer(log_key=journal.log_key.hex(), signed=journal.head, cosigned=journal.cosigned)

    def consistency(self, asked: Asked) -> Proof:
        old, new = asked.query["old"], asked.query["new"]
        journal = self.custody.state.journal
        if not 0 <= old <= new <= journal.size:
            raise FormatError("there are no such trees")
        return Proof(path=journal.consistency(old, new))

    def bundle(self, _asked: Asked) -> Bundle:
        return Bundle(bundle=self.custody.state.mesh.bundle())

    # -- for whoever signs --------------------------------------------------------------------------------------------

    def rule(self, asked: Asked, _person: Person) -> Record:
        found = self.custody.state.authority.rule(asked.resource)
        if found is None:
            raise UnknownResource("there is no rule", todo="its owners sign one")
        return found.rule.signed

    def resources(self, _asked: Asked, _person: Person) -> Listing:
        return Listing(resources=tuple(self._administration.listing()))

    def keys(self, _asked: Asked, _person: Person) -> KeyListing:
        return KeyListing(keys=tuple(self._administration.keys()))

    def share(self, _asked: Asked, person: Person) -> Share:
        return self.custody.hand_out(person.name)

    def acknowledge(self, asked: Asked, person: Person) -> Record:
        progress = self.custody.acknowledge(person.name, parse_signed(asked.body))
        self.confirm()
        return progress

    def entries(self, asked: Asked, _person: Person) -> Entries:
        journal = self.custody.state.journal
        start, count = asked.query["from"], min(asked.query["count"], MAX_ENTRIES)
        return Entries(start=start, entries=tuple(journal.entries(start, start + count)))

    def inclusion(self, asked: Asked, _person: Person) -> Proof:
        number, size = asked.query["number"], asked.query["size"]
        journal = self.custody.state.journal
        if not 0 <= number < size <= journal.size:
            raise FormatError("there is no such entry in such a tree")
        return Proof(path=journal.inclusion(number, size))

    def evidence(self, asked: Asked, _person: Person) -> EvidenceAnswer:
        digest = asked.names["digest"]
        from_hex(digest, 32, what="digest")
        body = self.custody.state.journal.evidence(digest)
        if body is None:
            raise UnknownResource("this evidence is not kept (any more)", todo="the newest ones are")
        return EvidenceAnswer(evidence=body)

    @property
    def _administration(self) -> Administration:
        return Administration(self.custody.state, self.custody.clock, self.custody.document)

    def _next(self, version: int, previous: str = "") -> Next:
        state = self.custody.state
        application = state.authority.manifest.manifest.application
        return Next(application=application, broker=state.id, version=version, previous=previous)


_WITHOUT_DATABASE = frozenset(("status", "nonce", "unlock"))
_PUBLIC: dict[str, Callable[[Desk, Asked], Record]] = {
    "status": Desk.status,
    "nonce": Desk.nonce,
    "manifests": Desk.manifests,
    "submit_manifest": Desk.submit_manifest,
    "submit_rule": Desk.submit_rule,
    "order": Desk.order,
    "unlock": Desk.unlock,
    "head": Desk.head,
    "consistency": Desk.consistency,
    "bundle": Desk.bundle,
}
_SIGNED: dict[str, Callable[[Desk, Asked, Person], Record]] = {
    "rule": Desk.rule,
    "next_order": Desk.next_order,
    "resources": Desk.resources,
    "keys": Desk.keys,
    "share": Desk.share,
    "acknowledge": Desk.acknowledge,
    "entries": Desk.entries,
    "inclusion": Desk.inclusion,
    "evidence": Desk.evidence,
}
