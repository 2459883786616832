"""Every captured NVIDIA report, chain and manifest, with the outcome that its source states (or its parts allow)."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import nvidia_vectors as captured
from cloister.endorsements.nvidia import ocsp_targets, rim_ids
from cloister.endorsements.rim import read_rim
from cloister.endorsements.roots import NVIDIA_DEVICE_ROOT, NVIDIA_RIM_ROOT, vendor_certificate
from cloister.errors import CloisterError, EndorsementError, EvidenceError, StaleNonce, VerificationError
from cloister.evidence.nvidia import DeviceEvidence, read_raw_evidence
from cloister.evidence.nvidia_fields import read_fields
from cloister.evidence.spdm import parse_report
from cloister.verifier.nvidia import NvidiaRules
from cloister.verifier.nvidia_chain import require_validity
from cloister.verifier.rim import verify_rim
from nvidia_vectors import COCO, DRIVER_RIM, NOW, NVTRUST, SDK, VBIOS_RIM
from shared_data import vectors

# name -> (devices, kind, architecture, driver, VBIOS, mode)
GENUINE = {
    f"{NVTRUST}/gpu_evidence.json": (8, "gpu", "hopper", "590.12", "96.00.A5.00.01", "ppcie"),
    f"{NVTRUST}/switch_evidence.json": (4, "nvswitch", "ls10", "", "96.10.73.00.01", ""),
    f"{SDK}/hopper_evidence.json": (1, "gpu", "hopper", "590.12", "96.00.A5.00.01", "ppcie"),
    f"{SDK}/multi_gpu_hopper.json": (4, "gpu", "hopper", "590.12", "96.00.A5.00.01", "ppcie"),
    f"{SDK}/switch_evidence_ls10.json": (1, "nvswitch", "ls10", "", "96.10.55.00.01", ""),
    "coco": (1, "gpu", "hopper", "550.90.07", "96.00.9F.00.01", "cc"),
}


@pytest.mark.parametrize("name", GENUINE)
def test_every_captured_device_verifies_under_nvidias_root(name: str) -> None:
    count, kind, architecture, driver, vbios, mode = GENUINE[name]
    shown = captured.evidence(name)
    claims = captured.verified(shown, asked=captured.nonce(name))
    assert len(claims) == count == len({one.identity for one in claims})
    for one in claims:
        assert (one.kind, one.architecture, one.driver_version, one.vbios_version) == (
            kind,
            architecture,
            driver,
            vbios,
        )
        assert one.details.get("mode", "") == mode
        assert (one.root_sha256, one.simulated) == (NVIDIA_DEVICE_ROOT.sha256, False)
        # Nothing was at hand to compare or to ask, and the claims say so.
        assert (one.matched, one.differing, one.rims, one.revocation) == (0, (), (), "not checked")


@pytest.mark.parametrize("name", GENUINE)
def test_captured_evidence_answers_its_own_nonce_alone(name: str) -> None:
    with pytest.raises(StaleNonce, match="another nonce"):
        captured.verified(captured.evidence(name), asked=bytes(32))


@pytest.mark.parametrize("name", GENUINE)
def test_the_strictest_rules_refuse_what_cannot_be_compared(name: str) -> None:
    with pytest.raises(EndorsementError, match="no reference manifest for device 0"):
        captured.verified(captured.evidence(name), rules=NvidiaRules(revocation_required=False))
    with pytest.raises(EndorsementError, match="no OCSP answer says whether"):
        captured.verified(captured.evidence(name), rules=NvidiaRules(rims_required=False))


def test_gpus_and_switches_of_one_machine_name_each_other() -> None:
    gpus = captured.evidence(f"{NVTRUST}/gpu_evidence.json").devices
    switches = captured.evidence(f"{NVTRUST}/switch_evidence.json").devices
    claims = captured.verified(DeviceEvidence(devices=gpus + switches))
    ids = {kind: {one.details["pdi"] for one in claims if one.kind == kind} for kind in ("gpu", "nvswitch")}
    for one in claims:
        others = ids["nvswitch" if one.kind == "gpu" else "gpu"]
        assert set(one.details["neighbours"].split()) == others


def test_two_captures_of_different_nonces_are_not_one_machines_evidence() -> None:
    first = captured.evidence(f"{NVTRUST}/gpu_evidence.json").devices[:1]
    second = captured.evidence(f"{SDK}/multi_gpu_hopper.json").devices[1:2]
    with pytest.raises(StaleNonce, match="than the others"):
        captured.verified(DeviceEvidence(devices=first + second))


RIM_IDS = {
    f"{NVTRUST}/gpu_evidence.json": ("NV_GPU_DRIVER_GH100_590.12", "NV_GPU_VBIOS_G520_0200_885_9600A50001"),
    f"{SDK}/switch_evidence_ls10.json": ("NV_SWITCH_BIOS_5612_0002_890_9610550001",),
    "coco": ("NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001"),
}


@pytest.mark.parametrize("name", RIM_IDS)
def test_the_manifests_of_a_device_are_named_as_nvidias_service_has_them(name: str) -> None:
    assert rim_ids(captured.evidence(name).devices[0]) == RIM_IDS[name]


def test_ocsp_is_asked_about_the_certificates_that_nvidias_sdk_asks_about() -> None:
    shown = captured.evidence(f"{NVTRUST}/gpu_evidence.json")
    targets = ocsp_targets(shown, [captured.rim(DRIVER_RIM)])
    names = [x509.load_der_x509_certificate(subject).subject.rfc4514_string() for subject, _ in targets]
    # Eight devices, provisioner, family; the signer of the manifest and its two authorities.
    assert len(targets) == 8 + 2 + 3
    assert sum("GSP BROM" in name for name in names) == 8
    assert not any("FMC LF" in name or "Root CA" in name or "Device Identity CA" in name for name in names)
    for subject, issuer in targets:
        x509.load_der_x509_certificate(subject).verify_directly_issued_by(
            x509.load_der_x509_certificate(issuer)
        )


def test_the_chain_that_is_only_a_root_is_refused() -> None:
    report = vectors(f"{COCO}/hopperAttestationReport.txt").read_bytes()
    chain = vectors(f"{COCO}/hopper_cert_chain_case2.txt").read_bytes()
    with pytest.raises(EvidenceError, match="has 1 certificates"):
        read_raw_evidence(report, chain)


def test_the_shipped_roots_are_the_captured_ones() -> None:
    for root, name in (
        (NVIDIA_DEVICE_ROOT, f"{NVTRUST}/verifier_device_root.pem"),
        (NVIDIA_DEVICE_ROOT, "coco-trustee/nvidia_device_root.pem"),
        (NVIDIA_RIM_ROOT, f"{NVTRUST}/verifier_RIM_root.pem"),
        (NVIDIA_RIM_ROOT, f"{SDK}/rim_root.crt"),
    ):
        der = x509.load_pem_x509_certificate(vectors(name).read_bytes()).public_bytes(Encoding.DER)
        assert der == vendor_certificate(root)
        assert hashlib.sha256(der).hexdigest() == root.sha256


RIMS = {
    DRIVER_RIM: ("GH100 driver 550.144.03", 21, 1798649810),
    VBIOS_RIM: ("GH100 VBIOS 96.00.5E.00.01", 12, 1750584633),
}


@pytest.mark.parametrize("name", RIMS)
def test_a_captured_manifest_is_nvidias(name: str) -> None:
    label, active, expires = RIMS[name]
    verified = verify_rim(captured.rim(name), NVIDIA_RIM_ROOT)
    assert (verified.rim.label, len(verified.rim.measurements)) == (label, active)
    assert verified.chain.expires == expires
    assert verified.rim == read_rim(captured.rim(name))


def test_a_manifest_whose_signer_ended_is_refused_unless_the_owner_gives_it_time() -> None:
    chain = verify_rim(captured.rim(VBIOS_RIM), NVIDIA_RIM_ROOT).chain
    with pytest.raises(EndorsementError, match="ended at 1750584633"):
        require_validity(chain, NOW, what="the manifest")
    require_validity(chain, NOW, what="the manifest", grace=600 * 86_400)
    require_validity(chain, 1750584632, what="the manifest")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("incorrect_signature_driver_rim.xml", VerificationError, "does not hold"),
        ("incorrect_cert_chain_driver_rim.xml", VerificationError, "not in NVIDIA CoRIM signing Root CA"),
    ],
)
def test_a_manifest_that_must_be_refused(name: str, error: type[CloisterError], message: str) -> None:
    with pytest.raises(error, match=message):
        verify_rim(captured.rim(f"{SDK}/{name}"), NVIDIA_RIM_ROOT)


def _hexadecimal(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def test_a_report_is_read_field_by_field_as_nvidias_own_parser_reads_it() -> None:
    """The parsed form is there without its bytes: they are put together from it, and read again."""
    wanted = json.loads(vectors(f"{SDK}/spdm_parsed_output.json").read_text())
    blocks = wanted["MeasurementRecord"]["MeasurementBlocks"]
    record = b""
    for index, block in blocks.items():
        value = _hexadecimal(block["DMTFSpecMeasurementValue"])
        kind, size = block["DMTFSpecMeasurementValueType"], block["DMTFSpecMeasurementValueSize"]
        record += struct.pack("<BBHBH", int(index), 1, size + 3, kind, size) + value
    ids = {name: number for number, name in _OPAQUE.items()}
    opaque = b""
    for name, value in wanted["OpaqueData"]["OpaqueDataField"].items():
        data = _hexadecimal(value) if isinstance(value, str) else struct.pack(f"<{len(value)}I", *value)
        opaque += struct.pack("<HH", ids[name], len(data)) + data
    assert len(record) == wanted["MeasurementRecordLength"]
    # Their output leaves out the two fields that came later: data version 1 and feature flag 0.
    opaque += struct.pack("<HHHHHH", 34, 2, 1, 36, 2, 0)
    assert len(opaque) == wanted["OpaqueLength"]
    response = (
        bytes(int(wanted[name], 16) for name in ("SPDMVersion", "RequestResponseCode", "Param1", "Param2"))
        + bytes([wanted["NumberOfBlocks"]])
        + len(record).to_bytes(3, "little")
        + record
        + _hexadecimal(wanted["Nonce"])
        + struct.pack("<H", len(opaque))
        + opaque
        + _hexadecimal(wanted["Signature"])
    )
    found = parse_report(b"\x11\xe0\x01\xff" + bytes(32) + b"\0" + response)
    assert found.parameters == (int(wanted["Param1"], 16), int(wanted["Param2"], 16))
    assert found.response_nonce == _hexadecimal(wanted["Nonce"])
    assert found.signature == _hexadecimal(wanted["Signature"])
    assert len(found.measurements) == wanted["NumberOfBlocks"]
    for measurement in found.measurements:
        block = blocks[str(measurement.index)]
        assert measurement.kind == block["DMTFSpecMeasurementValueType"]
        assert measurement.value == _hexadecimal(block["DMTFSpecMeasurementValue"])
        assert len(measurement.value) == block["DMTFSpecMeasurementValueSize"]
    fields = read_fields(found, "gpu")
    theirs = wanted["OpaqueData"]["OpaqueDataField"]
    assert len(found.opaque) == len(theirs) + 2
    for number, value in found.opaque[:-2]:
        name = _OPAQUE[number]
        wanted_value = theirs[name]
        if isinstance(wanted_value, list):
            assert value == struct.pack(f"<{len(wanted_value)}I", *wanted_value)
        else:
            assert value == _hexadecimal(wanted_value)
    assert fields.text("measurement_counts") == " ".join(map(str, theirs["OPAQUE_FIELD_ID_MSRSCNT"]))
    assert (fields.driver_version, fields.vbios_version) == ("580.159.03", "96.00.74.00.20")
    assert (fields.text("project"), fields.text("project_sku"), fields.text("chip_sku")) == (
        "1010",
        "0205",
        "862",
    )
    assert (fields.fwid, fields.mode, fields.nvdec0_disabled) == (
        _hexadecimal(theirs["OPAQUE_FIELD_ID_FWID"]),
        "cc",
        True,
    )


_OPAQUE = {
    3: "OPAQUE_FIELD_ID_DRIVER_VERSION",
    4: "OPAQUE_FIELD_ID_GPU_INFO",
    6: "OPAQUE_FIELD_ID_VBIOS_VERSION",
    11: "OPAQUE_FIELD_ID_NVDEC0_STATUS",
    12: "OPAQUE_FIELD_ID_MSRSCNT",
    13: "OPAQUE_FIELD_ID_CPRINFO",
    14: "OPAQUE_FIELD_ID_BOARD_ID",
    15: "OPAQUE_FIELD_ID_CHIP_SKU",
    16: "OPAQUE_FIELD_ID_CHIP_SKU_MOD",
    17: "OPAQUE_FIELD_ID_PROJECT",
    18: "OPAQUE_FIELD_ID_PROJECT_SKU",
    19: "OPAQUE_FIELD_ID_PROJECT_SKU_MOD",
    20: "OPAQUE_FIELD_ID_FWID",
    21: "OPAQUE_FIELD_ID_PROTECTED_PCIE_STATUS",
}
