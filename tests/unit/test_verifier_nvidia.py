"""The device verifier on simulated machines: one honest one, and one thing at a time that it has to notice."""

from __future__ import annotations

import dataclasses
import hashlib
import logging

import pytest
from cryptography import x509

import nvidia_vectors as captured
from cloister.attester.simulation.chain import DAY
from cloister.attester.simulation.nvidia import SimulatedGpus
from cloister.attester.simulation.nvidia_chain import (
    COMPOSITE_DEVICE_ID,
    composite_device_id,
    issue,
    issue_device,
)
from cloister.attester.simulation.nvidia_report import golden, rim_document, sign_rim
from cloister.endorsements.nvidia import MAX_RIMS
from cloister.endorsements.roots import NVIDIA_DEVICE_ROOT, NVIDIA_RIM_ROOT
from cloister.errors import AttesterError, CloisterError, EndorsementError, StaleNonce, VerificationError
from cloister.verifier.nvidia import NvidiaRules, verify
from cloister.verifier.nvidia_chain import TCB_INFO
from cloister.verifier.trail import Trail
from simulated_evidence import NOW, seeded
from simulated_nvidia import (
    ISSUED,
    NONCE,
    TODAY,
    Shown,
    authority,
    judge,
    machine,
    neighbour,
    reports,
    show,
    with_fields,
    with_values,
)

FIRST, SECOND = machine().devices


def test_an_honest_machine_verifies_under_the_strictest_rules_with_every_check_shown() -> None:
    trail = Trail()
    claims = judge(show(), trail=trail)
    assert [check.name for check in trail.passed] == [
        "form of device evidence",
        "device chains and signatures",
        "device nonce",
        "one report of each device",
        "device measurements",
        "device revocation",
    ]
    assert {check.number for check in trail.passed} == {16}
    for one, device in zip(claims, machine().devices, strict=True):
        assert (one.kind, one.architecture, one.simulated) == ("gpu", "hopper", True)
        assert (one.matched, one.differing, one.revocation) == (19, (), "checked")
        assert one.rims == ("NV_GPU_DRIVER_GH100_000.00.01", "NV_GPU_VBIOS_0000_0000_000_0000000001")
        assert one.details["pdi"] == device.pdi.hex()
        assert one.issued_at <= NOW < one.expires == ISSUED + 7 * DAY


def test_a_device_is_known_by_its_own_key_and_not_by_its_firmwares() -> None:
    (one,) = judge(show(*reports([FIRST])))
    spki = _spki(FIRST.chain[1].certificate)
    assert one.identity == hashlib.sha256(spki).hexdigest()
    assert one.details["leaf_sha256"] == hashlib.sha256(_spki(FIRST.chain[0].certificate)).hexdigest()


def _spki(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_switches_are_verified_beside_gpus() -> None:
    whole = machine("switched", count=2, switches=2)
    claims = judge(show(of=whole), of=whole)
    assert [one.kind for one in claims] == ["gpu", "gpu", "nvswitch", "nvswitch"]
    assert {one.architecture for one in claims} == {"hopper", "ls10"}
    gpu, switch = claims[0], claims[-1]
    assert gpu.details["mode"] == "ppcie"
    assert set(switch.details["neighbours"].split()) == {one.details["pdi"] for one in claims[:2]}
    assert (switch.driver_version, switch.rims) == ("", ("NV_SWITCH_BIOS_5612_0002_890_0000000002",))


def test_without_a_nonce_the_devices_have_to_agree_on_one() -> None:
    assert judge(show(), nonce=None)
    with pytest.raises(StaleNonce, match="than the others"):
        judge(show(*reports([FIRST]), *reports([SECOND], bytes(32))), nonce=None)


def test_what_is_missing_is_refused_or_reported_as_the_rules_say() -> None:
    bare = show(rims=(), ocsp=())
    lax = NvidiaRules(revocation_required=False, rims_required=False)
    (one, _) = judge(bare, rules=lax)
    assert (one.matched, one.rims, one.revocation) == (0, (), "not checked")
    with pytest.raises(EndorsementError, match=r"NV_GPU_DRIVER_GH100_000\.00\.01 and NV_GPU_VBIOS_0000"):
        judge(bare, rules=NvidiaRules(revocation_required=False))
    with pytest.raises(EndorsementError, match="no OCSP answer"):
        judge(bare, rules=NvidiaRules(rims_required=False))
    half = show(rims=machine().rims[:1])
    with pytest.raises(EndorsementError, match=r"no reference manifest for device 0 \(GH100\): NV_GPU_VBIOS"):
        judge(half)
    assert judge(half, rules=lax)[0].rims == ("NV_GPU_DRIVER_GH100_000.00.01",)


def test_manifests_that_came_along_are_compared_even_where_none_is_required() -> None:
    bent = with_values(FIRST, {9: bytes(48)})
    lax = NvidiaRules(revocation_required=False, rims_required=False)
    assert judge(show(*reports([bent])), rules=lax)[0].differing == ("index 9 (VBIOS Measurement_9)",)
    with pytest.raises(VerificationError, match="the chain ends in root"):
        judge(show(), rules=lax, rim_root="0" * 64)


def test_of_several_manifests_of_one_version_the_one_that_fits_is_taken() -> None:
    values = dict.fromkeys(golden("GH100", (7, 21)), (b"\x07" * 48,))
    other = sign_rim(rim_document("GH100", "GPU", "000.00.01", values), machine().rim_authority.chain)
    for rims in ((other, *machine().rims), (*machine().rims, other)):
        assert judge(show(rims=rims))[0].differing == ()
    assert judge(show(rims=(other, machine().rims[1])))[0].differing == (
        "index 7 (driver Measurement_7)",
        "index 21 (driver Measurement_21)",
    )
    many = tuple(
        sign_rim(
            rim_document("GH100", "GPU", "000.00.01", {7: (bytes([number]) * 48,)}),
            machine().rim_authority.chain,
        )
        for number in range(5)
    )
    with pytest.raises(EndorsementError, match="more than 4 reference manifests"):
        judge(show(rims=(*many, machine().rims[1])))


def test_a_manifest_for_another_product_or_edition_is_not_one_for_this_device() -> None:
    for product, edition in (("GB100", "GPU"), ("GH100", "SWITCH")):
        document = rim_document(product, edition, "000.00.01", golden("GH100", (7, 21)))
        other = sign_rim(document, machine().rim_authority.chain)
        with pytest.raises(EndorsementError, match="no reference manifest"):
            judge(show(rims=(other, machine().rims[1])))


def test_a_signers_grace_is_the_owners_to_give() -> None:
    later = ISSUED + 2 * 365 * DAY + DAY
    lax = NvidiaRules(revocation_required=False)
    with pytest.raises(EndorsementError, match=r"reference manifest GH100 driver 000\.00\.01 ended"):
        judge(show(), now=later, rules=lax)
    graced = judge(show(), now=later, rules=dataclasses.replace(lax, rim_grace=10 * DAY))
    assert graced[0].expires == ISSUED + 2 * 365 * DAY + 10 * DAY


def test_the_clock_before_the_certificates_is_refused() -> None:
    with pytest.raises(EndorsementError, match="not valid before"):
        judge(show(), now=ISSUED - 1)


def _leaf(extensions: dict[x509.ExtensionType, bool], *, authority_: bool = False) -> Shown:
    """The first device with another certificate for its report key."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "GH100 A01 SIMULATED FMC LF")])
    leaf = issue(
        seeded(repr(sorted(map(repr, extensions)))),
        "",
        FIRST.chain[1],
        ISSUED,
        authority=authority_,
        name=name,
        extensions=extensions,
    )
    return show(*reports([dataclasses.replace(FIRST, chain=(leaf, *FIRST.chain[1:]))]))


FWID = FIRST.fields[20]


def _composite(fwid: bytes = FWID, device: int = 1) -> x509.ExtensionType:
    return x509.UnrecognizedExtension(COMPOSITE_DEVICE_ID, composite_device_id(FIRST.chain[device], fwid))


def tcb_info(fwid: bytes = FWID, *, flags: bytes = b"\x80\x00\x00\x01", second: bytes = bytes(48)) -> bytes:
    """DiceTcbInfo as Blackwell's certificates have it."""

    def element(tag: int, content: bytes) -> bytes:
        return (
            bytes([tag])
            + (bytes([len(content)]) if len(content) < 128 else bytes([0x81, len(content)]))
            + content
        )

    algorithm = bytes.fromhex("0609608648016503040202")
    fwids = b"".join(element(0x30, algorithm + element(0x04, digest)) for digest in (fwid, second))
    body = element(0x80, b"NVIDIA") + element(0x81, b"GB100") + element(0x83, b"\x01")
    return element(0x30, body + element(0xA6, fwids) + element(0x87, b"\x00" + flags))


def _tcb(**changes: bytes) -> x509.ExtensionType:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(TCB_INFO), tcb_info(**changes))


FWIDS: dict[str, tuple[dict[x509.ExtensionType, bool], str | None]] = {
    "the older extension": ({_composite(): False}, None),
    "the newer extension": ({_tcb(): False}, None),
    "both, alike": ({_composite(): False, _tcb(): False}, None),
    "neither": ({}, "the FWID in the report of device 0 is not that of its certificate"),
    "another FWID, older": ({_composite(bytes(48)): False}, "is not that of its certificate"),
    "another FWID, newer": ({_tcb(fwid=bytes(48)): False}, "is not that of its certificate"),
    "the right FWID second": ({_tcb(fwid=bytes(48), second=FWID): False}, "is not that of its certificate"),
    "both, unlike": ({_composite(): False, _tcb(fwid=bytes(48)): False}, "names two FWIDs"),
    "another device's key": ({_composite(device=2): False}, "names the key of another device"),
    "firmware in debug": ({_tcb(flags=b"\x10\x00\x00\x00"): False}, "its firmware is in debug"),
    "firmware in recovery": ({_tcb(flags=b"\x20\x00\x00\x00"): False}, "its firmware is in recovery"),
    "firmware not secure": ({_tcb(flags=b"\x40\x00\x00\x00"): False}, "its firmware is not secure"),
    "a critical extension": (
        {_composite(): True},
        "critical extension 2.23.133.5.4.1 that is not understood",
    ),
}


@pytest.mark.parametrize("name", FWIDS)
def test_the_firmware_that_signed_is_the_one_that_was_certified(name: str) -> None:
    extensions, message = FWIDS[name]
    if message is None:
        (one,) = judge(_leaf(extensions))
        assert one.details["certified_fwid"] == FWID.hex()
        return
    with pytest.raises(VerificationError, match=message):
        judge(_leaf(extensions))


@pytest.mark.parametrize("content", [b"", b"\x30\x00", tcb_info()[:-1], tcb_info(fwid=bytes(47))])
def test_a_malformed_fwid_extension_is_refused(content: bytes) -> None:
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(TCB_INFO), content)
    with pytest.raises(CloisterError, match=r"malformed|without a FWID"):
        judge(_leaf({extension: False}))


def test_a_report_without_a_fwid_is_as_good_as_its_chain_and_measurements() -> None:
    """Early Hopper firmware leaves it out, and NVIDIA's own verifiers accept that."""
    (one,) = judge(show(*reports([with_fields(FIRST, {20: None})])))
    assert "fwid" not in one.details
    assert one.details["certified_fwid"] == FWID.hex()


def test_the_key_of_a_report_signs_reports_and_no_certificates() -> None:
    with pytest.raises(VerificationError, match="not one that signs data"):
        judge(_leaf({_composite(): False}, authority_=True))


def test_a_device_that_issues_itself_a_second_device_is_refused() -> None:
    """The device's own key may issue report keys; with a chain of any length it could pass for many devices."""
    device = FIRST.chain[1]
    twin = issue_device(seeded("twin"), device, ISSUED, chip="GH100", pdi=b"\x01" * 8)
    extension = x509.UnrecognizedExtension(COMPOSITE_DEVICE_ID, composite_device_id(twin, FWID))
    leaf = issue(seeded("twin leaf"), "leaf", twin, ISSUED, authority=False, extensions={extension: False})
    forged = dataclasses.replace(FIRST, chain=(leaf, twin, *FIRST.chain[1:]))
    with pytest.raises(VerificationError, match="has 6 certificates, not 5"):
        judge(show(*reports([FIRST, forged])))


def test_what_a_device_is_comes_from_its_certificate() -> None:
    (shown,) = reports([FIRST])
    from cloister.evidence.nvidia import DeviceReport

    claimed = DeviceReport(kind="nvswitch", report=shown.report, certificates=shown.certificates)
    with pytest.raises(VerificationError, match="shown as a nvswitch, and its certificate is of a gpu"):
        judge(show(claimed))
    for chip, message in (("XX100", "no chip known here"), ("GA100", "no chip known here")):
        device = issue_device(seeded(chip), authority().provisioner, ISSUED, chip=chip, pdi=bytes(8))
        extension = x509.UnrecognizedExtension(COMPOSITE_DEVICE_ID, composite_device_id(device, FWID))
        leaf = issue(
            seeded(f"{chip} leaf"), "leaf", device, ISSUED, authority=False, extensions={extension: False}
        )
        other = dataclasses.replace(FIRST, chain=(leaf, device, *FIRST.chain[2:]))
        with pytest.raises(EndorsementError, match=message):
            judge(show(*reports([other])))


def test_a_switch_that_names_another_id_than_its_certificate_is_refused() -> None:
    whole = machine("switched", count=2, switches=2)
    bent = with_fields(whole.devices[2], {22: b"\x01" * 8})
    with pytest.raises(VerificationError, match="is of a switch 0101010101010101"):
        judge(show(*reports([bent]), of=whole), of=whole)


def test_a_certificate_of_another_curve_or_digest_is_refused() -> None:
    from cloister.attester.simulation.chain import issue_root

    other = issue_root(seeded("p256"), ISSUED)
    chain = (*FIRST.chain[:4], other)
    shown = show(*reports([dataclasses.replace(FIRST, chain=chain)]))
    with pytest.raises(VerificationError, match="not one of P-384 and SHA-384"):
        judge(shown, device_root=hashlib.sha256(other.der).hexdigest())


def test_too_many_endorsements_are_refused_before_they_are_read() -> None:
    with pytest.raises(EndorsementError, match="over their bounds"):
        judge(show(rims=(b"",) * (MAX_RIMS + 1)))


def test_a_second_verification_believes_nothing_that_the_first_refused() -> None:
    bent = show(*reports([with_fields(FIRST, {20: bytes(48)})]))
    for _ in range(2):
        with pytest.raises(VerificationError, match="FWID"):
            judge(bent)
        judge(show())
    for _ in range(2):
        with pytest.raises(EndorsementError, match="ended"):
            judge(show(), now=ISSUED + 31 * 365 * DAY)


def test_every_use_says_loudly_that_nothing_is_protected(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="cloister"):
        made = SimulatedGpus.generate(now=NOW, count=1, entropy=seeded("loud"), clock=lambda: NOW)
        raw = made.collect(NONCE)
        judge(Shown(raw.evidence, made.rims, made.ocsp(TODAY)), of=made)
    assert "NOTHING IS PROTECTED" in caplog.text
    assert "SIMULATED GPUS ACCEPTED" in caplog.text
    assert repr(made) == f"SimulatedGpus(device_root_sha256={made.device_root_sha256!r})"


def test_the_simulation_refuses_what_it_cannot_make() -> None:
    for count, switches in ((0, 0), (65, 0), (60, 5)):
        with pytest.raises(AttesterError, match="not 1 to 64"):
            SimulatedGpus.generate(now=NOW, count=count, switches=switches)
    with pytest.raises(AttesterError, match="32 bytes, not 31"):
        machine().collect(bytes(31))


def test_another_machine_of_the_vendor_is_genuine_too() -> None:
    shown = show(*reports([neighbour()]))
    lax = NvidiaRules(revocation_required=False)
    assert judge(shown, rules=lax)[0].details["pdi"] == b"neighbor".hex()
    with pytest.raises(EndorsementError, match="no OCSP answer"):
        judge(shown)


def test_simulated_devices_are_refused_under_nvidias_roots_and_the_other_way_round() -> None:
    with pytest.raises(VerificationError, match="not in NVIDIA Device Identity CA"):
        verify(
            show().evidence,
            show().endorsements,
            nonce=NONCE,
            device_root=NVIDIA_DEVICE_ROOT,
            rim_root=NVIDIA_RIM_ROOT,
            now=NOW,
            rules=NvidiaRules(revocation_required=False, rims_required=False),
        )
    shown = captured.evidence(f"{captured.NVTRUST}/gpu_evidence.json")
    with pytest.raises(VerificationError, match="not in simulated root"):
        judge(show(*shown.devices), nonce=None)
