"""Vault or OpenBao: one transit key for each version, and a record of the versions in a KV version 2 engine.

Transit has versions of its own, but it trims them only from the oldest on, so the newest could never be destroyed, nor a
middle one; and it keeps no owner and no trace of what was deleted. The record is written by check-and-set. Associated data
binds key, version and record. Refuses redirects (the token would follow them) and keys that may be exported.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from cloister.broker.keystores import foreign
from cloister.broker.keystores.versioned import ForeignVersion, VersionedKeystore, numbered
from cloister.encoding import Record, convert
from cloister.errors import FormatError, KeystoreError, UsageError

STORE: Final = "Vault"
FORMAT: Final = "cloister/vault-key/v1"
TYPE: Final = "aes256-gcm96"
PREFIX: Final = "vault:v1:"
"""Before what transit encrypts with version 1 of its key; ours have no other."""
ROUNDS: Final = 4
"""How often a record is written anew after another broker wrote it meanwhile."""


class VaultVersion(Record, frozen=True, kw_only=True):
    number: int
    created: int
    destroyed: bool


class VaultKey(Record, frozen=True, kw_only=True):
    """The record of a key in the KV engine."""

    format: Literal["cloister/vault-key/v1"] = FORMAT
    owner: str
    versions: tuple[VaultVersion, ...]


class VaultKeystore(VersionedKeystore):
    """A :class:`~cloister.broker.keystores.Keystore` in transit; ``transit`` and ``records`` are mount points."""

    algorithm: ClassVar[str] = "AES-256-GCM"
    label: ClassVar[str] = "cloister/vault-keystore/v1"

    def __init__(
        self,
        address: str,
        token: bytes,
        *,
        ca_file: Path | None = None,
        namespace: str = "",
        transit: str = "transit",
        records: str = "secret",
    ) -> None:
        super().__init__()
        hvac = foreign.imported("hvac", "vault")
        self._requests = foreign.imported("requests", "vault")
        self._errors = hvac.exceptions
        self._client = hvac.Client(
            url=foreign.check_address(address),
            token=_token(token),
            namespace=namespace or None,
            session=foreign.bounded_session(ca_file, only=address),
            verify=str(ca_file) if ca_file else True,
            timeout=foreign.READ_SECONDS,
            allow_redirects=False,
        )
        self._transit = transit
        self._records = records

    def _read(self, key: str) -> tuple[ForeignVersion, ...]:
        return self._record(key)[0]

    def _make(self, key: str, number: int, owner: str, now: int) -> ForeignVersion:
        self._ask(
            "make a key",
            lambda: self._client.secrets.transit.create_key(
                name=_name(key, number),
                key_type=TYPE,
                derived=False,
                exportable=False,
                allow_plaintext_backup=False,
                mount_point=self._transit,
            ),
        )
        # Making what exists changes nothing, so that what is there has to be what we meant.
        made = self._transit_key(key, number)
        if made is None or made.get("type") != TYPE or made.get("exportable") or made.get("derived"):
            raise KeystoreError(
                f"{STORE} has another kind of key in the place of {key} version {number}",
                todo="remove it there; only keys that cannot be exported are used",
            )
        if made.get("allow_plaintext_backup") is not False:
            raise KeystoreError(f"{STORE} would give out {key} version {number} as a backup")

        def add(found: tuple[ForeignVersion, ...]) -> tuple[ForeignVersion, ...]:
            if len(found) >= number:
                return found
            return (*found, ForeignVersion(number, now, owner, destroyed=False, handle=_name(key, number)))

        return self._rewrite(key, add)[number - 1]

    def _shred(self, key: str, version: ForeignVersion) -> None:
        def mark(found: tuple[ForeignVersion, ...]) -> tuple[ForeignVersion, ...]:
            return tuple(
                ForeignVersion(one.number, one.created, one.owner, destroyed=True, handle=one.handle)
                if one.number == version.number
                else one
                for one in found
            )

        self._rewrite(key, mark)
        if self._transit_key(key, version.number) is None:
            return
        transit = self._client.secrets.transit
        self._ask(
            "destroy a key",
            lambda: transit.update_key_configuration(
                name=version.handle, deletion_allowed=True, mount_point=self._transit
            ),
        )
        self._ask("destroy a key", lambda: transit.delete_key(name=version.handle, mount_point=self._transit))

    def _encrypt(self, key: str, version: ForeignVersion, plaintext: bytes, aad: bytes) -> bytes:
        answer = self._operate(
            "encrypt", "wrap", version, plaintext=_text(plaintext), bound=self._bound(key, version, aad)
        )
        prefix, _, ciphertext = _member(answer, "ciphertext", str).rpartition(":")
        # Bytes and not the text: base64 may be spelt in several ways that all decode to them.
        if f"{prefix}:" != PREFIX:
            raise foreign.garbage(STORE)
        return _bytes(ciphertext)

    def _decrypt(self, key: str, version: ForeignVersion, body: bytes, aad: bytes) -> bytes:
        answer = self._operate(
            "decrypt",
            "unwrap",
            version,
            ciphertext=PREFIX + _text(body),
            bound=self._bound(key, version, aad),
        )
        return _bytes(_member(answer, "plaintext", str))

    def _operate(self, path: str, doing: str, version: ForeignVersion, *, bound: bytes, **fields: str) -> Any:
        return _member(
            self._ask(
                doing,
                lambda: self._client.write_data(
                    f"{self._transit}/{path}/{version.handle}",
                    data={**fields, "associated_data": _text(bound)},
                ),
            ),
            "data",
            dict,
        )

    def _transit_key(self, key: str, number: int) -> Any:
        """What transit says of the key of a version; None where there is none."""
        found = self._ask(
            "read a key",
            lambda: self._client.secrets.transit.read_key(name=_name(key, number), mount_point=self._transit),
            missing=True,
        )
        return None if found is None else _member(found, "data", dict)

    def _record(self, key: str) -> tuple[tuple[ForeignVersion, ...], int]:
        """The versions and the number of the record that they are in."""
        answer = self._ask(
            "read a record",
            lambda: self._client.secrets.kv.v2.read_secret_version(
                path=f"cloister/{key}", mount_point=self._records, raise_on_deleted_version=True
            ),
            missing=True,
        )
        if answer is None:
            return (), 0
        data = _member(answer, "data", dict)
        try:
            record = convert(_member(data, "data", dict), VaultKey, what="the record")
        except FormatError:
            raise KeystoreError(f"{STORE} has a malformed record of the key {key}") from None
        versions = [
            ForeignVersion(one.number, one.created, record.owner, one.destroyed, _name(key, one.number))
            for one in record.versions
        ]
        return numbered(versions, STORE), _member(_member(data, "metadata", dict), "version", int)

    def _rewrite(
        self, key: str, edit: Callable[[tuple[ForeignVersion, ...]], tuple[ForeignVersion, ...]]
    ) -> tuple[ForeignVersion, ...]:
        for _ in range(ROUNDS):
            found, number = self._record(key)
            edited = edit(found)
            if edited == found or self._write(key, edited, number):
                return edited
        raise KeystoreError(
            f"the record of the key {key} cannot be written", todo="see its history in the KV engine"
        )

    def _write(self, key: str, versions: tuple[ForeignVersion, ...], number: int) -> bool:
        """False when another broker, or an attempt of ours whose answer was lost, wrote meanwhile."""
        body = {
            "format": FORMAT,
            "owner": versions[0].owner,
            "versions": [
                {"number": one.number, "created": one.created, "destroyed": one.destroyed} for one in versions
            ],
        }
        # By status 400 alone: what it says is not part of Vault's interface. The reading that follows tells.
        answer = self._ask(
            "write a record",
            lambda: self._client.secrets.kv.v2.create_or_update_secret(
                path=f"cloister/{key}", secret=body, cas=number, mount_point=self._records
            ),
            invalid=True,
        )
        return answer is not None

    def _ask(
        self, doing: str, call: Callable[[], Any], *, missing: bool = False, invalid: bool = False
    ) -> Any:
        """What Vault answers; None for 404 (``missing``) or 400 (``invalid``) where these mean something."""

        def once() -> Any:
            try:
                answer = call()
            except self._errors.InvalidPath:
                status = 404
            except self._errors.VaultError as error:
                status = _status(self._errors, error)
            except self._requests.exceptions.RequestException:
                raise foreign.unavailable(STORE, "no whole answer came") from None
            else:
                if isinstance(answer, dict):
                    return answer
                status = getattr(answer, "status_code", 200)
            if status == 204:
                return {}
            if (missing and status == 404) or (invalid and status == 400):
                return None
            if 200 <= status < 300:
                raise foreign.garbage(STORE)
            raise foreign.refusal(STORE, status, doing)

        return foreign.retried(once)


def _status(errors: Any, error: Exception) -> int:
    statuses = (
        (errors.InvalidRequest, 400),
        (errors.Unauthorized, 401),
        (errors.Forbidden, 403),
        (errors.RateLimitExceeded, 429),
        (errors.InternalServerError, 500),
        (errors.VaultNotInitialized, 501),
        (errors.BadGateway, 502),
        (errors.VaultDown, 503),
    )
    return next((status for kind, status in statuses if isinstance(error, kind)), 500)


def _token(token: bytes) -> str:
    try:
        text = token.decode("ascii").removesuffix("\n")
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable() or " " in text:
        raise UsageError("this is no token of Vault", todo="its file holds the token and nothing else")
    return text


def _name(key: str, number: int) -> str:
    return f"cloister.{key}.v{number}"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise foreign.garbage(STORE) from None


def _member(answer: Any, name: str, kind: type) -> Any:
    found = answer.get(name) if isinstance(answer, dict) else None
    if type(found) is not kind:
        raise foreign.garbage(STORE)
    return found
