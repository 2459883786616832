"""The key stores that a broker is told to use: a TOML file of named tables, each of one kind (docs/how-to/key-stores.md).

``local`` is built in and cannot be configured. Unknown kinds and fields, relative paths, credentials that others can read
and addresses without TLS are refused. A kind's library is imported only when a table names that kind; nothing is contacted.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from cloister.broker.keystores import Keystore
from cloister.broker.keystores.versions import check_id
from cloister.encoding import Record, convert, decode_json
from cloister.errors import FormatError, KeystoreError, UsageError
from cloister.sealing.descriptors import read_private

BUILT_IN: Final = "local"
PLACEMENT: Final = "repositories"
"""The table that says which repository's key is in which store; no store can have this name."""
PAGE: Final = "see docs/how-to/key-stores.md"
MAX_CONFIGURATION: Final = 1 << 16
MAX_STORES: Final = 32
MAX_SECRET: Final = 1 << 14
_MOUNT: Final = re.compile(r"[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,8}")
_REGION: Final = re.compile(r"[a-z0-9-]{1,32}")


class Pkcs11Settings(Record, frozen=True, kw_only=True):
    module: str
    token: str
    pin_file: str


class KmipSettings(Record, frozen=True, kw_only=True):
    host: str
    port: int = 5696
    certificate_file: str
    key_file: str
    ca_file: str


class VaultSettings(Record, frozen=True, kw_only=True):
    address: str
    token_file: str
    ca_file: str = ""
    namespace: str = ""
    transit: str = "transit"
    records: str = "secret"


class AwsSettings(Record, frozen=True, kw_only=True):
    region: str
    credentials_file: str
    endpoint: str = ""
    ca_file: str = ""


class AwsCredentialsFile(Record, frozen=True, kw_only=True):
    """JSON, as ``aws iam create-access-key`` names its fields in lower case."""

    access_key_id: str
    secret_access_key: str
    session_token: str = ""

    def __repr__(self) -> str:
        return "AwsCredentialsFile()"


class AzureSettings(Record, frozen=True, kw_only=True):
    address: str
    tenant: str
    client: str
    secret_file: str
    hardware: bool
    purge: bool
    authority: str = "https://login.microsoftonline.com"
    ca_file: str = ""


class GcpSettings(Record, frozen=True, kw_only=True):
    ring: str
    service_account_file: str
    hardware: bool
    address: str = "https://cloudkms.googleapis.com"
    ca_file: str = ""


def open_keystores(text: str) -> Mapping[str, Keystore]:
    """The stores of a configuration by name, without ``local``. Raises :class:`~cloister.errors.UsageError`."""
    if len(text.encode("utf-8", "replace")) > MAX_CONFIGURATION:
        raise UsageError(f"the key stores' configuration is longer than {MAX_CONFIGURATION} bytes", todo=PAGE)
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        line = "".join(char if char.isprintable() else "?" for char in str(error)[:200])
        raise UsageError(f"the key stores' configuration is not TOML: {line}", todo=PAGE) from None
    if len(tables) > MAX_STORES:
        raise UsageError(f"more than {MAX_STORES} key stores", todo=PAGE)
    return {name: _opened(name, table) for name, table in tables.items() if name != PLACEMENT}


def read_repositories(text: str) -> Mapping[str, str]:
    """``[repositories]`` of a configuration that :func:`open_keystores` read: repository -> name of its store."""
    placed = tomllib.loads(text).get(PLACEMENT, {})
    try:
        found = convert(placed, dict[str, str], what=f"[{PLACEMENT}]")
        for repository in found:
            check_id(repository)
    except (FormatError, KeystoreError) as error:
        raise UsageError(error.what, todo=PAGE) from None
    return found


def _opened(name: str, table: Any) -> Keystore:
    try:
        check_id(name)
    except KeystoreError as error:
        raise UsageError("a key store has a name that is none", todo=error.todo) from None
    if name == BUILT_IN:
        raise UsageError(f"the key store {BUILT_IN} is built in", todo="give yours another name")
    if not isinstance(table, dict):
        raise UsageError(f"{name} is not a table", todo=f"write [{name}]")
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UsageError(
            f"[{name}]: {ascii(kind)[:80]} is no kind of key store", todo=f"write one of {', '.join(_KINDS)}"
        )
    try:
        return _KINDS[kind]({field: value for field, value in table.items() if field != "kind"})
    except (FormatError, UsageError, KeystoreError) as error:
        raise UsageError(f"[{name}]: {error.what}", todo=error.todo or PAGE) from None


def _pkcs11(table: dict[str, Any]) -> Keystore:
    from cloister.broker.keystores.pkcs11 import Pkcs11Keystore  # noqa: PLC0415 - needs cloister[hsm]

    settings = convert(table, Pkcs11Settings, what="it")
    return Pkcs11Keystore(_path(settings.module), settings.token, _secret(settings.pin_file, "PIN"))


def _kmip(table: dict[str, Any]) -> Keystore:
    from cloister.broker.keystores.kmip import KmipKeystore  # noqa: PLC0415 - needs cloister[kmip]

    settings = convert(table, KmipSettings, what="it")
    return KmipKeystore(
        settings.host,
        settings.port,
        certificate=_path(settings.certificate_file),
        key=_path(settings.key_file),
        ca=_path(settings.ca_file),
    )


def _vault(table: dict[str, Any]) -> Keystore:
    from cloister.broker.keystores.vault import VaultKeystore  # noqa: PLC0415 - needs cloister[vault]

    settings = convert(table, VaultSettings, what="it")
    for mount in (settings.transit, settings.records):
        if not _MOUNT.fullmatch(mount):
            raise UsageError(f"{mount[:80]!a} is no mount point of Vault")
    if settings.namespace and not _MOUNT.fullmatch(settings.namespace):
        raise UsageError(f"{settings.namespace[:80]!a} is no namespace of Vault")
    return VaultKeystore(
        settings.address,
        _secret(settings.token_file, "token"),
        ca_file=_optional(settings.ca_file),
        namespace=settings.namespace,
        transit=settings.transit,
        records=settings.records,
    )


def _aws(table: dict[str, Any]) -> Keystore:
    from cloister.broker.keystores.aws import AwsCredentials, AwsKeystore  # noqa: PLC0415 - needs cloister[aws]

    settings = convert(table, AwsSettings, what="it")
    if not _REGION.fullmatch(settings.region):
        raise UsageError(f"{settings.region[:80]!a} is no region of AWS")
    try:
        found = decode_json(
            _secret(settings.credentials_file, "credentials"), AwsCredentialsFile, what="credentials"
        )
    except FormatError:  # what it says may quote them
        raise UsageError(
            f"{settings.credentials_file} does not hold the credentials of AWS", todo=PAGE
        ) from None
    return AwsKeystore(
        settings.region,
        AwsCredentials(found.access_key_id, found.secret_access_key, found.session_token),
        endpoint=settings.endpoint,
        ca_file=_optional(settings.ca_file),
    )


def _azure(table: dict[str, Any]) -> Keystore:
    from cloister.broker.keystores.azure import (  # noqa: PLC0415 - needs cloister[azure]
        AzureCredentials,
        AzureKeystore,
        azure_credential,
        azure_keys,
    )

    settings = convert(table, AzureSettings, what="it")
    credentials = AzureCredentials(
        settings.tenant,
        settings.client,
        _line(_secret(settings.secret_file, "client secret"), settings.secret_file),
        settings.authority,
    )
    ca_file = _optional(settings.ca_file)
    keys = azure_keys(settings.address, azure_credential(credentials, ca_file=ca_file), ca_file=ca_file)
    return AzureKeystore(keys, hardware=settings.hardware, purge=settings.purge)


def _gcp(table: dict[str, Any]) -> Keystore:
    from cloister.broker.keystores.gcp import GcpKeystore  # noqa: PLC0415 - needs cloister[gcp]

    settings = convert(table, GcpSettings, what="it")
    return GcpKeystore(
        settings.ring,
        _secret(settings.service_account_file, "service account"),
        hardware=settings.hardware,
        address=settings.address,
        ca_file=_optional(settings.ca_file),
    )


_KINDS: Final[dict[str, Callable[[dict[str, Any]], Keystore]]] = {
    "pkcs11": _pkcs11,
    "kmip": _kmip,
    "vault": _vault,
    "aws": _aws,
    "azure": _azure,
    "gcp": _gcp,
}


def _path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\x00" in text:
        raise UsageError(f"{text[:200]!a} is not an absolute path")
    return path


def _optional(text: str) -> Path | None:
    if not text:
        return None
    path = _path(text)
    if not path.is_file():
        raise UsageError(f"{path} is not a file")
    return path


def _secret(text: str, what: str) -> bytes:
    path = _path(text)
    content = read_private(path, what=what, limit=MAX_SECRET)
    if not 1 <= len(content) <= MAX_SECRET:
        raise UsageError(f"{what} {path} is empty or longer than {MAX_SECRET} bytes")
    return content


def _line(content: bytes, name: str) -> str:
    try:
        text = content.decode("ascii").removesuffix("\n")
    except UnicodeDecodeError:
        text = ""
    if not text.isprintable() or not text:
        raise UsageError(f"{name} does not hold one line")
    return text
