"""What a KMIP server's objects are asked by: names, groups, identifiers, AES-GCM. Pure, in PyKMIP's types."""

from __future__ import annotations

from typing import Any, Final

from cloister.errors import KeystoreError

TAG_SIZE: Final = 16
MAX_IDENTIFIER: Final = 128


def name_attribute(text: str) -> Any:
    """``text`` as the name of a new object."""
    from kmip.core import attributes, enums  # noqa: PLC0415

    kind = attributes.Name.NameType(enums.NameType.UNINTERPRETED_TEXT_STRING)
    return attribute(enums.AttributeType.NAME, attributes.Name(attributes.Name.NameValue(text), kind))


def group(key: str) -> str:
    """The object group of the records of ``key``, and how names of its objects begin."""
    return f"cloister/{key}"


def identifier(name: str) -> Any:
    """``name`` as a request takes it."""
    from kmip.core import attributes  # noqa: PLC0415

    return attributes.UniqueIdentifier(name)


def checked(identifier: Any) -> str:
    """A unique identifier as text. Raises :class:`~cloister.errors.KeystoreError` when it is out of all bounds."""
    text = str(getattr(identifier, "value", identifier))
    if not 1 <= len(text) <= MAX_IDENTIFIER or not text.isprintable():
        raise KeystoreError("the KMIP server names an object in a way out of all bounds")
    return text


def attribute(kind: Any, value: Any) -> Any:
    """An attribute of ``kind``."""
    from kmip.core.factories.attributes import AttributeFactory  # noqa: PLC0415

    return AttributeFactory().create_attribute(kind, value)


def aes_gcm() -> Any:
    """How a key is used."""
    from kmip.core import attributes, enums  # noqa: PLC0415

    return attributes.CryptographicParameters(
        block_cipher_mode=enums.BlockCipherMode.GCM,
        cryptographic_algorithm=enums.CryptographicAlgorithm.AES,
        tag_length=TAG_SIZE,
    )
