"""What the key store asks of a token within one session: records as data objects, keys, AES-GCM. It keeps no state.

The module's errors end here: what the token refuses for good is a :class:`~cloister.errors.KeystoreError`, all else is
:class:`Lost`, for which the caller opens another session. None is chained: a module's text may quote what it was asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from cloister.broker.keystores.records import (
    MAX_RECORDS,
    VersionRecord,
    decode_record,
    encode_record,
)
from cloister.broker.keystores.versioned import ForeignVersion
from cloister.errors import KeystoreError

if TYPE_CHECKING:
    from pkcs11 import Object, SecretKey, Session

T = TypeVar("T")
Found = TypeVar("Found", bound="Object")

STORE: Final = "the token"
APPLICATION: Final = "cloister"
MARK: Final = "cloister"
MARK_VALUE: Final = b"cloister/pkcs11-keystore/v1"
ID_SIZE: Final = 16
TAG_SIZE: Final = 16
MAX_SEARCHES: Final = 10
"""A claim may be taken back while it is found and read; then it is searched again."""


class Lost(Exception):
    """The session is no good any more; ``why`` is the name of an error code."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def translated(work: Callable[[Session], T], session: Session) -> T:
    """Run ``work``; errors of the module become ours."""
    import pkcs11  # noqa: PLC0415

    try:
        session.generate_random(
            64
        )  # a dead session says so here: python-pkcs11 leaves searches in one half open
        return work(session)
    except (pkcs11.TokenWriteProtected, pkcs11.DeviceMemory, pkcs11.SessionReadOnly) as error:
        raise KeystoreError(
            f"the token takes no new object ({error_name(error)})",
            todo="make room on it, or make it writable",
        ) from None
    except (
        pkcs11.MechanismInvalid,
        pkcs11.MechanismParamInvalid,
        pkcs11.FunctionNotSupported,
        pkcs11.TemplateInconsistent,
        pkcs11.AttributeTypeInvalid,
        pkcs11.AttributeValueInvalid,
    ) as error:
        raise KeystoreError(
            f"the token does not do what this store asks ({error_name(error)})",
            todo="it must make AES-256 keys, keep data objects and do AES-GCM with a nonce from outside",
        ) from None
    except pkcs11.PKCS11Error as error:
        raise Lost(error_name(error)) from None


def recorded(session: Session, key: str) -> list[VersionRecord]:
    """The records of ``key`` in no order; none only if the token shows that it is there."""
    import pkcs11  # noqa: PLC0415

    for _ in range(MAX_SEARCHES):
        with suppress(pkcs11.ObjectHandleInvalid):
            return [_record(one, key) for one in _records(session, key)]
    raise Lost("its records change as they are read")


def write(session: Session, record: VersionRecord) -> None:
    """Keep ``record`` in the token."""
    _store(session, f"{APPLICATION}/{record.key}", encode_record(record))


def remove(session: Session, record: VersionRecord) -> None:
    """Destroy every record that is equal to ``record``."""
    import pkcs11  # noqa: PLC0415

    for _ in range(MAX_SEARCHES):
        with suppress(pkcs11.ObjectHandleInvalid):  # somebody else destroyed it, or another one
            for one in _records(session, record.key):
                if _record(one, record.key) == record:
                    one.destroy()
            return
    raise Lost("its records change as they are read")


def mark(session: Session) -> bool:
    """Leave the store's mark, so that a token that is there differs from one that shows nothing. Was it needed?"""
    if _marked(session):
        return False
    _store(session, MARK, MARK_VALUE)
    return True


def key_label(key: str, number: int) -> str:
    """The label of the key of one version."""
    return f"{APPLICATION}/{key}/{number}"


def generate(session: Session, label: str, name: bytes) -> None:
    """Make an AES-256 key that never leaves the token."""
    import pkcs11  # noqa: PLC0415

    attribute = pkcs11.Attribute
    new = session.generate_key(
        pkcs11.KeyType.AES,
        256,
        id=name,
        label=label,
        store=True,
        capabilities=pkcs11.MechanismFlag.ENCRYPT | pkcs11.MechanismFlag.DECRYPT,
        template={
            attribute.PRIVATE: True,
            attribute.SENSITIVE: True,
            attribute.EXTRACTABLE: False,
            attribute.MODIFIABLE: False,
        },
    )
    if not (new[attribute.LOCAL] and new[attribute.ALWAYS_SENSITIVE] and new[attribute.NEVER_EXTRACTABLE]):
        new.destroy()
        raise KeystoreError("the token made a key that may leave it", todo="use a token that keeps its keys")


def key_of(session: Session, key: str, version: ForeignVersion) -> SecretKey:
    """The key of ``version``."""
    found = _keys(session, key, version.number, version.handle)
    if len(found) != 1:
        raise Lost(f"{len(found)} keys for version {version.number}")
    return found[0]


def erase(session: Session, key: str, number: int, name: str) -> None:
    """Destroy the key of a version, if it is still there."""
    for one in _shown(session, _keys(session, key, number, name)):
        one.destroy()


def encrypt(key: Any, plaintext: bytes, nonce: bytes, aad: bytes) -> bytes:
    """AES-GCM: ciphertext and tag."""
    import pkcs11  # noqa: PLC0415

    parameters = pkcs11.GCMParams(nonce, aad, 8 * TAG_SIZE)
    return bytes(key.encrypt(plaintext, mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=parameters))


def decrypt(session: Session, key: Any, sealed: bytes, nonce: bytes, aad: bytes) -> bytes | None:
    """None for what does not authenticate."""
    import pkcs11  # noqa: PLC0415

    parameters = pkcs11.GCMParams(nonce, aad, 8 * TAG_SIZE)
    try:
        return bytes(key.decrypt(sealed, mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=parameters))
    except pkcs11.PKCS11Error as error:
        # Modules give any code for it (SoftHSM: CKR_GENERAL_ERROR): it was the wrap if all else is well.
        if _marked(session):
            return None
        raise Lost(error_name(error)) from None


def error_name(error: Exception) -> str:
    """The kind of a module's error, without its text."""
    return type(error).__name__


def _marked(session: Session) -> bool:
    return bool(_data(session, MARK))


def _shown(session: Session, found: list[Found]) -> list[Found]:
    """``found``, and that it is nothing only if the token shows that it is there."""
    if not found and not _marked(session):
        raise Lost("it shows nothing of this store")
    return found


def _records(session: Session, key: str) -> list[Object]:
    found = _shown(session, _data(session, f"{APPLICATION}/{key}"))
    if len(found) > MAX_RECORDS:
        raise KeystoreError(
            f"the token has more than {MAX_RECORDS} records of the key {key}", todo="restore it"
        )
    return found


def _record(found: Object, key: str) -> VersionRecord:
    import pkcs11  # noqa: PLC0415

    return decode_record(bytes(found[pkcs11.Attribute.VALUE]), key, STORE)


def _keys(session: Session, key: str, number: int, handle: str) -> list[SecretKey]:
    import pkcs11  # noqa: PLC0415

    try:
        name = bytes.fromhex(handle)
    except ValueError:
        name = b""
    if len(name) != ID_SIZE:
        raise KeystoreError("a record in the token names no key", todo="restore the token from its backup")
    template = {
        pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,
        pkcs11.Attribute.ID: name,
        pkcs11.Attribute.LABEL: key_label(key, number),  # no record leads to a key of something else
    }
    return cast("list[SecretKey]", _found(session, template))


def _data(session: Session, label: str) -> list[Object]:
    import pkcs11  # noqa: PLC0415

    template = {
        pkcs11.Attribute.CLASS: pkcs11.ObjectClass.DATA,
        pkcs11.Attribute.APPLICATION: APPLICATION,
        pkcs11.Attribute.LABEL: label,
    }
    return _found(session, template)


def _found(session: Session, template: Any) -> list[Object]:
    # A session does one search at a time: it ends here, not when the collector finds it.
    search: Any = session.get_objects(template)
    with closing(search):
        return list(itertools.islice(search, MAX_RECORDS + 1))


def _store(session: Session, label: str, value: bytes) -> None:
    import pkcs11  # noqa: PLC0415

    session.create_object(
        {
            pkcs11.Attribute.CLASS: pkcs11.ObjectClass.DATA,
            pkcs11.Attribute.TOKEN: True,
            pkcs11.Attribute.PRIVATE: True,
            pkcs11.Attribute.MODIFIABLE: False,
            pkcs11.Attribute.APPLICATION: APPLICATION,
            pkcs11.Attribute.LABEL: label,
            pkcs11.Attribute.VALUE: value,
        }
    )
