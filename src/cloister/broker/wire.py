"""What owners, auditors and workloads exchange with a broker beside KBS: records, nothing else
(docs/spec/broker-admin.md).
"""

from __future__ import annotations

from typing import Final

from cloister.broker.state_key import Share
from cloister.broker.tree_head import SignedHead
from cloister.encoding import Record
from cloister.manifest.signed import Signed

PREFIX: Final = "/cloister/v1"
MAX_ENTRIES: Final = 1000
"""Audit entries of one answer."""


class Done(Record, frozen=True, kw_only=True):
    """What an order did."""

    action: str
    subject: str
    version: int
    rewrapped: int = 0


class Listed(Record, frozen=True, kw_only=True):
    """One resource name: versions of what is stored and of its rule, 0 where there is none; ``destroyed`` as it says."""

    uri: str
    resource: int
    rule: int
    destroyed: bool
    owners: str
    released: int = 0


class ListedKey(Record, frozen=True, kw_only=True):
    """One version of a repository's key-encryption key."""

    store: str
    id: str
    version: int
    algorithm: str
    owner: str
    created: int
    state: str


class Progress(Record, frozen=True, kw_only=True):
    """How far opening a state has come. ``log_key`` is known when only the witnesses are missing."""

    open: bool
    have: int
    need: int
    log_key: str = ""


class TreeVersion(Record, frozen=True, kw_only=True):
    """A version of a writable sealed tree: its number, digest and tree id, the last two 32 bytes in hexadecimal."""

    tree: str
    version: int
    digest: str


class TreeAdvance(Record, frozen=True, kw_only=True):
    """The version that a workload has just written, and the recorded one that it began from: none for the first."""

    newest: TreeVersion
    after: TreeVersion | None


class Unlock(Record, frozen=True, kw_only=True):
    """An owner's share for a locked broker, and the version of the manifest that this owner knows."""

    share: Share
    manifest_version: int

    def __repr__(self) -> str:
        return "Unlock()"


class Nonce(Record, frozen=True, kw_only=True):
    """A nonce for one signed request, and the broker's state id, which is signed too."""

    nonce: str
    broker: str


class Status(Record, frozen=True, kw_only=True):
    """What anybody may know of a broker. ``laptop`` and ``witnesses`` say what it is worth."""

    open: bool
    have: int
    need: int
    state: str
    laptop: bool
    application: str = ""
    origin: str = ""
    manifest: str = ""
    manifest_version: int = 0
    witnesses: int = 0
    log: str = ""
    log_key: str = ""
    size: int = 0


class OrderRequest(Record, frozen=True, kw_only=True):
    """An order and, for ``put``, what is put."""

    order: Signed
    content: bytes = b""

    def __repr__(self) -> str:
        return "OrderRequest()"


class Next(Record, frozen=True, kw_only=True):
    """What an order or rule about a subject has to say to be the next."""

    application: str
    broker: str
    version: int
    previous: str = ""


class Listing(Record, frozen=True, kw_only=True):
    """Resources and rules."""

    resources: tuple[Listed, ...]


class KeyListing(Record, frozen=True, kw_only=True):
    """Key-encryption keys."""

    keys: tuple[ListedKey, ...]


class Manifests(Record, frozen=True, kw_only=True):
    """Every version of the manifest from the asked one on, at most 16."""

    manifests: tuple[Signed, ...]


class HeadAnswer(Record, frozen=True, kw_only=True):
    """The newest signed head, the newest that witnesses co-signed, and the log's public key, hexadecimal."""

    log_key: str
    signed: SignedHead
    cosigned: SignedHead | None


class Entries(Record, frozen=True, kw_only=True):
    """Audit entries, each the exact bytes of its leaf."""

    start: int
    entries: tuple[bytes, ...]


class Proof(Record, frozen=True, kw_only=True):
    """An RFC 6962 proof."""

    path: tuple[bytes, ...]


class EvidenceAnswer(Record, frozen=True, kw_only=True):
    """What an attestation was granted on, if it is still kept."""

    evidence: bytes


class CertificateRequest(Record, frozen=True, kw_only=True):
    """A PKCS #10 request (DER) for the mesh certificate of ``workload``."""

    workload: str
    csr: bytes


class CertificateAnswer(Record, frozen=True, kw_only=True):
    """The chain, leaf first (DER), and the mesh's trust bundle (docs/spec/mesh.md)."""

    chain: tuple[bytes, ...]
    bundle: bytes


class Bundle(Record, frozen=True, kw_only=True):
    """The mesh's trust bundle."""

    bundle: bytes


class TreeAnswer(Record, frozen=True, kw_only=True):
    """The newest recorded index, or none."""

    newest: TreeVersion | None
