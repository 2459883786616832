"""OHTTP key configurations (RFC 9458, section 3): which public keys a gateway has, and for which algorithms.

``application/ohttp-keys`` is a list of configurations, each behind its 2-byte length. The lengths have to add up
exactly. Refused: bytes left over, keys of a wrong length, an empty algorithm list, a key id used twice, an empty
list. Configurations whose KEM this release does not know are passed over, as the RFC means them to be, so that a
workload can offer a newer one beside; a list of nothing else is refused. Nothing here is trusted: a list counts
once evidence binds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloister.channel.hpke import Aead, Kdf, Kem, KeyPair, Suite
from cloister.errors import ChannelError, FormatError, UsageError

KEYS_TYPE: Final = "application/ohttp-keys"
MAX_KEY_CONFIGS: Final = 16 * 1024
"""Upper bound of a list on the wire, bytes."""
MAX_CONFIGS: Final = 8

DEFAULT_SYMMETRIC: Final = (
    (int(Kdf.HKDF_SHA256), int(Aead.AES_256_GCM)),
    (int(Kdf.HKDF_SHA256), int(Aead.CHACHA20_POLY1305)),
    (int(Kdf.HKDF_SHA256), int(Aead.AES_128_GCM)),
)
"""What a gateway here offers, preferred first: (KDF id, AEAD id)."""


@dataclass(frozen=True, slots=True)
class KeyConfig:
    """One public key under its one-byte id. Raises :class:`FormatError` when built from values that do not fit."""

    key_id: int
    kem: Kem
    public_key: bytes
    symmetric: tuple[tuple[int, int], ...] = DEFAULT_SYMMETRIC
    """(KDF id, AEAD id) pairs, preferred first; numbers unknown here are carried and passed over."""

    def __post_init__(self) -> None:
        if not 0 <= self.key_id <= 255:
            raise FormatError(f"a key id is one byte, not {self.key_id}")
        if len(self.public_key) != self.kem.public_length:
            raise FormatError(
                f"a {self.kem.name} public key has {self.kem.public_length} bytes, not {len(self.public_key)}"
            )
        if not 1 <= len(self.symmetric) <= 64:
            raise FormatError("a key configuration names 1 to 64 pairs of KDF and AEAD")
        if not all(0 <= number <= 0xFFFF for pair in self.symmetric for number in pair):
            raise FormatError("KDF and AEAD ids are two bytes each")
        if len(set(self.symmetric)) != len(self.symmetric):
            raise FormatError("a key configuration names a pair of KDF and AEAD twice")

    def choose_suite(self) -> Suite:
        """The gateway's first pair that is known here. Raises :class:`ChannelError` if none is."""
        for kdf, aead in self.symmetric:
            try:
                return Suite.of(self.kem, kdf, aead)
            except UsageError:
                continue
        raise ChannelError(f"key {self.key_id} offers no KDF and AEAD known here", todo="upgrade this client")


@dataclass(frozen=True, slots=True)
class ServerKey:
    """A configuration with its private half.

    Raises :class:`UsageError` if they do not belong together, or if it offers algorithms that are not known here.
    """

    config: KeyConfig
    pair: KeyPair

    def __post_init__(self) -> None:
        if self.pair.kem is not self.config.kem or self.pair.public_key != self.config.public_key:
            raise UsageError(f"key {self.config.key_id}'s private half belongs to another public key")
        for kdf, aead in self.config.symmetric:
            Suite.of(self.config.kem, kdf, aead)


def encode_key_config(config: KeyConfig) -> bytes:
    """One configuration, without the length a list puts before it."""
    pairs = b"".join(number.to_bytes(2, "big") for pair in config.symmetric for number in pair)
    return (
        config.key_id.to_bytes(1, "big")
        + config.kem.to_bytes(2, "big")
        + config.public_key
        + len(pairs).to_bytes(2, "big")
        + pairs
    )


def encode_key_configs(configs: Sequence[KeyConfig]) -> bytes:
    """The list, in the order given: preferred first. Raises :class:`FormatError`."""
    _check_list(configs)
    encoded = [encode_key_config(config) for config in configs]
    return b"".join(len(item).to_bytes(2, "big") + item for item in encoded)


def parse_key_configs(data: bytes) -> tuple[KeyConfig, ...]:
    """Decode a list. Raises :class:`FormatError`."""
    if len(data) > MAX_KEY_CONFIGS:
        raise FormatError(f"the key configurations are {len(data)} bytes long, over {MAX_KEY_CONFIGS}")
    configs = []
    at = 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data):
            raise FormatError("the key configurations end inside one of them")
        config = parse_key_config(data[at + 2 : end])
        if config is not None:
            configs.append(config)
        at = end
    _check_list(configs)
    return tuple(configs)


def parse_key_config(data: bytes) -> KeyConfig | None:
    """Decode one configuration; None if its KEM is not known here. Raises :class:`FormatError`."""
    if len(data) < 3:
        raise FormatError("a key configuration ends before its KEM")
    try:
        kem = Kem(int.from_bytes(data[1:3], "big"))
    except ValueError:
        return None
    pairs_at = 3 + kem.public_length + 2
    pairs = data[pairs_at:]
    if len(data) < pairs_at or len(pairs) != int.from_bytes(data[pairs_at - 2 : pairs_at], "big"):
        raise FormatError("a key configuration's lengths do not add up")
    if len(pairs) % 4:
        raise FormatError("a key configuration ends inside a pair of KDF and AEAD")
    return KeyConfig(
        key_id=data[0],
        kem=kem,
        public_key=data[3 : pairs_at - 2],
        symmetric=tuple(
            (int.from_bytes(pairs[at : at + 2], "big"), int.from_bytes(pairs[at + 2 : at + 4], "big"))
            for at in range(0, len(pairs), 4)
        ),
    )


def _check_list(configs: Sequence[KeyConfig]) -> None:
    if not 1 <= len(configs) <= MAX_CONFIGS:
        raise FormatError(f"there are {len(configs)} usable key configurations, not 1 to {MAX_CONFIGS}")
    if len({config.key_id for config in configs}) != len(configs):
        raise FormatError("two key configurations have the same key id")
