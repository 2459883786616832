"""SPDM reports and the forms that carry them: read exactly, and refused for anything that is not exact."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest

from cloister.endorsements.nvidia import chip_of, rim_ids
from cloister.endorsements.x509 import read_certificate
from cloister.errors import EndorsementError, EvidenceError
from cloister.evidence.nvidia import (
    MAX_EVIDENCE,
    DeviceEvidence,
    DeviceReport,
    encode_device_evidence,
    parse_device_evidence,
    parse_sdk_evidence,
    read_raw_evidence,
    split_pem,
)
from cloister.evidence.nvidia_fields import NAMES, read_fields
from cloister.evidence.spdm import MAX_REPORT, parse_report
from simulated_nvidia import NONCE, machine, reports, with_fields
from spec_vectors import spec_vectors

REQUEST = b"\x11\xe0\x01\xff" + NONCE + b"\0"


def block(index: int, value: bytes = bytes(48), *, specification: int = 1, kind: int = 1) -> bytes:
    return struct.pack("<BBHBH", index, specification, len(value) + 3, kind, len(value)) + value


def field(number: int, value: bytes) -> bytes:
    return struct.pack("<HH", number, len(value)) + value


def spdm(
    record: bytes = block(1) + block(2, b"\x01" * 48),
    opaque: bytes = field(3, b"1.0\0"),
    *,
    request: bytes = REQUEST,
    head: bytes = b"\x11\x60\x00\x00",
    blocks: int = 2,
    signature: bytes = bytes(96),
) -> bytes:
    length = len(record).to_bytes(3, "little")
    tail = bytes(32) + struct.pack("<H", len(opaque)) + opaque + signature
    return request + head + bytes([blocks]) + length + record + tail


def test_a_report_is_read_into_its_parts() -> None:
    data = spdm()
    report = parse_report(data)
    assert (report.nonce, report.slot, report.parameters) == (NONCE, 0, (0, 0))
    assert [(one.index, one.kind, one.value[:1]) for one in report.measurements] == [
        (1, 1, b"\0"),
        (2, 1, b"\1"),
    ]
    assert report.opaque == ((3, b"1.0\0"),)
    assert report.signed + report.signature == data


MALFORMED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends at byte 0"),
    "another version": (spdm(request=b"\x12" + REQUEST[1:]), "not with GET_MEASUREMENTS"),
    "another request": (spdm(request=b"\x11\x84" + REQUEST[2:]), "not with GET_MEASUREMENTS"),
    "an unsigned request": (spdm(request=b"\x11\xe0\x00\xff" + REQUEST[4:]), "all measurements, signed"),
    "one measurement alone": (spdm(request=b"\x11\xe0\x01\x01" + REQUEST[4:]), "all measurements, signed"),
    "a slot beyond seven": (spdm(request=REQUEST[:-1] + b"\x08"), "slot 8"),
    "an error instead of an answer": (spdm(head=b"\x11\x7f\x01\x00"), "not MEASUREMENTS"),
    "another specification": (spdm(block(1, specification=2), blocks=1), "not of the DMTF specification"),
    "an index twice": (spdm(block(1) + block(1)), "index 1 twice"),
    "index zero": (spdm(block(0) + block(1)), "index 0 twice, or where none may be"),
    "fewer blocks than counted": (spdm(block(1), blocks=2), "ends at byte"),
    "more blocks than counted": (spdm(block(1) + block(2), blocks=1), "bytes behind its end"),
    "no measurements": (spdm(b"", blocks=0), "no measurements"),
    "a block whose value is shorter than it says": (
        spdm(struct.pack("<BBHBH", 1, 1, 10, 1, 48) + bytes(7), blocks=1),
        "ends at byte",
    ),
    "an opaque field twice": (spdm(opaque=field(3, b"1") + field(3, b"2")), "field 3 twice"),
    "an opaque field that is cut off": (spdm(opaque=field(3, b"1.0")[:-1]), "ends at byte"),
    "a signature that is cut off": (spdm(signature=bytes(95)), "ends at byte"),
    "something behind the signature": (spdm() + b"\0", "behind its end"),
    "too long": (bytes(MAX_REPORT + 1), "over its bound"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_report_is_refused(name: str) -> None:
    data, message = MALFORMED[name]
    with pytest.raises(EvidenceError, match=message):
        parse_report(data)


def test_every_prefix_of_a_report_is_refused() -> None:
    data = spdm()
    for length in range(len(data)):
        with pytest.raises(EvidenceError):
            parse_report(data[:length])


@pytest.mark.parametrize("kind", ["gpu", "nvswitch"])
def test_unknown_opaque_fields_are_reported_and_never_take_a_name(kind: Any) -> None:
    known = {3: b"1.0\0", 6: b"96.00.00.00.01" if kind == "nvswitch" else bytes(8), 200: b"\x01\x02"}
    report = parse_report(spdm(opaque=b"".join(field(*item) for item in known.items())))
    fields = read_fields(report, kind)
    assert fields.details["unknown_200"] == "0102"
    assert not any(name.startswith("unknown") for name in NAMES[kind].values())


def test_one_id_means_different_things_for_gpus_and_switches() -> None:
    report = parse_report(spdm(opaque=field(3, b"1.0") + field(6, bytes(8)) + field(22, b"\x01" * 8)))
    assert read_fields(report, "gpu").pdis == {"01" * 8}
    switch = parse_report(spdm(opaque=field(6, b"96.10.55.00.01") + field(22, b"\x01" * 8)))
    assert read_fields(switch, "nvswitch").text("device_pdi") == "01" * 8
    assert read_fields(switch, "nvswitch").pdis == frozenset()


FIELDS: dict[str, tuple[dict[int, bytes | None], str]] = {
    "no driver version": ({3: None}, "names no driver version"),
    "a driver version that is no text": ({3: b"\x1b[2J"}, "not a short printable text"),
    "a driver version of 65 characters": ({3: b"1" * 65}, "not a short printable text"),
    "a VBIOS version of seven bytes": ({6: bytes(7)}, "7 bytes long"),
    "a FWID of 47 bytes": ({20: bytes(47)}, "47 bytes long"),
    "an unknown protected PCIe status": ({21: b"\x00"}, "means nothing"),
    "fields of a version that is not known": ({34: b"\x02\x00"}, "up to 1 is known here"),
    "an unknown feature flag": ({36: b"\x03\x00"}, "feature flag is 3"),
    "flag and status that contradict each other": ({36: b"\x02\x00"}, "contradict each other"),
    "status and flag that contradict each other": ({21: b"\xaa"}, "contradict each other"),
    "a list of switches that is cut off": ({22: bytes(9)}, "cut off"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_that_cannot_be_meant_are_refused(name: str) -> None:
    changes, message = FIELDS[name]
    (shown,) = reports([with_fields(machine().devices[0], changes)])
    with pytest.raises(EvidenceError, match=message):
        read_fields(parse_report(shown.report), "gpu")


def test_the_version_of_a_vbios_is_spelled_as_nvidia_spells_it() -> None:
    opaque = field(3, b"590.12\0") + field(6, bytes.fromhex("00a5009601000000"))
    assert read_fields(parse_report(spdm(opaque=opaque)), "gpu").vbios_version == "96.00.A5.00.01"


def test_our_own_form_goes_round() -> None:
    evidence = DeviceEvidence(devices=reports(machine().devices))
    assert parse_device_evidence(encode_device_evidence(evidence)) == evidence


def _own(change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(encode_device_evidence(DeviceEvidence(devices=reports(machine().devices))))
    change(document)
    return json.dumps(document).encode()


OWN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not JSON"),
    "another format": (_own(lambda d: d.update(format="cloister/device-evidence/v2")), "form it should"),
    "an unknown field": (_own(lambda d: d.update(trusted=True)), "form it should"),
    "no devices": (_own(lambda d: d.update(devices=[])), "0 devices"),
    "65 devices": (_own(lambda d: d.update(devices=[{**d["devices"][0], "report": ""}] * 65)), "65 devices"),
    "a device of another kind": (_own(lambda d: d["devices"][0].update(kind="dpu")), "form it should"),
    "a lone certificate": (_own(lambda d: d["devices"][0].update(certificates=[""])), "has 1 certificates"),
    "nine certificates": (
        _own(lambda d: d["devices"][0].update(certificates=[""] * 9)),
        "has 9 certificates",
    ),
    "a huge certificate": (
        _own(lambda d: d["devices"][0]["certificates"].append(base64.b64encode(bytes(8193)).decode())),
        "over its bound",
    ),
    "a huge report": (
        _own(lambda d: d["devices"][0].update(report=base64.b64encode(bytes(MAX_REPORT + 1)).decode())),
        "over its bound",
    ),
    "more than a mebibyte": (b" " * (MAX_EVIDENCE + 1), "over its bound"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_bent_document_of_our_own_form_is_refused(name: str) -> None:
    data, message = OWN[name]
    with pytest.raises(EvidenceError, match=message):
        parse_device_evidence(data)


def pem(*ders: bytes) -> str:
    return "".join(
        f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(der).decode()}-----END CERTIFICATE-----\n"
        for der in ders
    )


def sdk(**changes: Any) -> bytes:
    (device,) = reports(machine().devices[:1])
    item = {
        "arch": "HOPPER",
        "certificate": base64.b64encode(pem(*device.certificates).encode()).decode(),
        "evidence": base64.b64encode(device.report).decode(),
        "nonce": NONCE.hex(),
        "driver_version": "a claim that nobody keeps",
    }
    return json.dumps([{**item, **changes}]).encode()


def test_the_form_of_nvidias_sdk_is_read_without_its_claims() -> None:
    (device,) = parse_sdk_evidence(sdk()).devices
    assert device == reports(machine().devices[:1])[0]


SDK: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"[", "not JSON"),
    "an object": (b"{}", "is a list"),
    "a list of numbers": (b"[1]", "is an object"),
    "no devices": (b"[]", "0 devices"),
    "no report": (sdk(evidence=None), "no text 'evidence'"),
    "an unknown architecture": (sdk(arch="VOLTA"), "not known here"),
    "a report that is not base64": (sdk(evidence="*"), "not base64"),
    "a chain that is not base64": (sdk(certificate="é"), "not base64"),
    "a chain that is not PEM": (sdk(certificate="AAAA"), "not PEM"),
    "another nonce than the report's": (sdk(nonce=bytes(32).hex()), "another nonce than its report"),
}


@pytest.mark.parametrize("name", SDK)
def test_bent_sdk_evidence_is_refused(name: str) -> None:
    data, message = SDK[name]
    with pytest.raises(EvidenceError, match=message):
        parse_sdk_evidence(data)


def test_a_raw_report_is_read_in_binary_and_in_hexadecimal() -> None:
    (device,) = reports(machine().devices[:1])
    chain = pem(*device.certificates).encode()
    binary = read_raw_evidence(device.report, chain)
    assert (
        binary
        == read_raw_evidence(device.report.hex().encode() + b"\n", chain)
        == DeviceEvidence(devices=(device,))
    )
    with pytest.raises(EvidenceError, match="over its bound"):
        read_raw_evidence(bytes(MAX_REPORT * 3), chain)


@pytest.mark.parametrize(
    "text",
    ["", "x", pem(b"1") + "x", "x" + pem(b"1"), pem(*[b"1"] * 9), pem(b"1").replace("MQ==", "MQ="), "\xff"],
    ids=["nothing", "no PEM", "a rest", "a preface", "nine", "bad base64", "no ASCII"],
)
def test_a_chain_with_anything_but_certificates_is_refused(text: str) -> None:
    if not text:
        assert split_pem(b"") == ()
        return
    with pytest.raises(EvidenceError, match="PEM"):
        split_pem(text.encode("latin-1"))


def test_a_certificate_of_no_known_chip_leads_to_no_manifest() -> None:
    (device,) = reports(machine().devices[:1])
    shorter = DeviceReport(kind="gpu", report=device.report, certificates=device.certificates[1:])
    with pytest.raises(EndorsementError, match="4 certificates"):
        rim_ids(shorter)
    with pytest.raises(EndorsementError, match="no chip known here"):
        chip_of(read_certificate(device.certificates[3]))


def test_a_manifest_id_is_never_an_address_of_the_attackers_choice() -> None:
    (device,) = reports([with_fields(machine().devices[0], {3: b"../../evil?x="})])
    with pytest.raises(EndorsementError, match="cannot be one"):
        rim_ids(device)


def test_the_vector_of_the_specification_is_read_as_it_says() -> None:
    vector = spec_vectors("nvidia.md")
    report = parse_report(bytes.fromhex(vector["report"]))
    fields = read_fields(report, "gpu")
    assert report.nonce.hex() == vector["nonce"]
    assert {str(one.index): one.value.hex() for one in report.measurements} == vector["measurements"]
    assert (fields.driver_version, fields.vbios_version, fields.mode) == (
        vector["driver_version"],
        vector["vbios_version"],
        vector["mode"],
    )
