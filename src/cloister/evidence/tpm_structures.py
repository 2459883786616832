"""TPM 2.0 structures as a TPM marshals them: TPMT_PUBLIC, TPMS_ATTEST of type quote, TPMT_SIGNATURE.

Numbers and layouts are those of the TCG's TPM 2.0 Library, Part 2 (section numbers beside them). Only what quotes and
endorsement keys need is read; another algorithm, a selection of several banks, a rest behind the end is refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cloister.errors import EvidenceError
from cloister.evidence.reader import Reader

# Part 2, 6.3: TPM_ALG_ID.
ALG_RSA: Final = 0x0001
ALG_AES: Final = 0x0006
ALG_NULL: Final = 0x0010
ALG_RSASSA: Final = 0x0014
ALG_RSAPSS: Final = 0x0016
ALG_ECDSA: Final = 0x0018
ALG_ECC: Final = 0x0023
ALG_CFB: Final = 0x0043
HASHES: Final = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
"""SHA-1 is not among them."""
HASH_IDS: Final = {name: number for number, name in HASHES.items()}
CURVES: Final[dict[int, ec.EllipticCurve]] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}
"""Part 2, 6.4: TPM_ECC_CURVE."""
SCHEMES: Final = {ALG_RSASSA: "rsassa", ALG_RSAPSS: "rsapss", ALG_ECDSA: "ecdsa"}

# Part 2, 8.3: TPMA_OBJECT.
FIXED_TPM: Final = 1 << 1
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
USER_WITH_AUTH: Final = 1 << 6
ADMIN_WITH_POLICY: Final = 1 << 7
NO_DA: Final = 1 << 10
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18
_KEY_ATTRIBUTES: Final = {
    "fixedTPM": FIXED_TPM,
    "fixedParent": FIXED_PARENT,
    "sensitiveDataOrigin": SENSITIVE_DATA_ORIGIN,
    "restricted": RESTRICTED,
    "sign": SIGN,
}
GENERATED: Final = 0xFF544347
"""TPM_GENERATED_VALUE: a restricted key signs nothing that begins so and was not made by its TPM."""
ST_QUOTE: Final = 0x8018
PCRS: Final = 24
MAX_STRUCTURE: Final = 4096

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class TpmReader(Reader):
    """The cursor of evidence/reader.py for big-endian numbers and sized buffers (TPM2B)."""

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def sized(self) -> bytes:
        """A TPM2B: its bytes behind a 16-bit length."""
        return self.take(self.u16())


@dataclass(frozen=True, slots=True)
class TpmPublic:
    """A key's public area (Part 2, 12.2.4)."""

    name_algorithm: str
    attributes: int
    auth_policy: bytes
    scheme: tuple[str, str] | None
    """Signature scheme and its hash, or None for a key without one."""
    key: PublicKey
    name: bytes
    """What names the key inside its TPM: nameAlg ‖ H(public area) (Part 1, section 16)."""

    def require_attestation_key(self) -> None:
        """A key that was made in this TPM, cannot leave it, and signs only what its TPM made itself.

        Raises :class:`~cloister.errors.EvidenceError`.
        """
        for name, bit in _KEY_ATTRIBUTES.items():
            if not self.attributes & bit:
                raise EvidenceError(
                    f"the attestation key is not {name}",
                    todo="its signature proves nothing about a TPM; make a restricted signing key",
                )
        if self.attributes & DECRYPT:
            raise EvidenceError("the attestation key may also decrypt", todo="make a restricted signing key")
        if self.scheme is None:
            raise EvidenceError("the attestation key has no signature scheme of its own")


@dataclass(frozen=True, slots=True)
class QuoteInfo:
    """TPMS_ATTEST of type quote (Part 2, 10.12.12)."""

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    bank: str
    pcrs: tuple[int, ...]
    """The selected PCRs, ascending."""
    pcr_digest: bytes


@dataclass(frozen=True, slots=True)
class TpmSignature:
    """TPMT_SIGNATURE (Part 2, 11.3.4): ``value`` for RSA, ``r`` and ``s`` for ECDSA."""

    scheme: str
    hash: str
    value: bytes = b""
    r: int = 0
    s: int = 0


def parse_public(data: bytes) -> TpmPublic:
    """Decode a TPMT_PUBLIC of an RSA or ECC key. Raises :class:`~cloister.errors.EvidenceError`."""
    reader = _reader(data, "TPM public area")
    kind, name_algorithm = reader.u16(), _hash(reader.u16(), "name algorithm")
    attributes, auth_policy = reader.u32(), reader.sized()
    _symmetric(reader)
    if kind == ALG_RSA:
        scheme = _scheme(reader, (ALG_RSASSA, ALG_RSAPSS))
        key: PublicKey = _rsa_key(reader)
    elif kind == ALG_ECC:
        scheme = _scheme(reader, (ALG_ECDSA,))
        key = _ecc_key(reader)
    else:
        raise EvidenceError(f"a TPM key of type {kind:#06x} is neither RSA nor ECC")
    reader.end()
    name = data[2:4] + hashlib.new(name_algorithm, data).digest()
    return TpmPublic(name_algorithm, attributes, auth_policy, scheme, key, name)


def parse_attest(data: bytes) -> QuoteInfo:
    """Decode a TPMS_ATTEST. Raises :class:`~cloister.errors.EvidenceError` unless it is a quote over one bank."""
    reader = _reader(data, "TPM attestation")
    magic, kind = reader.u32(), reader.u16()
    if magic != GENERATED:
        raise EvidenceError(
            "the signed structure was not generated by a TPM", todo="the evidence was altered or made up"
        )
    if kind != ST_QUOTE:
        raise EvidenceError(f"the attestation is of type {kind:#06x}, not a quote ({ST_QUOTE:#06x})")
    signer, extra = reader.sized(), reader.sized()
    clock, resets, restarts, safe = reader.u64(), reader.u32(), reader.u32(), reader.u8()
    if safe > 1:
        raise EvidenceError(f"the clock's safe flag is {safe}, neither 0 nor 1")
    firmware = reader.u64()
    selections = reader.u32()
    if selections != 1:
        raise EvidenceError(f"the quote selects {selections} banks of PCRs, not one")
    bank = _hash(reader.u16(), "PCR bank")
    octets = reader.u8()
    if octets != PCRS // 8:
        raise EvidenceError(f"the PCR selection has {octets} bytes, not {PCRS // 8}")
    selected = int.from_bytes(reader.take(octets), "little")
    digest = reader.sized()
    reader.end()
    pcrs = tuple(number for number in range(PCRS) if selected >> number & 1)
    return QuoteInfo(signer, extra, clock, resets, restarts, bool(safe), firmware, bank, pcrs, digest)


def parse_signature(data: bytes) -> TpmSignature:
    """Decode a TPMT_SIGNATURE. Raises :class:`~cloister.errors.EvidenceError`."""
    reader = _reader(data, "TPM signature")
    algorithm = reader.u16()
    scheme = SCHEMES.get(algorithm)
    if scheme is None:
        raise EvidenceError(
            f"the quote is signed by scheme {algorithm:#06x}, which is not RSASSA, RSAPSS or ECDSA"
        )
    hash_name = _hash(reader.u16(), "signature's hash")
    if algorithm == ALG_ECDSA:
        r, s = reader.sized(), reader.sized()
        signature = TpmSignature(scheme, hash_name, r=int.from_bytes(r, "big"), s=int.from_bytes(s, "big"))
    else:
        signature = TpmSignature(scheme, hash_name, value=reader.sized())
    reader.end()
    return signature


def _reader(data: bytes, what: str) -> TpmReader:
    if len(data) > MAX_STRUCTURE:
        raise EvidenceError(f"the {what} is {len(data)} bytes long, over its bound of {MAX_STRUCTURE}")
    return TpmReader(data, what)


def _hash(number: int, what: str) -> str:
    name = HASHES.get(number)
    if name is None:
        raise EvidenceError(f"the {what} is {number:#06x}, not SHA-256, SHA-384 or SHA-512")
    return name


def _symmetric(reader: TpmReader) -> None:
    # Part 2, 11.1.7: storage keys such as endorsement keys have one, signing keys have none.
    algorithm = reader.u16()
    if algorithm == ALG_NULL:
        return
    if algorithm != ALG_AES:
        raise EvidenceError(f"a TPM key with symmetric algorithm {algorithm:#06x} is not known here")
    reader.u16()
    if reader.u16() != ALG_CFB:
        raise EvidenceError("a TPM key with another symmetric mode than CFB is not known here")


def _scheme(reader: TpmReader, accepted: tuple[int, ...]) -> tuple[str, str] | None:
    algorithm = reader.u16()
    if algorithm == ALG_NULL:
        return None
    if algorithm not in accepted:
        raise EvidenceError(f"a TPM key with scheme {algorithm:#06x} is not known here")
    return SCHEMES[algorithm], _hash(reader.u16(), "key's hash")


def _rsa_key(reader: TpmReader) -> rsa.RSAPublicKey:
    bits, exponent, modulus = reader.u16(), reader.u32(), reader.sized()
    if bits not in (2048, 3072, 4096) or len(modulus) * 8 != bits or not modulus[0] & 0x80:
        raise EvidenceError(
            f"a TPM's RSA key of {bits} bits with a modulus of {len(modulus)} bytes is refused"
        )
    try:
        # Part 2, 12.2.3.5: exponent 0 is the default of 2^16 + 1.
        return rsa.RSAPublicNumbers(exponent or 65537, int.from_bytes(modulus, "big")).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceError(f"a TPM's RSA key is none ({error})") from None


def _ecc_key(reader: TpmReader) -> ec.EllipticCurvePublicKey:
    number, kdf = reader.u16(), reader.u16()
    x, y = reader.sized(), reader.sized()
    curve = CURVES.get(number)
    if curve is None:
        raise EvidenceError(f"a TPM key on curve {number:#06x} is neither P-256 nor P-384")
    if kdf != ALG_NULL:
        raise EvidenceError("a TPM key with a key derivation scheme of its own is not known here")
    if not x or not y or max(len(x), len(y)) > (curve.key_size + 7) // 8:
        raise EvidenceError(f"a TPM key's point has coordinates of {len(x)} and {len(y)} bytes")
    try:
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)
        return numbers.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise EvidenceError("a TPM key's point is not on its curve") from None
