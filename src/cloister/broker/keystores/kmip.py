"""A key store behind KMIP 1.4 (``cloister[kmip]``), over mutual TLS.

AES-256 keys are made and used inside the server (Create, Encrypt, Decrypt with AES-GCM, whose additional data bind key,
version and record) and never asked for. Versions are told by records kept there as opaque objects
(:mod:`~cloister.broker.keystores.records`). A server without AES-GCM is refused: no weaker mode is tried.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cloister.broker.keystores import MAX_PLAINTEXT
from cloister.broker.keystores.kmip_objects import (
    TAG_SIZE,
    aes_gcm,
    attribute,
    checked,
    group,
    identifier,
    name_attribute,
)
from cloister.broker.keystores.kmip_wire import TIMEOUT, KmipWire, Refused, tls_context
from cloister.broker.keystores.records import (
    MAX_RECORDS,
    RecordedKeystore,
    VersionRecord,
    decode_record,
    encode_record,
)
from cloister.broker.keystores.versioned import ForeignVersion
from cloister.channel.keyring import seconds_since_boot
from cloister.errors import KeystoreError, KeystoreUnavailable, UsageError

STORE: Final = "the KMIP server"
NONCE_SIZE: Final = 12
NAME_SIZE: Final = 8
MAX_CACHED: Final = 10_000
MAX_LOCATES: Final = 10
"""A claim may be taken back between Locate and Get; then it is asked again."""

_GONE: Final = ("ITEM_NOT_FOUND", "OBJECT_NOT_FOUND", "OBJECT_DESTROYED")
_BUSY: Final = ("GENERAL_FAILURE", "INTERNAL_SERVER_ERROR", "SERVER_LIMIT_EXCEEDED")


class KmipKeystore(RecordedKeystore):
    """A :class:`~cloister.broker.keystores.Keystore` over one server. The first call connects."""

    algorithm = "AES-256-GCM"
    label = "cloister/kmip-wrap/v1"
    store = STORE

    def __init__(
        self,
        host: str,
        port: int,
        *,
        certificate: Path,
        key: Path,
        ca: Path,
        timeout: float = TIMEOUT,
        entropy: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = seconds_since_boot,
    ) -> None:
        super().__init__(clock)
        if not host or not 1 <= port <= 65535:
            raise UsageError("a KMIP server has a host and a port from 1 to 65535")
        context = tls_context(certificate=certificate, key=key, ca=ca)
        self._wire = KmipWire(host, port, context, timeout=timeout)
        self._entropy = entropy
        # A record is written once, and a version's never taken away, so what was read of one stays true. Claims are not
        # here: they are taken away.
        self._cache: dict[str, VersionRecord] = {}
        self._cache_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"KmipKeystore({self._wire.host!r}, {self._wire.port})"

    def close(self) -> None:
        """Close idle connections; the next call opens another."""
        self._wire.close()

    def _encrypt(self, key: str, version: ForeignVersion, plaintext: bytes, aad: bytes) -> bytes:
        nonce = self._entropy(NONCE_SIZE)
        answer = self._ask(
            "encrypt",
            unique_identifier=version.handle,
            cryptographic_parameters=aes_gcm(),
            data=plaintext,
            iv_counter_nonce=nonce,
            auth_additional_data=self._bound(key, version, aad),
        )
        sealed, tag = answer.data, answer.auth_tag
        if sealed is None or tag is None or (len(sealed), len(tag)) != (len(plaintext), TAG_SIZE):
            raise KeystoreError(
                f"{STORE} does not do AES-GCM with a tag of {TAG_SIZE} bytes", todo="use one that does"
            )
        return nonce + bytes(sealed) + bytes(tag)

    def _decrypt(self, key: str, version: ForeignVersion, body: bytes, aad: bytes) -> bytes:
        refusal = KeystoreError(
            f"this is no wrap of the key {key} for that record", todo="restore the record from a backup"
        )
        if not NONCE_SIZE + TAG_SIZE < len(body) <= NONCE_SIZE + MAX_PLAINTEXT + TAG_SIZE:
            raise refusal
        try:
            answer = self._answer(
                "decrypt",
                unique_identifier=version.handle,
                cryptographic_parameters=aes_gcm(),
                data=body[NONCE_SIZE:-TAG_SIZE],
                iv_counter_nonce=body[:NONCE_SIZE],
                auth_additional_data=self._bound(key, version, aad),
                auth_tag=body[-TAG_SIZE:],
            )
        except Refused as refused:
            if refused.reason in (*_GONE, "PERMISSION_DENIED", "AUTHENTICATION_NOT_SUCCESSFUL"):
                raise _refusal("decrypt", refused) from None
            raise refusal from None  # servers have no common reason for a tag that does not fit
        plaintext = answer.data
        if plaintext is None or len(plaintext) != len(body) - NONCE_SIZE - TAG_SIZE:
            raise refusal
        return bytes(plaintext)

    def _records(self, key: str, *, certain: bool = False) -> Collection[VersionRecord]:
        return self._located(key).values()  # what is gone when it is read is located again

    def _located(self, key: str) -> dict[str, VersionRecord]:
        for _ in range(MAX_LOCATES):
            identifiers = self._locate(key)
            try:
                return {one: self._record(key, one) for one in identifiers}
            except Refused as refused:
                if refused.reason not in _GONE:
                    raise _refusal("get", refused) from None
        raise KeystoreUnavailable(f"the records of the key {key} change as they are read", todo="ask again")

    def _locate(self, key: str) -> list[str]:
        from kmip.core import enums  # noqa: PLC0415

        kind = enums.AttributeType
        located = self._ask(
            "locate",
            maximum_items=MAX_RECORDS + 1,
            attributes=[
                attribute(kind.OBJECT_TYPE, enums.ObjectType.OPAQUE_DATA),
                attribute(kind.OBJECT_GROUP, group(key)),
            ],
        )
        identifiers = [checked(one) for one in located.unique_identifiers]
        if len(identifiers) > MAX_RECORDS:
            raise KeystoreError(
                f"{STORE} has more than {MAX_RECORDS} records of the key {key}", todo="restore it"
            )
        return identifiers

    def _record(self, key: str, name: str) -> VersionRecord:
        with self._cache_lock:
            cached = self._cache.get(name)
        if cached is not None and cached.key == key:
            return cached
        try:
            value = self._answer("get", unique_identifier=name).secret.opaque_data_value.value
        except AttributeError:
            value = b""
        record = decode_record(bytes(value), key, STORE)
        if record.state == "claimed":
            return record
        with self._cache_lock:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            self._cache[name] = record
        return record

    def _write(self, record: VersionRecord, *, may: Callable[[], None] = lambda: None) -> None:
        from kmip.core import enums, objects, secrets  # noqa: PLC0415

        may()  # what is waited for from here on has its bound
        kind = enums.AttributeType
        self._ask(
            "register",
            object_type=enums.ObjectType.OPAQUE_DATA,
            template_attribute=objects.TemplateAttribute(
                attributes=[
                    self._named(record.key, record.version, record.state),
                    attribute(kind.OBJECT_GROUP, group(record.key)),
                ]
            ),
            managed_object=secrets.OpaqueObject(
                secrets.OpaqueObject.OpaqueDataType(enums.OpaqueDataType.NONE),
                secrets.OpaqueObject.OpaqueDataValue(encode_record(record)),
            ),
        )

    def _remove(self, record: VersionRecord) -> None:
        for name, one in self._located(record.key).items():
            if one == record:
                try:
                    self._answer("destroy", unique_identifier=identifier(name))
                except Refused as refused:
                    if refused.reason not in _GONE:
                        raise _refusal("destroy", refused) from None

    def _create(self, key: str, number: int) -> str:
        from kmip.core import enums, objects  # noqa: PLC0415

        kind, mask = enums.AttributeType, enums.CryptographicUsageMask
        answer = self._ask(
            "create",
            object_type=enums.ObjectType.SYMMETRIC_KEY,
            template_attribute=objects.TemplateAttribute(
                attributes=[
                    attribute(kind.CRYPTOGRAPHIC_ALGORITHM, enums.CryptographicAlgorithm.AES),
                    attribute(kind.CRYPTOGRAPHIC_LENGTH, 256),
                    attribute(kind.CRYPTOGRAPHIC_USAGE_MASK, [mask.ENCRYPT, mask.DECRYPT]),
                    attribute(kind.SENSITIVE, True),
                    self._named(key, number, "key"),
                ]
            ),
        )
        name = checked(answer.unique_identifier)
        self._ask("activate", unique_identifier=identifier(name))
        return name

    def _erase(self, key: str, number: int, name: str) -> None:
        from kmip.core import enums, objects  # noqa: PLC0415

        reason = objects.RevocationReason(code=enums.RevocationReasonCode.CESSATION_OF_OPERATION)
        try:
            found = self._answer("get_attributes", unique_identifier=name, attribute_names=["Name"])
            names = [str(one.attribute_value.name_value.value) for one in found.attributes]
            if not any(one.startswith(f"{group(key)}/{number}/key/") for one in names):
                raise KeystoreError(
                    f"a record of the key {key} names an object that is not its key", todo="restore the store"
                )
            with suppress(Refused):  # was revoked already; if not, Destroy says so
                self._answer("revoke", unique_identifier=identifier(name), revocation_reason=reason)
            self._answer("destroy", unique_identifier=identifier(name))
        except Refused as refused:
            if refused.reason not in _GONE:
                raise _refusal("destroy", refused) from None

    def _named(self, key: str, number: int, what: str) -> Any:
        """A name of its own for each object: servers refuse one that exists."""
        return name_attribute(f"{group(key)}/{number}/{what}/{self._entropy(NAME_SIZE).hex()}")

    def _ask(self, operation: str, **fields: Any) -> Any:
        try:
            return self._answer(operation, **fields)
        except Refused as refused:
            raise _refusal(operation, refused) from None

    def _answer(self, operation: str, **fields: Any) -> Any:
        from kmip.core import enums  # noqa: PLC0415
        from kmip.core.messages import payloads  # noqa: PLC0415

        payload = getattr(payloads, f"{operation.title().replace('_', '')}RequestPayload")(**fields)
        return self._wire.ask(enums.Operation[operation.upper()], payload)


def _refusal(operation: str, refused: Refused) -> KeystoreError:
    if refused.reason in _BUSY:
        return KeystoreUnavailable(
            f"{STORE} failed ({operation}: {refused.reason})", todo="ask again, or read its log"
        )
    return KeystoreError(
        f"{STORE} refuses ({operation}: {refused.reason})",
        todo="see what our certificate may do there, and that it has KMIP 1.4 with AES-GCM",
    )
