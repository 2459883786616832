"""A person's way to a broker: verify it first, then ask, with requests and orders signed by a key that the manifest
names.

Everything goes through the sealed channel, so nothing is said before the broker's evidence met a policy; and before a
secret is sent the broker's manifest has to be the one that the person pinned. Answers that carry signatures are
checked here, not believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

import httpx2

from cloister import merkle
from cloister.broker import protocol
from cloister.broker.audit import Entry, damaged, parse_entry
from cloister.broker.protocol import Problem
from cloister.broker.signed_request import credential
from cloister.broker.state_key import KeptShare, Share, commitment
from cloister.broker.tree_head import ForkFound, RollbackFound, SignedHead, TreeHead, log_id, verify_head
from cloister.broker.wire import (
    MAX_ENTRIES,
    PREFIX,
    Done,
    Entries,
    EvidenceAnswer,
    HeadAnswer,
    KeyListing,
    Listing,
    Manifests,
    Next,
    Nonce,
    OrderRequest,
    Progress,
    Proof,
    Status,
    Unlock,
)
from cloister.encoding import Record, decode_json, encode_json, from_hex
from cloister.errors import (
    BrokerError,
    CloisterError,
    FormatError,
    ManifestError,
    NetworkError,
    QuorumMissing,
    ReleaseRefused,
    SessionRefused,
    Superseded,
    UnknownResource,
    UsageError,
)
from cloister.manifest.acceptance import AcceptedManifest, accept_genesis, accept_successor
from cloister.manifest.order import Action, Order
from cloister.manifest.signed import Signed, encode_signed, sign
from cloister.manifest.signers import Signer

T = TypeVar("T", bound=Record)
MAX_MANIFESTS: Final = 10_000
MAX_ANSWER: Final = 1 << 26

_REFUSALS: Final[dict[str, type[CloisterError]]] = {
    "not-allowed": ReleaseRefused,
    "session-refused": SessionRefused,
    "unknown-resource": UnknownResource,
    "superseded": Superseded,
    "quorum-missing": QuorumMissing,
    "refused-document": ManifestError,
    "not-possible": UsageError,
    "share-refused": UsageError,
    "rollback-found": RollbackFound,
    "fork-found": ForkFound,
    "locked": NetworkError,
    "unavailable": NetworkError,
    "busy": NetworkError,
    "too-many-requests": NetworkError,
}


class OwnerClient:
    """``client`` is connected to a verified broker (:func:`cloister.connect`); ``signer`` is needed for what is signed."""

    def __init__(self, client: httpx2.Client, *, signer: Signer | None = None) -> None:
        self._client = client
        self._signer = signer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    @property
    def key(self) -> str:
        """The public key that this client signs with. Raises :class:`UsageError` without one."""
        return self._pen().key

    def status(self) -> Status:
        """What the broker says it is."""
        return self._ask("GET", "/status", Status)

    def manifests(self, *, origin: str) -> list[AcceptedManifest]:
        """The whole chain of manifests, each checked. Raises :class:`ManifestError` unless it begins at ``origin``."""
        accepted: list[AcceptedManifest] = []
        while len(accepted) < MAX_MANIFESTS:
            found = self._ask("GET", f"/manifests?from={len(accepted) + 1}", Manifests).manifests
            if not found:
                break
            for signed in found:
                if accepted:
                    accepted.append(accept_successor(signed, predecessor=accepted[-1]))
                else:
                    accepted.append(accept_genesis(signed, origin=origin))
        if not accepted:
            raise ManifestError("the broker shows no manifest", todo="unlock it first")
        return accepted

    def submit_manifest(self, signed: Signed) -> Status:
        """Put the next manifest in force."""
        return self._ask("POST", "/manifests", Status, encode_signed(signed))

    def submit_rule(self, signed: Signed) -> Next:
        """Put a rule in force."""
        return self._ask("POST", "/rules", Next, encode_signed(signed))

    def next(self, action: str, subject: str) -> Next:
        """What an order or (``rule``) a rule about ``subject`` has to say."""
        return self._ask("GET", f"/next/{action}/{subject}", Next, signed=True)

    def order(self, action: Action, subject: str, content: bytes = b"", *, version: int = 0) -> Signed:
        """A fresh order, signed by this client's key; others may sign it too before :meth:`submit_order`."""
        following = self.next(action, subject)
        document = Order(
            application=following.application,
            broker=following.broker,
            action=action,
            subject=subject,
            version=version or following.version,
            content_sha256=hashlib.sha256(content).hexdigest() if action == "put" else "",
        )
        return sign("order", encode_json(document), [self._pen()])

    def submit_order(self, signed: Signed, content: bytes = b"") -> Done:
        """Have an order done."""
        body = encode_json(OrderRequest(order=signed, content=content))
        return self._ask("POST", "/orders", Done, body)

    def rule(self, path: str) -> Signed:
        """The rule in force."""
        return self._ask("GET", f"/rules/{path}", Signed, signed=True)

    def resources(self) -> Listing:
        """Every resource and rule, without contents."""
        return self._ask("GET", "/resources", Listing, signed=True)

    def keys(self) -> KeyListing:
        """Every key-encryption key, without keys."""
        return self._ask("GET", "/keys", KeyListing, signed=True)

    def share(self) -> Share:
        """This owner's share of the state key."""
        return self._ask("POST", "/share", Share, b"", signed=True)

    def keep_share(self, share: Share) -> Progress:
        """Sign that the share is kept, on disk: so this broker's state counts as one that its owners verified."""
        status = self.status()
        document = KeptShare(
            application=status.application,
            state=share.state,
            log_key=status.log_key,
            owner=share.owner,
            commitment=commitment(share),
        )
        signed = sign("share", encode_json(document), [self._pen()])
        return self._ask("POST", "/share/kept", Progress, encode_signed(signed), signed=True)

    def unlock(self, share: Share, *, manifest_version: int = 1) -> Progress:
        """Give a locked broker this owner's share; with an older manifest than that version it does not open."""
        return self._ask(
            "POST", "/unlock", Progress, encode_json(Unlock(share=share, manifest_version=manifest_version))
        )

    def head(self) -> tuple[TreeHead, HeadAnswer]:
        """The newest tree head, its signature checked."""
        answer = self._ask("GET", "/log/head", HeadAnswer)
        return verify_head(
            answer.signed, log_key=from_hex(answer.log_key, 32, what="the broker's log key")
        ), answer

    def entries(self, start: int, stop: int) -> Iterator[bytes]:
        """The exact bytes of entries ``start`` to ``stop`` (exclusive)."""
        while start < stop:
            count = min(MAX_ENTRIES, stop - start)
            found = self._ask("GET", f"/log/entries?from={start}&count={count}", Entries, signed=True)
            if found.start != start or not found.entries:
                raise damaged(f"the broker does not show its audit entries from {start} on")
            yield from found.entries
            start += len(found.entries)

    def proven(self, number: int) -> tuple[Entry, SignedHead]:
        """One entry, proven to be in the log of the head that is returned. Raises ``AuditDamaged``."""
        head, answer = self.head()
        body = next(self.entries(number, number + 1))
        path = self._ask("GET", f"/log/inclusion?number={number}&size={head.size}", Proof, signed=True).path
        try:
            merkle.verify_inclusion(body, number, head.size, path, bytes.fromhex(head.root))
        except FormatError as error:
            raise damaged(f"entry {number} is not in the broker's log ({error.what})") from None
        return parse_entry(body, number), answer.signed

    def extends(self, old: TreeHead) -> TreeHead:
        """The newest head, proven to extend ``old``. Raises ``AuditDamaged``."""
        head, answer = self.head()
        if log_id(from_hex(answer.log_key, 32, what="the broker's log key")) != old.log:
            raise damaged("the broker shows another log than before")
        if head.size < old.size:
            raise damaged(f"the log was cut: {old.size} entries before, {head.size} now")
        path = self._ask("GET", f"/log/consistency?old={old.size}&new={head.size}", Proof).path
        try:
            merkle.verify_consistency(
                old.size, head.size, bytes.fromhex(old.root), bytes.fromhex(head.root), path
            )
        except FormatError as error:
            raise damaged(f"the log was rewritten: it does not extend what it was ({error.what})") from None
        return head

    def evidence(self, digest: str) -> bytes:
        """What an attestation was granted on. Raises :class:`UnknownResource` when it is no longer kept."""
        found = self._ask("GET", f"/evidence/{digest}", EvidenceAnswer, signed=True).evidence
        if hashlib.sha256(found).hexdigest() != digest:
            raise damaged("the broker shows other evidence than its log names")
        return found

    def _pen(self) -> Signer:
        if self._signer is None:
            raise UsageError("this needs a key to sign with", todo="give --key, --es256 or --ssh")
        return self._signer

    def _ask(
        self, method: str, path: str, kind: type[T], body: bytes | None = None, *, signed: bool = False
    ) -> T:
        headers = {"content-type": "application/json"} if body is not None else {}
        target = PREFIX + path
        if signed:
            nonce = self._ask("POST", "/nonce", Nonce, b"")
            headers["authorization"] = credential(
                self._pen(),
                broker=nonce.broker,
                method=method,
                path=target,
                body=body or b"",
                nonce=nonce.nonce,
            )
        try:
            response = self._client.request(method, target, content=body, headers=headers)
        except httpx2.TransportError as error:
            raise NetworkError(
                f"the broker broke off ({type(error).__name__})",
                todo="look whether it was done, then ask again",
            ) from None
        if response.status_code != 200:
            raise _refusal(response)
        return decode_json(response.content, kind, what="the broker's answer", limit=MAX_ANSWER)


def _refusal(response: httpx2.Response) -> CloisterError:
    try:
        problem = decode_json(response.content, Problem, what="problem", limit=protocol.MAX_AUTH)
    except FormatError:
        return BrokerError(
            f"the broker answered with status {response.status_code}",
            todo="check that the address is a Cloister key broker's",
        )
    name = problem.type.removeprefix(protocol.PROBLEM_PREFIX)
    what, _, todo = problem.detail.partition("; ")
    return _REFUSALS.get(name, BrokerError)(f"{what} ({name})", todo=todo)


def require_ours(status: Status, manifests: Sequence[AcceptedManifest]) -> AcceptedManifest:
    """The manifest in force, if the broker's word and the chain agree. Raises :class:`ManifestError`."""
    newest = manifests[-1]
    if not status.open or status.manifest != newest.digest:
        raise ManifestError("the broker runs another manifest than it shows", todo="do not send it anything")
    return newest
