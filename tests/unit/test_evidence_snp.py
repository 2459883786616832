"""SEV-SNP reports are read field by field, and nothing that is not understood gets through."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from cloister.attester.simulation.snp import STRICT_POLICY, snp_measurement
from cloister.attester.simulation.snp_report import encode_signed
from cloister.errors import EvidenceError
from cloister.evidence.snp import (
    PLATFORM_BITS,
    POLICY_BITS,
    REPORT_SIZE,
    SnpReport,
    TcbVersion,
    parse_report,
    tcb_version,
)
from spec_vectors import spec_vectors

MILAN = TcbVersion(bootloader=1, tee=2, snp=3, microcode=4)
TURIN = TcbVersion(fmc=9, bootloader=1, tee=2, snp=3, microcode=4)


def full(version: int = 5, product: str = "turin") -> SnpReport:
    """Every field with a value of its own."""
    tcb = TURIN if product == "turin" else MILAN
    cpuids = {"milan": (0x19, 0x01, 1), "genoa": (0x19, 0xA0, 2), "turin": (0x1A, 0x11, 3)}
    return SnpReport(
        version=version,
        guest_svn=7,
        policy=STRICT_POLICY,
        family_id=b"f" * 16,
        image_id=b"i" * 16,
        vmpl=2,
        current_tcb=replace(tcb, microcode=11),
        platform_info=0x27,
        author_key_enabled=True,
        mask_chip_key=True,
        signing_key="vlek",
        report_data=bytes(range(64)),
        measurement=b"m" * 48,
        host_data=b"h" * 32,
        id_key_digest=b"k" * 48,
        author_key_digest=b"a" * 48,
        report_id=b"r" * 32,
        report_id_ma=b"\xff" * 32,
        reported_tcb=tcb,
        product=product if version >= 3 else None,
        cpuid=cpuids[product] if version >= 3 else None,
        chip_id=b"c" * 8 + bytes(56) if product == "turin" else b"c" * 64,
        committed_tcb=replace(tcb, microcode=12),
        current_version=(1, 58, 3),
        committed_version=(1, 57, 2),
        launch_tcb=replace(tcb, microcode=13),
        launch_mitigations=1 << 40 if version >= 5 else None,
        current_mitigations=3 if version >= 5 else None,
        signature=b"",
        signed=b"",
    )


def encoded(report: SnpReport, signature: bytes = b"") -> bytes:
    return (encode_signed(report) + signature).ljust(REPORT_SIZE, b"\0")


@pytest.mark.parametrize("version", [2, 3, 5])
@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_every_field_comes_out_as_it_went_in(version: int, product: str) -> None:
    expected = full(version, product)
    found = parse_report(encoded(expected), product=product)
    for field in fields(SnpReport):
        if field.name not in ("signature", "signed"):
            assert getattr(found, field.name) == getattr(expected, field.name), field.name
    assert found.signed == encode_signed(expected)
    assert found.signature == bytes(96)


def test_the_fields_stand_where_amds_table_puts_them() -> None:
    """Offsets of the ABI specification's attestation report, by hand: the encoder cannot be wrong in the same way."""
    data = encoded(full())
    expected = {
        0x00: b"\x05\0\0\0",
        0x04: b"\x07\0\0\0",
        0x10: b"f" * 16,
        0x20: b"i" * 16,
        0x30: b"\x02\0\0\0",
        0x34: b"\x01\0\0\0",
        0x38: bytes([9, 1, 2, 3, 0, 0, 0, 11]),
        0x40: b"\x27" + bytes(7),
        0x48: b"\x07\0\0\0",
        0x50: bytes(range(64)),
        0x90: b"m" * 48,
        0xC0: b"h" * 32,
        0xE0: b"k" * 48,
        0x110: b"a" * 48,
        0x140: b"r" * 32,
        0x160: b"\xff" * 32,
        0x180: bytes([9, 1, 2, 3, 0, 0, 0, 4]),
        0x188: bytes([0x1A, 0x11, 3]),
        0x1A0: b"c" * 8 + bytes(56),
        0x1E0: bytes([9, 1, 2, 3, 0, 0, 0, 12]),
        0x1E8: bytes([3, 58, 1, 0, 2, 57, 1, 0]),
        0x1F0: bytes([9, 1, 2, 3, 0, 0, 0, 13]),
        0x1F8: (1 << 40).to_bytes(8, "little"),
        0x200: b"\x03" + bytes(7),
        0x208: bytes(0x2A0 - 0x208),
    }
    for offset, value in expected.items():
        assert data[offset : offset + len(value)] == value, hex(offset)


def test_a_signature_is_turned_from_amds_form_into_the_usual_one() -> None:
    signature = bytes(range(48)) + bytes(24) + bytes(range(100, 148)) + bytes(24)
    found = parse_report(encoded(full(), signature))
    assert found.signature == bytes(range(48))[::-1] + bytes(range(100, 148))[::-1]


RESERVED = {
    "behind the flags": 0x4C,
    "behind the CPUID": 0x18B,
    "in front of the chip id": 0x19F,
    "between the versions": 0x1EB,
    "behind the versions": 0x1EF,
    "behind the mitigations": 0x208,
    "in front of the signature": 0x29F,
    "in r": 0x2A0 + 48,
    "at the end of r": 0x2A0 + 71,
    "in s": 0x2A0 + 72 + 48,
    "behind s": 0x2A0 + 144,
    "at the end": REPORT_SIZE - 1,
    "in the current TCB": 0x38 + 4,
    "in the reported TCB": 0x180 + 6,
    "in the committed TCB": 0x1E0 + 5,
    "in the launch TCB": 0x1F0 + 4,
}


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_byte_that_is_not_zero_is_refused(name: str) -> None:
    data = bytearray(encoded(full()))
    data[RESERVED[name]] = 1
    with pytest.raises(EvidenceError, match=r"not zero|longer than P-384"):
        parse_report(bytes(data))


@pytest.mark.parametrize("version", [2, 3])
def test_what_a_later_version_uses_is_reserved_in_an_earlier_one(version: int) -> None:
    offsets = [0x1F8, 0x200] + ([0x188, 0x189, 0x18A] if version == 2 else [])
    for offset in offsets:
        data = bytearray(encoded(full(version, "milan")))
        data[offset] = 1 if offset >= 0x1F8 else 0x19
        with pytest.raises(EvidenceError, match="reserved bytes"):
            parse_report(bytes(data))


@pytest.mark.parametrize("version", [0, 1, 4, 6, 0x0102, 1 << 31])
def test_an_unknown_version_is_refused(version: int) -> None:
    with pytest.raises(EvidenceError, match=f"version {version} is not known"):
        parse_report(version.to_bytes(4, "little") + encoded(full())[4:])


@pytest.mark.parametrize("size", [0, 1, 672, REPORT_SIZE - 1, REPORT_SIZE + 1, 1 << 20])
def test_another_length_is_refused(size: int) -> None:
    with pytest.raises(EvidenceError, match=f"not {size}"):
        parse_report(bytes(size))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policy": STRICT_POLICY & ~(1 << 17)}, "bit 17 clear"),
        ({"policy": STRICT_POLICY | 1 << 26}, "policy .* reserved bits 0x4000000"),
        ({"policy": STRICT_POLICY | 1 << 63}, "reserved bits"),
        ({"platform_info": 1 << 6}, "platform information"),
        ({"platform_info": 1 << 8}, "platform information"),
        ({"vmpl": 4}, "VMPL 0x4"),
        ({"vmpl": 0xFFFFFFFF}, "the guest did not ask"),
        ({"cpuid": (0x19, 0x20, 0)}, "unknown processor"),
        ({"cpuid": (0x19, 0xB0, 0)}, "unknown processor"),
        ({"cpuid": (0x1A, 0x12, 0)}, "unknown processor"),
        ({"cpuid": (0x17, 0x31, 0)}, "unknown processor"),
        ({"cpuid": (0, 0, 0)}, "unknown processor"),
    ],
)
def test_what_is_not_understood_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(EvidenceError, match=says):
        parse_report(encoded(replace(full(), **changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "says"),
    [(7 << 2, "not signed"), (2 << 2, "unknown kind"), (6 << 2, "unknown kind"), (1 << 5, "reserved")],
)
def test_flags_that_are_not_understood_are_refused(flags: int, says: str) -> None:
    data = bytearray(encoded(full()))
    data[0x48:0x4C] = flags.to_bytes(4, "little")
    with pytest.raises(EvidenceError, match=says):
        parse_report(bytes(data))


@pytest.mark.parametrize(
    ("cpuid", "product"),
    [
        ((0x19, 0x00, 0), "milan"),
        ((0x19, 0x0F, 0), "milan"),
        ((0x19, 0x10, 0), "genoa"),
        ((0x19, 0x1F, 0), "genoa"),
        ((0x19, 0xA0, 0), "genoa"),  # Bergamo, Siena
        ((0x19, 0xAF, 0), "genoa"),
    ],
)
def test_the_product_is_read_from_family_and_model(cpuid: tuple[int, int, int], product: str) -> None:
    assert parse_report(encoded(replace(full(3, "milan"), cpuid=cpuid))).product == product


def test_a_policys_bits_are_known_by_name() -> None:
    for name, bit in POLICY_BITS.items():
        found = parse_report(encoded(replace(full(), policy=1 << 17 | 1 << bit)))
        assert found.policy_flags == {name}
        assert found.debug is (name == "debug")
    assert parse_report(encoded(full())).minimum_abi == (1, 55)


def test_a_platforms_bits_are_known_by_name() -> None:
    for name, bit in PLATFORM_BITS.items():
        assert parse_report(encoded(replace(full(), platform_info=1 << bit))).platform_flags == {name}


def test_version_2_is_read_as_its_product_lays_it_out() -> None:
    turin = encoded(full(2, "turin"))
    assert parse_report(turin, product="turin").reported_tcb == TURIN
    assert parse_report(turin).reported_tcb == TURIN  # by the form of its chip id
    with pytest.raises(EvidenceError, match="as milan writes it"):
        parse_report(turin, product="milan")
    masked = encoded(replace(full(2, "turin"), chip_id=bytes(64)))
    assert parse_report(masked).reported_tcb == TURIN  # by bytes that Milan reserves
    assert parse_report(encoded(full(2, "milan"))).reported_tcb == MILAN
    with pytest.raises(EvidenceError, match="as turin writes it"):
        parse_report(encoded(full(2, "milan")), product="turin")


def test_a_later_report_is_read_by_its_own_product_whatever_is_said() -> None:
    assert parse_report(encoded(full(3, "turin")), product="milan").reported_tcb == TURIN


def test_a_tcb_shows_in_words() -> None:
    assert str(tcb_version(bytes([3, 0, 0, 0, 0, 0, 8, 115]), "milan")) == (
        "bootloader 3, tee 0, snp 8, microcode 115"
    )
    assert str(TURIN).startswith("fmc 9, bootloader 1")


VECTORS = spec_vectors("snp.md")


@pytest.mark.parametrize(
    "vector", VECTORS["tcb"], ids=lambda vector: f"{vector['product']}-{vector['bytes']}"
)
def test_a_tcb_version_of_the_specification(vector: dict[str, str | None]) -> None:
    data, product = bytes.fromhex(str(vector["bytes"])), str(vector["product"])
    if vector["is"] is None:
        with pytest.raises(EvidenceError, match="reserved bytes"):
            tcb_version(data, product)
    else:
        assert str(tcb_version(data, product)) == vector["is"]


@pytest.mark.parametrize("vector", VECTORS["products"], ids=lambda vector: vector["family"] + vector["model"])
def test_a_product_of_the_specification(vector: dict[str, str | None]) -> None:
    cpuid = (int(str(vector["family"]), 16), int(str(vector["model"]), 16), 0)
    report = replace(full(3, "turin" if vector["is"] == "turin" else "milan"), cpuid=cpuid)
    if vector["is"] is None:
        with pytest.raises(EvidenceError, match="unknown processor"):
            parse_report(encoded(report))
    else:
        assert parse_report(encoded(report)).product == vector["is"]


@pytest.mark.parametrize("vector", VECTORS["policies"], ids=lambda vector: vector["policy"])
def test_a_guest_policy_of_the_specification(vector: dict[str, Any]) -> None:
    report = replace(full(), policy=int(vector["policy"], 16))
    if vector["flags"] is None:
        with pytest.raises(EvidenceError, match=r"bit 17 clear|reserved bits"):
            parse_report(encoded(report))
    else:
        found = parse_report(encoded(report))
        assert list(found.minimum_abi) == vector["abi"]
        assert sorted(found.policy_flags) == vector["flags"]


def test_the_simulated_measurement_is_the_one_of_the_specification() -> None:
    assert snp_measurement(()).hex() == VECTORS["measurement"]
