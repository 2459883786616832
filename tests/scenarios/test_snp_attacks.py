"""Named attacks on SEV-SNP evidence, put to the whole appraisal: each is refused by its own check.

The simulated vendor signs whatever an attack needs, so every report here is genuine but for the one thing named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cloister import merkle
from cloister.appraisal.policy import load_policy
from cloister.appraisal.reference_snp import observed_snp
from cloister.attester.simulation.snp import STRICT_POLICY
from cloister.endorsements.roots import AMD_ROOTS
from cloister.endorsements.x509 import read_certificate
from cloister.errors import (
    AppraisalRefused,
    BindingMismatch,
    CloisterError,
    EndorsementError,
    EvidenceError,
    PolicyError,
    StaleNonce,
    VerificationError,
)
from cloister.evidence.binding import report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof
from cloister.evidence.snp import POLICY_BITS, TcbVersion
from cloister.verifier.snp import verify
from cloister.verifier.trail import Trail
from simulated_evidence import KEYS, LAUNCH, NONCE, NOW
from simulated_snp import (
    DAY,
    Shown,
    chip,
    claims_of,
    honest_window,
    judge,
    platform,
    policy,
    policy_text,
    revocation_list,
    stranger,
)
from snp_vectors import NOW as CAPTURED
from snp_vectors import VLEK, endorsements, report

LOW = TcbVersion(bootloader=3, tee=0, snp=8, microcode=115)
"""Milan's firmware before its fixes of 2024."""


def with_bit(name: str) -> dict[str, Any]:
    return {"policy": STRICT_POLICY | 1 << POLICY_BITS[name]}


@dataclass(frozen=True)
class Attack:
    name: str
    show: Callable[[], Shown]
    error: type[CloisterError]
    says: str
    policy: dict[str, Any] = field(default_factory=dict)
    """What the victim's policy has otherwise."""
    now: int = NOW


def downgraded() -> Shown:
    """The host committed old firmware and has its key's certificate: all of it is genuine, and old."""
    old = chip(tcb=LOW)
    changes = dict.fromkeys(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), LOW)
    return Shown(changes=changes, signer=old, endorsements={"signing_key": old.certificates["vcek"]})


def old_tcb(which: str) -> Shown:
    return Shown(changes={which: LOW})


def another_chip() -> Shown:
    """A report of the honest chip signed by another chip's key."""
    other = chip(hwid=b"\x42" * 64)
    return Shown(signer=other, endorsements={"signing_key": other.certificates["vcek"]})


def another_tcb() -> Shown:
    """The same chip's key of another TCB than the report names."""
    other = chip(tcb=LOW)
    return Shown(signer=other, endorsements={"signing_key": other.certificates["vcek"]})


def another_family() -> Shown:
    """A genuine Genoa chain and key for a report that says it is Milan's."""
    genoa = platform("genoa")
    return Shown(product="genoa", changes={"cpuid": platform().chip.cpuid}, signer=genoa)


def foreign_chain() -> Shown:
    """Milan's VCEK under Genoa's authorities."""
    genoa = platform("genoa")
    return Shown(endorsements={"intermediate": genoa.vendor.ask, "root": genoa.vendor.ark})


def foreign_intermediate() -> Shown:
    return Shown(endorsements={"intermediate": platform("genoa").vendor.ask})


def strangers() -> Shown:
    """All of it from a vendor that nobody trusts."""
    other = stranger()
    parts = other.endorsements(NOW)
    return Shown(
        signer=other,
        changes={"chip_id": other.chip.chip_id},
        endorsements={
            "signing_key": parts.signing_key,
            "intermediate": parts.intermediate,
            "root": parts.root,
            "crl": parts.crl,
        },
    )


def strangers_key() -> Shown:
    """A key that the honest intermediate did not sign."""
    other = stranger()
    return Shown(
        signer=other,
        changes={"chip_id": other.chip.chip_id},
        endorsements={"signing_key": other.certificates["vcek"]},
    )


def strangers_list() -> Shown:
    return Shown(endorsements={"crl": revocation_list(vendor=stranger())})


def revoked(part: str, kind: Any = "vcek") -> Shown:
    parts = platform().endorsements(NOW, kind)
    return Shown(kind=kind, revoked=(read_certificate(getattr(parts, part)).serial,))


def vlek_as_vcek() -> Shown:
    """A cloud's VLEK signs a report that says the chip's own key did."""
    cloud = chip()
    cloud.keys["vcek"] = platform().keys["vlek"]
    parts = platform().endorsements(NOW, "vlek")
    return Shown(
        signer=cloud,
        endorsements={"signing_key": parts.signing_key, "intermediate": parts.intermediate},
    )


ATTACKS = [
    Attack("debug", lambda: Shown(changes=with_bit("debug")), VerificationError, "debugging"),
    Attack("vmpl-1", lambda: Shown(changes={"vmpl": 1}), AppraisalRefused, "VMPL 1, above 0"),
    Attack("vmpl-3", lambda: Shown(changes={"vmpl": 3}), AppraisalRefused, "VMPL 3"),
    Attack(
        "vmpl-above-what-the-policy-accepts",
        lambda: Shown(changes={"vmpl": 2}),
        AppraisalRefused,
        "VMPL 2, above 1",
        policy={"max_vmpl": 1},
    ),
    Attack(
        "asked-for-by-the-host",
        lambda: Shown(patches={0x30: b"\xff" * 4}),
        EvidenceError,
        "the guest did not ask for it",
    ),
    Attack("downgraded-tcb", downgraded, AppraisalRefused, "reported TCB has bootloader 3, below 4"),
    *(
        Attack(
            f"old-{which}-tcb",
            lambda which=which: old_tcb(f"{which}_tcb"),
            AppraisalRefused,
            f"the {which} TCB",
        )
        for which in ("committed", "launch", "current")
    ),
    Attack(
        "old-firmware",
        lambda: Shown(changes={"current_version": (1, 54, 99)}),
        AppraisalRefused,
        "current firmware is 1.54.99",
    ),
    Attack(
        "firmware-not-committed",
        lambda: Shown(changes={"committed_version": (1, 54, 99)}),
        AppraisalRefused,
        "committed firmware is 1.54.99",
    ),
    Attack("vcek-revoked", lambda: revoked("signing_key"), VerificationError, "SEV-VCEK"),
    Attack("vlek-revoked", lambda: revoked("signing_key", "vlek"), VerificationError, "SEV-VLEK"),
    Attack("ask-revoked", lambda: revoked("intermediate"), VerificationError, "SEV-Milan"),
    Attack("asvk-revoked", lambda: revoked("intermediate", "vlek"), VerificationError, "SEV-VLEK-Milan"),
    Attack("wrong-root", strangers, VerificationError, "the chain ends in root"),
    Attack("key-of-another-vendor", strangers_key, VerificationError, "signature of SEV-VCEK"),
    Attack("revocation-list-of-another-vendor", strangers_list, EndorsementError, "revocation list"),
    Attack("wrong-familys-chain", foreign_chain, VerificationError, "the chain ends in root"),
    Attack(
        "wrong-familys-intermediate", foreign_intermediate, EndorsementError, "no intermediate of ARK-Milan"
    ),
    Attack("wrong-familys-processor", another_family, VerificationError, "another family"),
    Attack("vcek-of-another-chip", another_chip, VerificationError, "the report is of chip"),
    Attack("vcek-of-another-tcb", another_tcb, VerificationError, "its VCEK is of bootloader 3"),
    Attack("vlek-passed-off-as-vcek", vlek_as_vcek, VerificationError, "that a VCEK signed it, not a VLEK"),
    Attack(
        "signed-by-another-key",
        lambda: Shown(signer=chip()),
        VerificationError,
        "signature of the SEV-SNP report",
    ),
    Attack(
        "chip-key-masked",
        lambda: Shown(changes={"mask_chip_key": True}),
        VerificationError,
        "key is masked",
    ),
    Attack(
        "chip-id-masked",
        lambda: Shown(changes={"chip_id": bytes(64)}),
        AppraisalRefused,
        "hides which chip",
    ),
    Attack(
        "migration-agent", lambda: Shown(changes=with_bit("migrate_ma")), AppraisalRefused, "migration agent"
    ),
    Attack(
        "bound-to-a-migration-agent",
        lambda: Shown(changes={"report_id_ma": b"\x17" * 32}),
        AppraisalRefused,
        "migration agent",
    ),
    Attack("smt-allowed", lambda: Shown(changes=with_bit("smt")), AppraisalRefused, "hyper-threading"),
    Attack(
        "smt-on-the-machine",
        lambda: Shown(changes={"platform_info": 0x25}),
        AppraisalRefused,
        "hyper-threading",
    ),
    Attack("cxl", lambda: Shown(changes=with_bit("cxl_allow")), AppraisalRefused, "CXL"),
    Attack(
        "several-sockets",
        lambda: Shown(changes={"policy": STRICT_POLICY & ~(1 << POLICY_BITS["single_socket"])}),
        AppraisalRefused,
        "several sockets",
    ),
    Attack(
        "lower-abi",
        lambda: Shown(changes={"policy": STRICT_POLICY & ~0xFF | 54}),
        AppraisalRefused,
        "ABI 1.54, below 1.55",
    ),
    Attack(
        "aliases-not-looked-for",
        lambda: Shown(changes={"platform_info": 0x04}),
        AppraisalRefused,
        "ALIAS_CHECK_COMPLETE",
    ),
    Attack(
        "hardening-left-out",
        Shown,
        AppraisalRefused,
        "does not demand rapl_dis",
        policy={"hardening": ["rapl_dis"]},
    ),
    Attack("no-revocation-list", lambda: Shown(revoked=None), EndorsementError, "no revocation list"),
    Attack(
        "old-revocation-list",
        lambda: Shown(endorsements={"crl": revocation_list(age_days=31)}),
        EndorsementError,
        "revocation list ended",
    ),
    Attack(
        "revocation-list-of-the-future",
        lambda: Shown(endorsements={"crl": revocation_list(age_days=-2)}),
        EndorsementError,
        "after now",
    ),
    Attack(
        "certificates-of-the-future",
        Shown,
        EndorsementError,
        "after now",
        now=honest_window().issued - 1,
    ),
    Attack(
        "certificates-that-ended",
        lambda: Shown(endorsements={"crl": revocation_list(age_days=-8 * 365)}),
        EndorsementError,
        "SEV-VCEK ended",
        now=NOW + 8 * 365 * DAY,
    ),
    Attack(
        "another-measurement",
        lambda: Shown(changes={"measurement": b"\x13" * 48}),
        AppraisalRefused,
        "measurement is 1313",
    ),
    Attack(
        "host-data", lambda: Shown(changes={"host_data": b"\x07" * 32}), AppraisalRefused, "host_data is 0707"
    ),
    Attack(
        "other-host-data",
        lambda: Shown(changes={"host_data": b"\x07" * 32}),
        AppraisalRefused,
        "host_data is 0707",
        policy={"host_data": ["08" * 32]},
    ),
    Attack(
        "id-key", lambda: Shown(changes={"id_key_digest": b"\x07" * 48}), AppraisalRefused, "id_key_digest"
    ),
    Attack(
        "author-key",
        lambda: Shown(changes={"author_key_digest": b"\x07" * 48, "author_key_enabled": True}),
        AppraisalRefused,
        "author_key_digest",
    ),
    Attack(
        "author-key-enabled-without-digest",
        lambda: Shown(changes={"author_key_enabled": True}),
        AppraisalRefused,
        "author key",
    ),
    Attack("family-id", lambda: Shown(changes={"family_id": b"\x01" * 16}), AppraisalRefused, "family_id"),
    Attack("image-id", lambda: Shown(changes={"image_id": b"\x01" * 16}), AppraisalRefused, "image_id"),
    Attack("guest-svn", lambda: Shown(changes={"guest_svn": 4}), AppraisalRefused, "guest_svn is 4"),
    Attack(
        "old-guest",
        lambda: Shown(changes={"guest_svn": 4}),
        AppraisalRefused,
        "guest_svn is 4, below 5",
        policy={"min_guest_svn": 5},
    ),
    Attack(
        "vlek-where-only-vceks-are-accepted",
        lambda: Shown(kind="vlek"),
        AppraisalRefused,
        "signed by a VLEK",
        policy={"signing_keys": ["vcek"]},
    ),
    Attack(
        "reserved-bytes-with-a-meaning",
        lambda: Shown(patches={0x4C: b"\x01"}),
        EvidenceError,
        "reserved bytes",
    ),
    Attack(
        "reserved-policy-bit",
        lambda: Shown(changes={"policy": STRICT_POLICY | 1 << 26}),
        EvidenceError,
        "reserved bits 0x4000000",
    ),
    Attack(
        "reserved-platform-bit",
        lambda: Shown(changes={"platform_info": 1 << 6}),
        EvidenceError,
        "platform information",
    ),
    Attack("unsigned", lambda: Shown(patches={0x48: b"\x1c"}), EvidenceError, "not signed"),
    Attack("unknown-signer", lambda: Shown(patches={0x48: b"\x08"}), EvidenceError, "unknown kind of key"),
    Attack(
        "unknown-algorithm", lambda: Shown(patches={0x34: b"\x02"}), EvidenceError, "signature algorithm 2"
    ),
    Attack("unknown-version", lambda: Shown(patches={0: b"\x06"}), EvidenceError, "version 6"),
    Attack(
        "unknown-processor",
        lambda: Shown(changes={"cpuid": (0x1A, 0x50, 0)}),
        EvidenceError,
        "unknown processor",
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused_by_the_check_that_it_is_about(attack: Attack) -> None:
    shown = attack.show()
    # The victim trusts the honest Milan vendor; where the attacker shows another family's evidence, that one's too.
    victim = policy(Shown(product=shown.product, kind=shown.kind), **attack.policy)
    with pytest.raises(attack.error) as caught:
        judge(shown.bundle(), victim, now=attack.now)
    assert type(caught.value) is attack.error
    assert attack.says in str(caught.value)


@pytest.mark.parametrize("kind", ["vcek", "vlek"])
@pytest.mark.parametrize("version", [2, 3, 5])
@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_an_honest_guest_of_every_form_gives_its_keys(product: str, version: int, kind: Any) -> None:
    shown = Shown(product=product, version=version, kind=kind)
    result = judge(shown.bundle(), policy(shown))
    assert result.keys == KEYS
    assert result.claims.simulated
    assert result.claims.tcb_status is None
    assert {check.number for check in result.checks} == set(range(1, 18))
    expected = {"chip_id": platform(product).chip.chip_id.hex()} if kind == "vcek" else {}
    assert result.claims.hardware == expected


PERMISSIONS = {
    "allow_smt": with_bit("smt"),
    "allow_migration_agent": with_bit("migrate_ma"),
    "allow_cxl": with_bit("cxl_allow"),
    "allow_multi_socket": {"policy": STRICT_POLICY & ~(1 << POLICY_BITS["single_socket"])},
    "allow_masked_chip_id": {"chip_id": bytes(64)},
}


@pytest.mark.parametrize("name", PERMISSIONS)
def test_what_the_policy_permits_in_words_is_accepted(name: str) -> None:
    shown = Shown(changes=PERMISSIONS[name])
    assert judge(shown.bundle(), policy(**{name: True})).keys == KEYS


ACCEPTED = {
    "max_vmpl": ({"vmpl": 2}, 2),
    "alias_check": ({"platform_info": 0x04}, "any"),
    "host_data": ({"host_data": b"\x07" * 32}, ["07" * 32]),
    "id_key_digest": ({"id_key_digest": b"\x07" * 48}, ["07" * 48]),
    "family_id": ({"family_id": b"\x07" * 16}, "any"),
    "image_id": ({"image_id": b"\x07" * 16}, ["07" * 16]),
    "author_key_digest": ({"author_key_digest": b"\x07" * 48, "author_key_enabled": True}, ["07" * 48]),
    "min_guest_svn": ({"guest_svn": 4}, 4),
    "hardening": ({"policy": STRICT_POLICY | 1 << POLICY_BITS["rapl_dis"]}, ["rapl_dis"]),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_the_policy_lists_is_accepted(name: str) -> None:
    changes, value = ACCEPTED[name]
    assert judge(Shown(changes=changes).bundle(), policy(**{name: value})).keys == KEYS


@pytest.mark.parametrize("name", [*PERMISSIONS, *ACCEPTED])
def test_the_fields_observed_from_evidence_accept_it(name: str) -> None:
    changes = {**PERMISSIONS, **{key: value[0] for key, value in ACCEPTED.items()}}[name]
    shown = Shown(changes=changes)
    fields = observed_snp(claims_of(shown))
    rule = load_policy(
        policy_text(fields, roots=f'simulated = "{platform().root_sha256}"'), name="from evidence"
    )
    assert judge(shown.bundle(), rule).keys == KEYS
    # And they are no wider than they have to be: hardening asks for more, all others permit more.
    narrower = (Shown(), rule) if name == "hardening" else (shown, policy())
    with pytest.raises(AppraisalRefused):
        judge(narrower[0].bundle(), narrower[1])


def test_a_missing_revocation_list_is_accepted_only_in_words_and_said() -> None:
    shown = Shown(revoked=None)
    result = judge(shown.bundle(), policy(revocation="unchecked"))
    assert result.claims.details["revocation"] == "not checked"
    assert any("NOT checked" in check.outcome for check in result.checks)


def test_a_revoked_key_is_refused_although_revocation_need_not_be_checked() -> None:
    with pytest.raises(VerificationError, match="revoked"):
        judge(revoked("intermediate").bundle(), policy(revocation="unchecked"))


def other_nonce() -> EvidenceBundle:
    return Shown().bundle(nonce_proof=NonceProof(index=0, size=2, path=(merkle.leaf_hash(b"other"),)))


ON_THE_BUNDLE: dict[str, tuple[Callable[[], EvidenceBundle], type[CloisterError]]] = {
    "keys-exchanged-after-the-report": (lambda: Shown().bundle(key_material=b"mallory's"), BindingMismatch),
    "a-proof-that-leads-to-another-root": (other_nonce, BindingMismatch),
    "a-proof-out-of-its-tree": (
        lambda: Shown().bundle(nonce_proof=NonceProof(index=1, size=1, path=())),
        StaleNonce,
    ),
    "report-data-of-another-workload": (
        lambda: Shown(changes={"report_data": b"\x55" * 64}).bundle(),
        BindingMismatch,
    ),
    "an-old-report-replayed": (
        lambda: Shown(changes={"report_data": bytes(64)}).bundle(),
        BindingMismatch,
    ),
    "device-evidence-that-nobody-asked-for": (lambda: Shown().bundle(device_evidence=b"{}"), BindingMismatch),
    "a-truncated-report": (lambda: Shown().bundle(quote=Shown().quote()[:-1]), EvidenceError),
    "a-longer-report": (lambda: Shown().bundle(quote=Shown().quote() + b"\0"), EvidenceError),
    "a-report-in-a-trust-domains-place": (lambda: Shown().bundle(tee="tdx"), AppraisalRefused),
    "no-endorsements": (lambda: Shown().bundle(endorsements=b""), EndorsementError),
    "endorsements-that-are-not-json": (lambda: Shown().bundle(endorsements=b"\x30\x82"), EndorsementError),
}


@pytest.mark.parametrize("attack", ON_THE_BUNDLE)
def test_an_attack_on_the_bundle_is_refused_with_its_own_error(attack: str) -> None:
    build, error = ON_THE_BUNDLE[attack]
    with pytest.raises(error) as caught:
        judge(build(), policy())
    assert type(caught.value) is error


def test_a_report_for_another_nonce_is_refused() -> None:
    with pytest.raises(BindingMismatch):
        judge(Shown().bundle(), policy(), nonce=bytes(32))


def test_the_simulated_machine_attests_like_any_other() -> None:
    tee = platform().tee(launch=LAUNCH, clock=lambda: NOW)
    evidence = tee.quote(report_data(merkle.root([NONCE]), KEYS))
    bundle = Shown().bundle(quote=evidence.quote, endorsements=evidence.endorsements)
    rule = policy(measurement=[tee.measurements["measurement"].hex()])
    assert judge(bundle, rule).keys == KEYS


def test_a_policy_for_hardware_never_accepts_the_simulation() -> None:
    fields = dict(observed_snp(claims_of(Shown())))
    with pytest.raises(VerificationError, match="not in AMD ARK-Milan"):
        judge(Shown().bundle(), load_policy(policy_text(fields), name="hardware"))


def test_a_captured_report_is_refused_where_the_simulation_is_trusted() -> None:
    bundle = Shown().bundle(quote=report(VLEK), endorsements=endorsements(VLEK))
    with pytest.raises(VerificationError, match="not in simulated root"):
        judge(bundle, policy(signing_keys=["vlek"], revocation="unchecked"), now=CAPTURED)


def test_the_root_of_one_vendor_is_not_that_of_another() -> None:
    with pytest.raises(VerificationError, match="the chain ends in root"):
        judge(Shown().bundle(), policy(root=stranger().root_sha256))


def test_a_machine_that_the_owner_does_not_guard_is_refused() -> None:
    text = policy_text(
        dict(observed_snp(claims_of(Shown()))), roots=f'simulated = "{platform().root_sha256}"'
    )
    listed = f'[hardware]\nchip_id = ["{platform().chip.chip_id.hex()}"]\n'
    assert judge(Shown().bundle(), load_policy(text + listed, name="mine")).keys == KEYS
    rule = load_policy(text + f'[hardware]\nchip_id = ["{"42" * 64}"]\n', name="other")
    with pytest.raises(AppraisalRefused, match="chip_id is"):
        judge(Shown().bundle(), rule)


def test_under_a_vlek_no_allow_list_of_chips_can_be_met() -> None:
    shown = Shown(kind="vlek", changes={"chip_id": platform().chip.chip_id})
    fields = dict(observed_snp(claims_of(shown)))
    text = policy_text(fields, roots=f'simulated = "{platform().root_sha256}"')
    rule = load_policy(text + f'[hardware]\nchip_id = ["{platform().chip.chip_id.hex()}"]\n', name="mine")
    with pytest.raises(AppraisalRefused, match="lists machines"):
        judge(shown.bundle(), rule)


def test_no_vendor_root_is_a_simulated_one() -> None:
    bundle = Shown().bundle()
    with pytest.raises(VerificationError, match="the chain ends in root"):
        verify(bundle.quote, bundle.endorsements, roots=AMD_ROOTS, now=NOW, revocation_required=True)


def test_a_policy_cannot_name_a_vendors_root_as_simulated() -> None:
    with pytest.raises(PolicyError, match="vendor's root"):
        policy(root=AMD_ROOTS[0].sha256)


def test_old_and_new_reports_of_one_guest_are_told_apart_by_the_nonce_alone() -> None:
    """A report has no time in it: what was true a year ago still verifies, and only the binding refuses it."""
    first, rule = Shown(), policy()
    later = Shown(endorsements={"crl": revocation_list(age_days=-29)})
    assert judge(first.bundle(), rule).keys == KEYS
    bundle = first.bundle(endorsements=later.bundle().endorsements)
    assert judge(bundle, rule, now=NOW + 30 * DAY).keys == KEYS
    with pytest.raises(BindingMismatch):
        judge(bundle, rule, now=NOW + 30 * DAY, nonce=b"\x01" * 32)


def test_an_attack_leaves_its_number_on_the_trail() -> None:
    trail = Trail()
    bundle = Shown(changes=with_bit("debug")).bundle()
    with pytest.raises(VerificationError):
        verify(
            bundle.quote, bundle.endorsements, roots=AMD_ROOTS, now=NOW, revocation_required=True, trail=trail
        )
    assert trail.stopped is not None
    assert trail.stopped[0] == 4
    assert [check.number for check in trail.passed] == [3]
