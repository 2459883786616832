"""Azure Key Vault: one RSA key for each version, and a record whose every entry is a version of one more key.

Key Vault ends no single version of a key and has no conditional write, so the record is only ever added to: an entry is a
version of an elliptic-curve key that is disabled from the start and carries tags. RSA-OAEP takes no associated data: what is
wrapped is a digest of key, version and record, then the secret. Whoever holds the public key could wrap too: who wrapped
is told by the layer inside, the broker's state key (docs/spec/keystores.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from cloister.broker.keystores import AAD_SIZE, foreign
from cloister.broker.keystores.versioned import ForeignVersion, VersionedKeystore, numbered
from cloister.errors import KeystoreError, UsageError

T = TypeVar("T")

STORE: Final = "Azure Key Vault"
SIZE: Final = 3072
"""Bits: room for 318 bytes in RSA-OAEP-256, of which at most 160 are used."""
VERSION_SIZE: Final = 16
"""Bytes of Key Vault's own name for a version, before what it wrapped."""
MAX_ENTRIES: Final = 4000
SETTLE_SECONDS: Final = 1.5
"""Key Vault dates entries by the second: after this much, no earlier one can appear any more."""
PURGE_SECONDS: Final = 30
MAX_CLIENTS: Final = 256
_PLAIN: Final = re.compile(r"[a-z0-9]+")
_HANDLE: Final = re.compile(r"[0-9a-f]{32}")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,11}|0")


@dataclass(frozen=True, slots=True)
class AzureCredentials:
    """An application of Microsoft Entra and its client secret."""

    tenant: str
    client: str
    secret: str = field(repr=False)
    authority: str = "https://login.microsoftonline.com"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a key's record: a version was made, or destroyed. Ordered by Key Vault's clock, then its name."""

    order: tuple[float, str]
    tags: dict[str, str]

    @property
    def number(self) -> int:
        return int(self.tags["version"])


class _Absent(Exception):
    pass


class AzureKeystore(VersionedKeystore):
    """A :class:`~cloister.broker.keystores.Keystore` in one vault. ``purge``: without it, Key Vault keeps what was
    destroyed for its retention period, and whoever may recover keys there can bring it back.
    """

    algorithm: ClassVar[str] = "RSA-3072-OAEP-256"
    label: ClassVar[str] = "cloister/azure-keystore/v1"

    def __init__(
        self,
        keys: Any,
        *,
        hardware: bool,
        purge: bool,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._errors = foreign.imported("azure.core.exceptions", "azure")
        algorithms = foreign.imported("azure.keyvault.keys.crypto", "azure").KeyWrapAlgorithm
        self._wrapping = algorithms.rsa_oaep_256
        self._keys = keys
        self._hardware = hardware
        self._purge = purge
        self._sleep = sleep
        self._clock = clock
        self._clients: dict[tuple[str, str], Any] = {}

    def _read(self, key: str) -> tuple[ForeignVersion, ...]:
        entries = self._entries(key)
        gone = {one.number for one in entries if one.tags["event"] == "destroyed"}
        made: dict[int, _Entry] = {}
        for one in entries:
            if one.tags["event"] == "made":
                made.setdefault(one.number, one)
        if not made:
            return ()
        # One owner: that of the earliest entry, whoever wrote another at the same time.
        owner = next(one.tags["owner"] for one in entries if one.tags["event"] == "made")
        return numbered(
            [
                ForeignVersion(number, int(one.tags["created"]), owner, number in gone, one.tags["handle"])
                for number, one in made.items()
            ],
            STORE,
        )

    def _make(self, key: str, number: int, owner: str, now: int) -> ForeignVersion:
        made = self._ask(
            "make a key",
            lambda: self._keys.create_rsa_key(
                _name(key, f"v{number}"),
                size=SIZE,
                hardware_protected=self._hardware,
                key_operations=["wrapKey", "unwrapKey"],
                exportable=False,
                tags={"cloister": "version", "key": key, "version": str(number)},
            ),
            retry=False,
        )
        handle = str(made.properties.version)
        if not _HANDLE.fullmatch(handle):
            raise foreign.garbage(STORE)
        self._write(
            key,
            {"event": "made", "version": str(number), "owner": owner, "created": str(now), "handle": handle},
        )
        if number == 1:
            # Two brokers may have made the key at once for two owners: only one of them may say that it did.
            self._sleep(SETTLE_SECONDS)
        found = [one for one in self._read(key) if one.number == number]
        if not found:
            raise foreign.unavailable(STORE, "its record is not settled yet")
        return found[0]

    def _shred(self, key: str, version: ForeignVersion) -> None:
        if not version.destroyed:
            self._write(key, {"event": "destroyed", "version": str(version.number)})
        name = _name(key, f"v{version.number}")
        for one in [one for one in list(self._clients) if one[0] == name]:
            self._clients.pop(one, None)
        # Deleted a moment ago, it will be among the deleted keys; long ago, it may have been purged since.
        expected = not version.destroyed
        with contextlib.suppress(_Absent):
            # The request is made at once; what comes back would only wait.
            self._ask("destroy a key", lambda: self._keys.begin_delete_key(name))
            expected = True
        if self._purge:
            self._purge_deleted(name, expected=expected)

    def _purge_deleted(self, name: str, *, expected: bool) -> None:
        end = self._clock() + PURGE_SECONDS
        while True:
            try:
                # Deleting takes a while; until then Key Vault says that there is nothing to purge.
                self._ask("purge a key", lambda: self._keys.get_deleted_key(name))
                self._ask("purge a key", lambda: self._keys.purge_deleted_key(name))
            except _Absent:
                if expected and self._clock() > end:
                    raise foreign.unavailable(STORE, "it has not deleted a key yet") from None
                if not expected:
                    return
                self._sleep(1)
            else:
                return

    def _encrypt(self, key: str, version: ForeignVersion, plaintext: bytes, aad: bytes) -> bytes:
        client = self._client(key, version, version.handle)
        bound = self._bound(key, version, aad)
        answer = self._existing("wrap", lambda: client.wrap_key(self._wrapping, bound + plaintext))
        if not isinstance(answer.encrypted_key, bytes) or len(answer.encrypted_key) != SIZE // 8:
            raise foreign.garbage(STORE)
        return bytes.fromhex(version.handle) + answer.encrypted_key

    def _decrypt(self, key: str, version: ForeignVersion, body: bytes, aad: bytes) -> bytes:
        if len(body) != VERSION_SIZE + SIZE // 8:
            raise KeystoreError(f"this was not wrapped by {STORE}")
        client = self._client(key, version, body[:VERSION_SIZE].hex())
        answer = self._existing("unwrap", lambda: client.unwrap_key(self._wrapping, body[VERSION_SIZE:]))
        found = answer.key
        if not isinstance(found, bytes) or len(found) <= AAD_SIZE:
            raise foreign.garbage(STORE)
        if not hmac.compare_digest(found[:AAD_SIZE], self._bound(key, version, aad)):
            raise KeystoreError("this was not wrapped by this key, or for another record")
        return found[AAD_SIZE:]

    def _client(self, key: str, version: ForeignVersion, handle: str) -> Any:
        """What wraps and unwraps with one version; kept, because the library fetches the public key each time."""
        name = _name(key, f"v{version.number}")
        found = self._clients.get((name, handle))
        if found is None:
            found = self._keys.get_cryptography_client(name, key_version=handle)
            if len(self._clients) >= MAX_CLIENTS:
                self._clients.clear()
            if handle == version.handle:
                self._clients[name, handle] = found
        return found

    def _entries(self, key: str) -> list[_Entry]:
        """Every entry of the record, the earliest first; none where there is no record."""

        def listed() -> list[_Entry]:
            found: list[_Entry] = []
            for one in self._keys.list_properties_of_key_versions(_name(key, "record")):
                if len(found) >= MAX_ENTRIES:
                    raise KeystoreError(
                        f"the record of the key {key} is too long", todo="use another repository"
                    )
                found.append(_entry(one, key))
            return sorted(found, key=lambda entry: entry.order)

        try:
            return self._ask("read a record", listed)
        except _Absent:
            return []

    def _write(self, key: str, tags: dict[str, str]) -> None:
        # Twice is once here: the earliest entry counts.
        self._ask(
            "write a record",
            lambda: self._keys.create_ec_key(
                _name(key, "record"),
                curve="P-256",
                key_operations=[],
                enabled=False,
                exportable=False,
                tags={"cloister": "record", "key": key, **tags},
            ),
        )

    def _existing(self, doing: str, call: Callable[[], T]) -> T:
        try:
            return self._ask(doing, call)
        except _Absent:
            raise KeystoreError(f"{STORE} has no such key to {doing} with") from None

    def _ask(self, doing: str, call: Callable[[], T], *, retry: bool = True) -> T:
        def once() -> T:
            try:
                return call()
            except self._errors.ResourceNotFoundError:
                raise _Absent from None
            except (self._errors.DecodeError, self._errors.SerializationError):
                raise foreign.garbage(STORE) from None
            except (self._errors.ServiceRequestError, self._errors.ServiceResponseError):
                raise foreign.unavailable(STORE, "no whole answer came") from None
            except self._errors.HttpResponseError as error:
                status = error.status_code or (
                    401 if isinstance(error, self._errors.ClientAuthenticationError) else None
                )
                if status is None or 200 <= status < 300:
                    raise foreign.garbage(STORE) from None
                raise foreign.refusal(STORE, status, doing) from None
            except self._errors.AzureError:
                raise foreign.unavailable(STORE, "the request was not made") from None
            except (AttributeError, KeyError, TypeError, ValueError):  # what the library makes of garbage
                raise foreign.garbage(STORE) from None

        return foreign.retried(once) if retry else once()


def azure_keys(
    address: str, credential: Any, *, ca_file: Path | None = None, verify_challenge_resource: bool = True
) -> Any:
    """The client of one vault: bounded, without the library's own retries, which would wait as long as a server says."""
    transport = _transport(ca_file, only=address)
    return foreign.imported("azure.keyvault.keys", "azure").KeyClient(
        vault_url=foreign.check_address(address),
        credential=credential,
        transport=transport,
        retry_total=0,
        permit_redirects=False,
        verify_challenge_resource=verify_challenge_resource,
        logging_enable=False,
    )


def azure_credential(credentials: AzureCredentials, *, ca_file: Path | None = None) -> Any:
    """Tokens of Microsoft Entra for ``credentials``; nothing is kept on disk."""
    try:
        return foreign.imported("azure.identity", "azure").ClientSecretCredential(
            credentials.tenant,
            credentials.client,
            credentials.secret,
            authority=foreign.check_address(credentials.authority),
            transport=_transport(ca_file),
            retry_total=0,
            permit_redirects=False,
            disable_instance_discovery=True,
        )
    except ValueError:
        raise UsageError("these are no credentials of Microsoft Entra") from None


def _transport(ca_file: Path | None, *, only: str = "") -> Any:
    transports = foreign.imported("azure.core.pipeline.transport", "azure")
    return transports.RequestsTransport(
        session=foreign.bounded_session(ca_file, only=only),
        session_owner=False,
        use_env_settings=False,
        connection_verify=str(ca_file) if ca_file else True,
    )


def _entry(properties: Any, key: str) -> _Entry:
    tags = dict(properties.tags or {})
    event = tags.get("event")
    wanted = {"made": {"version", "owner", "created", "handle"}, "destroyed": {"version"}}.get(str(event))
    malformed = KeystoreError(
        f"{STORE} has a malformed record of the key {key}", todo="see its versions there"
    )
    if wanted is None or not wanted <= tags.keys() or tags.get("key") != key or not properties.created_on:
        raise malformed
    if not all(_NUMBER.fullmatch(tags[name]) for name in wanted & {"version", "created"}):
        raise malformed
    if "handle" in wanted and not _HANDLE.fullmatch(tags["handle"]):
        raise malformed
    return _Entry((properties.created_on.timestamp(), str(properties.version)), tags)


def _name(key: str, what: str) -> str:
    # Key Vault's names know neither case nor point nor underscore; other ids are named by their digest.
    if _PLAIN.fullmatch(key):
        return f"cloister-{key}-{what}"
    return f"cloister-sha256-{hashlib.sha256(key.encode()).hexdigest()}-{what}"
