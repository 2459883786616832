"""Where the key of a broker's state comes from: a passphrase, or shares of its owners (docs/spec/broker-state.md).

The state key is random and never stored in the clear; the state's one document holds it wrapped under an *unlocking
key*.

* ``passphrase`` (laptop mode): Argon2id of a passphrase. Whoever runs the broker knows it, so it protects a lost
  disk, not an owner from the operator.
* ``owners``: 32 random bytes of which each owner has a share (Shamir, k of n). A share leaves an owner only for a
  broker whose evidence that owner verified, inside the channel sealed to it.

Pure but for randomness, which is an argument.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.encoding import Record, decode_json, encode_json, from_hex, labelled_hash
from cloister.errors import FormatError, KeystoreError, UsageError

FORMAT: Final = "cloister/broker-state/v2"
SHARE_FORMAT: Final = "cloister/state-share/v1"
KEPT_FORMAT: Final = "cloister/kept-share/v1"
STATE_KEY_LABEL: Final = "cloister/broker-state-key/v2"
SHARE_LABEL: Final = "cloister/state-share-commitment/v1"
KEY_SIZE: Final = 32
SALT_SIZE: Final = 16
NONCE_SIZE: Final = 12
MAX_DOCUMENT: Final = 64 * 1024
MIN_PASSPHRASE: Final = 12
MAX_PASSPHRASE: Final = 1024
MAX_SHARES: Final = 64
MAX_SHARE: Final = 4096

Entropy = Callable[[int], bytes]


class Cost(Record, frozen=True, kw_only=True):
    """What one guess at the passphrase costs (Argon2id, RFC 9106)."""

    iterations: int = 3
    lanes: int = 4
    memory_kib: int = 64 * 1024


class ShareRefused(KeystoreError):
    """A share that is not one of this state's: whoever sent it is wrong, and nothing is damaged."""


class PassphraseLock(Record, frozen=True, kw_only=True, tag_field="mode", tag="passphrase"):
    """Laptop mode: ``wrapped`` is the state key under the passphrase."""

    salt: bytes
    cost: Cost
    wrapped: bytes


class ShareLock(Record, frozen=True, kw_only=True, tag_field="mode", tag="owners"):
    """``threshold`` of the owners' shares make the unlocking key; ``commitments`` tell a share from a forged one."""

    threshold: int
    keys: dict[str, str]
    """Owner's name -> public key, as the manifest had them."""
    commitments: dict[str, str]
    """Owner's name -> labelled hash of the share, hexadecimal."""
    wrapped: bytes


class KeptShare(Record, frozen=True, kw_only=True):
    """What an owner signs once its share is kept: that a broker which it verified made this state, with this log.

    Without enough of these a state is not opened again: its key might be one that somebody outside a TEE made.
    """

    format: Literal["cloister/kept-share/v1"] = KEPT_FORMAT
    application: str
    state: str
    log_key: str
    owner: str
    commitment: str


class StateDocument(Record, frozen=True, kw_only=True):
    """The one row of the ``state`` table."""

    format: Literal["cloister/broker-state/v2"] = FORMAT
    id: str
    created: int
    lock: PassphraseLock | ShareLock
    next: ShareLock | None = None
    """Shares of new owners, until enough of them have theirs; either lock opens it."""

    @property
    def share_locks(self) -> tuple[ShareLock, ...]:
        """Every lock that shares open."""
        return tuple(lock for lock in (self.lock, self.next) if isinstance(lock, ShareLock))

    def opened_by(self, lock: ShareLock) -> StateDocument:
        """The same state, opened by this lock alone."""
        return StateDocument(id=self.id, created=self.created, lock=lock)


class Share(Record, frozen=True, kw_only=True):
    """One owner's share: a secret, kept in a file that only the owner can read."""

    format: Literal["cloister/state-share/v1"] = SHARE_FORMAT
    state: str
    owner: str
    index: int
    share: bytes

    def __repr__(self) -> str:
        return f"Share(state={self.state!r}, owner={self.owner!r})"


@dataclass(frozen=True, slots=True)
class StateKey:
    """The key of an opened state. Everything else is derived from it or wrapped under it."""

    _key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self._key) != KEY_SIZE:
            raise KeystoreError(f"a state key is {KEY_SIZE} bytes long, not {len(self._key)}")

    def derive(self, label: str) -> bytes:
        """32 bytes for one purpose, named by a versioned label (HKDF-SHA256)."""
        return HKDF(SHA256(), KEY_SIZE, salt=None, info=label.encode("ascii")).derive(self._key)

    def cipher(self, label: str) -> AESGCM:
        """AES-256-GCM under the key of one purpose."""
        return AESGCM(self.derive(label))

    def log_key(self) -> Ed25519PrivateKey:
        """What signs tree heads."""
        return Ed25519PrivateKey.from_private_bytes(self.derive("cloister/broker-log-key/v1"))

    def for_peer(self) -> bytes:
        """The key itself, for a broker that was attested under the same manifest, and for nobody else."""
        return self._key


def lock_by_passphrase(
    passphrase: bytes, *, state: str, now: int, cost: Cost | None = None, entropy: Entropy = os.urandom
) -> tuple[StateDocument, StateKey]:
    """A fresh state key and its document."""
    cost, key, salt = cost or Cost(), entropy(KEY_SIZE), entropy(SALT_SIZE)
    cipher = AESGCM(_passphrase_key(passphrase, salt, cost))
    wrapped = seal(cipher, key, _associated(state, salt, encode_json(cost)), entropy)
    lock = PassphraseLock(salt=salt, cost=cost, wrapped=wrapped)
    return StateDocument(id=state, created=now, lock=lock), StateKey(key)


def open_by_passphrase(document: StateDocument, passphrase: bytes) -> StateKey:
    """The state key. Raises :class:`KeystoreError` on a wrong passphrase or an altered document."""
    lock = document.lock
    if not isinstance(lock, PassphraseLock):
        raise UsageError(
            "this state is opened by its owners' shares, not by a passphrase",
            todo="start it with --manifest and let the owners run `cloister owner unlock`",
        )
    cost = lock.cost
    bounds = ((cost.iterations, 1, 16), (cost.lanes, 1, 16), (cost.memory_kib, 8 * 1024, 1024 * 1024))
    if any(not low <= value <= high for value, low, high in bounds) or len(lock.salt) != SALT_SIZE:
        raise KeystoreError(
            "the state's passphrase parameters are out of their bounds",
            todo="this is not a state that `cloister broker` wrote; restore a backup",
        )
    cipher = AESGCM(_passphrase_key(passphrase, lock.salt, cost))
    try:
        return StateKey(unseal(cipher, lock.wrapped, _associated(document.id, lock.salt, encode_json(cost))))
    except KeystoreError:
        raise KeystoreError(
            "the passphrase does not open this state",
            todo="give the passphrase file that was used when the state was made",
        ) from None


def lock_by_owners(
    owners: Mapping[str, str],
    threshold: int,
    *,
    state: str,
    key: StateKey,
    entropy: Entropy = os.urandom,
) -> tuple[ShareLock, Mapping[str, Share]]:
    """``key`` under a fresh unlocking key, and each owner's share of that. ``owners``: name -> public key's text."""
    if not 1 <= threshold <= len(owners) <= MAX_SHARES:
        raise UsageError(f"shares are {threshold} of {len(owners)}: that cannot be")
    unlocking = entropy(KEY_SIZE)
    shares = {
        owner: Share(state=state, owner=owner, index=index, share=value)
        for owner, (index, value) in zip(
            sorted(owners), split(unlocking, threshold, len(owners)), strict=True
        )
    }
    commitments = {owner: commitment(share) for owner, share in shares.items()}
    lock = ShareLock(threshold=threshold, keys=dict(owners), commitments=commitments, wrapped=b"")
    wrapped = seal(AESGCM(unlocking), key.for_peer(), _bound(state, lock), entropy)
    return ShareLock(threshold=threshold, keys=dict(owners), commitments=commitments, wrapped=wrapped), shares


def open_by_shares(document: StateDocument, shares: Iterable[Share]) -> StateKey:
    """The state key, if enough genuine shares of one lock are here. Raises :class:`KeystoreError`."""
    given = list(shares)
    missing = []
    for lock in document.share_locks:
        genuine = {share.index: share for share in given if _is_of(document, lock, share)}
        if len(genuine) < lock.threshold:
            missing.append(f"{len(genuine)} of {lock.threshold}")
            continue
        chosen = [(index, share.share) for index, share in sorted(genuine.items())][: lock.threshold]
        return StateKey(unseal(AESGCM(combine(chosen)), lock.wrapped, _bound(document.id, lock)))
    if not missing:
        raise UsageError("this state is opened by a passphrase, not by shares")
    raise KeystoreError(
        f"{' or '.join(missing)} shares are here", todo="wait until as many owners have unlocked this broker"
    )


def check_share(document: StateDocument, share: Share) -> None:
    """Raise :class:`ShareRefused` unless this share was made for this state and this owner."""
    if not any(_is_of(document, lock, share) for lock in document.share_locks):
        raise ShareRefused(
            "this share is not one of this state's",
            todo="give the newest share file that `cloister owner share` wrote for this broker",
        )


def _is_of(document: StateDocument, lock: ShareLock, share: Share) -> bool:
    expected = lock.commitments.get(share.owner, "")
    return share.state == document.id and hmac.compare_digest(expected, commitment(share))


def commitment(share: Share) -> str:
    """What the document says of a share: nothing about its 32 random bytes. Hexadecimal."""
    parts = (share.state.encode(), share.owner.encode(), share.index.to_bytes(8, "big"), share.share)
    return labelled_hash(SHARE_LABEL, *parts).hex()


def split(secret: bytes, threshold: int, count: int) -> list[tuple[int, bytes]]:
    """Shamir's shares of 32 bytes: index and 32 bytes each. One share alone is the secret where one is enough."""
    from Crypto.Protocol.SecretSharing import Shamir  # noqa: PLC0415 -- only states of owners need it

    if threshold == 1:  # a polynomial of degree zero: the library refuses it
        return [(index, secret) for index in range(1, count + 1)]
    halves = [Shamir.split(threshold, count, secret[start : start + 16], False) for start in (0, 16)]
    return [(index, low + high) for (index, low), (_, high) in zip(*halves, strict=True)]


def combine(shares: list[tuple[int, bytes]]) -> bytes:
    """Undo :func:`split`. Wrong shares give wrong bytes, which then open nothing."""
    from Crypto.Protocol.SecretSharing import Shamir  # noqa: PLC0415

    if len(shares) == 1:
        return shares[0][1]
    halves = [[(index, share[start : start + 16]) for index, share in shares] for start in (0, 16)]
    return b"".join(Shamir.combine(half, False) for half in halves)


def parse_share(data: bytes) -> Share:
    """A share in its one form. Raises :class:`FormatError`, which shows nothing of it."""
    try:
        share = decode_json(data, Share, what="share", limit=MAX_SHARE)
    except FormatError:
        raise FormatError("this is no share of a broker's state key") from None
    if not 1 <= share.index <= MAX_SHARES or len(share.share) != KEY_SIZE or not share.owner.isascii():
        raise FormatError("this is no share of a broker's state key")
    return share


def parse_document(data: bytes) -> StateDocument:
    """The state's document, strictly. Raises :class:`KeystoreError`."""
    try:
        document = decode_json(data, StateDocument, what="the broker's state document", limit=MAX_DOCUMENT)
        for lock in document.share_locks:
            _check_lock(lock)
    except FormatError as error:
        raise KeystoreError(
            error.what, todo="this is not a state of this release; restore a backup"
        ) from None
    return document


def _check_lock(lock: ShareLock) -> None:
    if set(lock.keys) != set(lock.commitments) or not 1 <= lock.threshold <= len(lock.keys) <= MAX_SHARES:
        raise FormatError("the state document's shares are of owners that cannot be")
    for digest in lock.commitments.values():
        from_hex(digest, 32, what="commitment")


def encode_document(document: StateDocument) -> bytes:
    """The bytes of the state table's row."""
    return encode_json(document)


def seal(cipher: AESGCM, plaintext: bytes, aad: bytes, entropy: Entropy) -> bytes:
    """nonce (12) ‖ ciphertext ‖ tag (16), under a fresh random nonce."""
    nonce = entropy(NONCE_SIZE)
    return nonce + cipher.encrypt(nonce, plaintext, aad)


def unseal(cipher: AESGCM, sealed: bytes, aad: bytes) -> bytes:
    """Undo :func:`seal`. Raises :class:`KeystoreError` unless the bytes were sealed for this ``aad``."""
    if len(sealed) < NONCE_SIZE + 16:
        raise KeystoreError("a sealed record is cut short", todo="restore a backup")
    try:
        return cipher.decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], aad)
    except InvalidTag:
        raise KeystoreError(
            "a sealed record does not authenticate: altered, or moved from another place",
            todo="restore a backup, or put it again",
        ) from None


def _passphrase_key(passphrase: bytes, salt: bytes, cost: Cost) -> bytes:
    if not MIN_PASSPHRASE <= len(passphrase) <= MAX_PASSPHRASE:
        raise UsageError(
            f"a passphrase is {MIN_PASSPHRASE} to {MAX_PASSPHRASE} bytes long",
            todo="for example: openssl rand -base64 24",
        )
    return Argon2id(
        salt=salt,
        length=KEY_SIZE,
        iterations=cost.iterations,
        lanes=cost.lanes,
        memory_cost=cost.memory_kib,
    ).derive(passphrase)


def _bound(state: str, lock: ShareLock) -> bytes:
    return _associated(
        state, lock.threshold.to_bytes(8, "big"), encode_json(lock.keys), encode_json(lock.commitments)
    )


def _associated(state: str, *parts: bytes) -> bytes:
    return labelled_hash(STATE_KEY_LABEL, FORMAT.encode(), state.encode(), *parts)
