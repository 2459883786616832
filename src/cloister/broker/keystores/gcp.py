"""Google Cloud KMS: one CryptoKey for each key, its own versions for ours, over its REST interface.

Cloud KMS numbers versions 1, 2, 3 …, ends each by itself and lists it for ever after: nothing has to be recorded beside it
but owner and times (labels). Additional authenticated data binds key, version and record; CRC-32C is sent and demanded for
every field that Cloud KMS gives it for. ``google-auth`` makes the tokens; the gRPC library is not needed.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import re
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import quote

from cloister.broker.keystores import foreign
from cloister.broker.keystores.crc32c import crc32c
from cloister.broker.keystores.versioned import ForeignVersion, VersionedKeystore, destroyed, numbered
from cloister.broker.keystores.versions import check_id
from cloister.encoding import parse_json
from cloister.errors import FormatError, KeystoreError, KeystoreUnavailable, UsageError

STORE: Final = "Google Cloud KMS"
ADDRESS: Final = "https://cloudkms.googleapis.com"
SCOPE: Final = "https://www.googleapis.com/auth/cloudkms"
PAGE: Final = 1000
MAX_PAGES: Final = 4
MAX_LABELS: Final = 64
DESTROY_AFTER: Final = "86400s"
"""The shortest that Cloud KMS allows between the order to destroy a version and its end."""
_RING: Final = re.compile(
    r"projects/[a-z0-9:.-]{1,63}/locations/[a-z0-9-]{1,63}/keyRings/[A-Za-z0-9_-]{1,63}"
)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,50}")
_GONE: Final = frozenset({"DESTROY_SCHEDULED", "DESTROYED"})


class GcpKeystore(VersionedKeystore):
    """A :class:`~cloister.broker.keystores.Keystore` in one key ring (``projects/…/locations/…/keyRings/…``)."""

    algorithm: ClassVar[str] = "AES-256-GCM"
    label: ClassVar[str] = "cloister/gcp-keystore/v1"

    def __init__(
        self,
        ring: str,
        service_account: bytes,
        *,
        hardware: bool = False,
        address: str = ADDRESS,
        ca_file: Path | None = None,
    ) -> None:
        super().__init__()
        if not _RING.fullmatch(ring):
            raise UsageError(
                f"{ascii(ring)[:200]} is no key ring", todo="write projects/…/locations/…/keyRings/…"
            )
        self._failed = (
            foreign.imported("requests", "gcp").exceptions.RequestException,
            foreign.imported("google.auth.exceptions", "gcp").TransportError,
        )
        self._refused = foreign.imported("google.auth.exceptions", "gcp").GoogleAuthError
        self._session = _session(service_account, address, ca_file)
        self._base = f"{foreign.check_address(address)}/v1/"
        self._ring = ring
        self._protection = "HSM" if hardware else "SOFTWARE"

    def _read(self, key: str) -> tuple[ForeignVersion, ...]:
        found = self._ask("GET", self._name(key), "read a key", missing=True)
        if found is None:
            return ()
        labels = _labels(found)
        owner = _owner(labels)
        if found.get("purpose") != "ENCRYPT_DECRYPT" or labels.get("cloister") != _fingerprint(key):
            raise KeystoreError(f"{self._name(key)} in {STORE} is not of this broker's making")
        versions: list[ForeignVersion] = []
        page = ""
        for _ in range(MAX_PAGES):
            answer = self._ask(
                "GET",
                f"{self._name(key)}/cryptoKeyVersions?pageSize={PAGE}{page}",
                "read a key's versions",
            )
            for one in _member(answer, "cryptoKeyVersions", list, []):
                number = self._number(key, _member(one, "name", str))
                created = labels.get(f"created-{number}", "")
                versions.append(
                    ForeignVersion(
                        number,
                        int(created) if created.isdecimal() else _seconds(_member(one, "createTime", str)),
                        owner,
                        _member(one, "state", str) in _GONE,
                        f"{self._name(key)}/cryptoKeyVersions/{number}",
                    )
                )
            token = _member(answer, "nextPageToken", str, "")
            if not token:
                return numbered(versions, STORE)
            page = f"&pageToken={quote(token, safe='')}"
        raise KeystoreError(f"the key {key} has too many versions", todo="use another repository")

    def _make(self, key: str, number: int, owner: str, now: int) -> ForeignVersion:
        if number == 1:
            # Its version 1 comes with the key; 409 says that somebody was quicker, or an answer of ours was lost.
            self._ask(
                "POST",
                f"{self._ring}/cryptoKeys?cryptoKeyId={self._name(key).rpartition('/')[2]}",
                "make a key",
                body={
                    "purpose": "ENCRYPT_DECRYPT",
                    "versionTemplate": {
                        "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION",
                        "protectionLevel": self._protection,
                    },
                    "destroyScheduledDuration": DESTROY_AFTER,
                    "labels": {
                        "cloister": _fingerprint(key),
                        **_owner_labels(owner),
                        "created-1": str(now),
                    },
                },
                exists=True,
            )
            return self._version(key, 1)
        # Not asked twice: each asking makes a version.
        made = self._ask("POST", f"{self._name(key)}/cryptoKeyVersions", "rotate a key", body={}, retry=False)
        number = self._number(key, _member(made, "name", str))
        self._date(key, number, now)
        return self._version(key, number)

    def _date(self, key: str, number: int, now: int) -> None:
        labels = _labels(self._ask("GET", self._name(key), "read a key"))
        if len(labels) < MAX_LABELS:
            body = {"labels": {**labels, f"created-{number}": str(now)}}
            self._ask("PATCH", f"{self._name(key)}?updateMask=labels", "label a key", body=body)

    def _shred(self, key: str, version: ForeignVersion) -> None:
        if not version.destroyed:
            self._ask("POST", f"{version.handle}:destroy", "destroy a key", body={})

    def _encrypt(self, key: str, version: ForeignVersion, plaintext: bytes, aad: bytes) -> bytes:
        bound = self._bound(key, version, aad)
        answer = self._ask(
            "POST",
            f"{version.handle}:encrypt",
            "wrap",
            body={
                "plaintext": _text(plaintext),
                "plaintextCrc32c": str(crc32c(plaintext)),
                "additionalAuthenticatedData": _text(bound),
                "additionalAuthenticatedDataCrc32c": str(crc32c(bound)),
            },
        )
        verified = ("verifiedPlaintextCrc32c", "verifiedAdditionalAuthenticatedDataCrc32c")
        if answer.get("name") != version.handle or not all(answer.get(one) is True for one in verified):
            raise foreign.garbage(STORE)
        return _checked(answer, "ciphertext", "ciphertextCrc32c")

    def _unwrapping(self, key: str, number: int) -> ForeignVersion:
        # Cloud KMS itself refuses what is destroyed, and allows far fewer readings than decryptions.
        check_id(key)
        return ForeignVersion(
            number, 0, "", destroyed=False, handle=f"{self._name(key)}/cryptoKeyVersions/{number}"
        )

    def _decrypt(self, key: str, version: ForeignVersion, body: bytes, aad: bytes) -> bytes:
        bound = self._bound(key, version, aad)
        try:
            answer = self._ask(
                "POST",
                f"{self._name(key)}:decrypt",
                "unwrap",
                body={
                    "ciphertext": _text(body),
                    "ciphertextCrc32c": str(crc32c(body)),
                    "additionalAuthenticatedData": _text(bound),
                    "additionalAuthenticatedDataCrc32c": str(crc32c(bound)),
                },
            )
        except KeystoreUnavailable:
            raise
        except KeystoreError as refused:
            if self._version(key, version.number).destroyed:
                raise destroyed(key, version.number) from None
            raise refused from None
        return _checked(answer, "plaintext", "plaintextCrc32c")

    def _name(self, key: str) -> str:
        # Cloud KMS takes no point, and 63 characters; other ids are named by their digest.
        if _PLAIN.fullmatch(key):
            return f"{self._ring}/cryptoKeys/cloister-{key}"
        return f"{self._ring}/cryptoKeys/cloister_{_fingerprint(key)}"

    def _number(self, key: str, name: str) -> int:
        match = re.fullmatch(r"([1-9][0-9]{0,8})", name.removeprefix(f"{self._name(key)}/cryptoKeyVersions/"))
        if match is None:
            raise foreign.garbage(STORE)
        return int(match[1])

    def _ask(
        self,
        method: str,
        path: str,
        doing: str,
        *,
        body: Any = None,
        missing: bool = False,
        exists: bool = False,
        retry: bool = True,
    ) -> Any:
        """What Cloud KMS answers; None for 404 (``missing``) or 409 (``exists``) where these mean something."""

        def once() -> Any:
            try:
                answer = self._session.request(
                    method,
                    self._base + path,
                    data=None if body is None else json.dumps(body),
                    headers={"Content-Type": "application/json"},
                    timeout=foreign.READ_SECONDS,
                    max_allowed_time=foreign.ANSWER_SECONDS,
                    allow_redirects=False,
                )
            except self._failed:
                raise foreign.unavailable(STORE, "no whole answer came") from None
            except self._refused:
                raise foreign.refusal(STORE, 401, doing) from None
            except (
                AttributeError,
                KeyError,
                TypeError,
                ValueError,
            ):  # what the library makes of a garbage token
                raise foreign.garbage(STORE) from None
            if (missing and answer.status_code == 404) or (exists and answer.status_code == 409):
                return None
            if answer.status_code != 200:
                raise foreign.refusal(STORE, answer.status_code, doing)
            try:
                found = parse_json(answer.content, what="the answer", limit=foreign.MAX_ANSWER)
            except FormatError:
                found = None
            if not isinstance(found, dict):
                raise foreign.garbage(STORE)
            return found

        return foreign.retried(once) if retry else once()


def _session(service_account: bytes, address: str, ca_file: Path | None) -> Any:
    accounts = foreign.imported("google.oauth2.service_account", "gcp")
    requests = foreign.imported("google.auth.transport.requests", "gcp")
    try:
        info = parse_json(service_account, what="the service account", limit=1 << 16)
        credentials = accounts.Credentials.from_service_account_info(info, scopes=[SCOPE])
        foreign.check_address(info["token_uri"])
    except Exception:  # whatever is wrong with it, what its reader says may quote a private key
        raise UsageError(
            "this is no key file of a Google service account",
            todo="make one with `gcloud iam service-accounts keys create`",
        ) from None
    session = requests.AuthorizedSession(
        credentials,
        max_refresh_attempts=1,
        auth_request=requests.Request(foreign.bounded_session(ca_file)),
    )
    bounded = foreign.bounded_session(ca_file, only=address)
    session.trust_env, session.verify, session.adapters = False, bounded.verify, bounded.adapters
    return session


def _checked(answer: Any, name: str, checksum: str) -> bytes:
    try:
        content = base64.b64decode(_member(answer, name, str), validate=True)
    except (binascii.Error, ValueError):
        raise foreign.garbage(STORE) from None
    # A 64-bit integer is a string in Google's JSON.
    if str(answer.get(checksum)) != str(crc32c(content)):
        raise KeystoreError(f"an answer of {STORE} was altered on its way", todo="try again")
    return content


def _owner_labels(owner: str) -> dict[str, str]:
    """An owner's name in letters that labels take (base32), in two parts because a label holds 63."""
    text = base64.b32encode(owner.encode()).decode().rstrip("=").lower()
    return {"owner-0": text[:60], "owner-1": text[60:]}


def _owner(labels: dict[str, str]) -> str:
    text = (labels.get("owner-0", "") + labels.get("owner-1", "")).upper()
    try:
        owner = base64.b32decode(text + "=" * (-len(text) % 8)).decode("ascii")
    except (binascii.Error, ValueError):
        owner = ""
    if not owner:
        raise KeystoreError(f"a key in {STORE} has lost the labels that name its owner", todo="restore them")
    return owner


def _labels(answer: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in _member(answer, "labels", dict, {}).items()}


def _fingerprint(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:48]


def _seconds(text: str) -> int:
    try:
        return int(datetime.datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        raise foreign.garbage(STORE) from None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _member(answer: Any, name: str, kind: type, default: Any = None) -> Any:
    found = answer.get(name, default) if isinstance(answer, dict) else None
    if type(found) is not kind:
        raise foreign.garbage(STORE)
    return found
