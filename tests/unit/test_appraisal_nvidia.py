"""``[nvidia]`` of a policy: what it may say, and what it refuses of genuine devices."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import nvidia_vectors as captured
from cloister.appraisal.judge_nvidia import judge_nvidia, observed_nvidia
from cloister.appraisal.policy import load_policy
from cloister.appraisal.reference_nvidia import NvidiaReference, check_nvidia, nvidia_rules
from cloister.encoding import convert
from cloister.errors import AppraisalRefused, FormatError
from cloister.evidence.nvidia import DeviceEvidence
from cloister.verifier.claims import Claims, DeviceClaims
from cloister.verifier.trail import Trail
from simulated_nvidia import judge, machine, show

TABLE: dict[str, Any] = {
    "gpus": 2,
    "architectures": ["hopper"],
    "modes": ["cc"],
    "revocation": "required",
    "rims": "required",
    "driver_versions": ["000.00.01"],
    "minimum_vbios_version": "00.00.00.00.01",
}
SWITCHED: dict[str, Any] = {
    **TABLE,
    "nvswitches": 2,
    "modes": ["ppcie"],
    "switch_bios_versions": ["00.00.00.00.02"],
}


def reference(table: dict[str, Any] | None = None, **changes: Any) -> NvidiaReference:
    """A table with ``changes``; None leaves a field out."""
    fields = {**(table or TABLE), **changes}
    found = convert(
        {name: value for name, value in fields.items() if value is not None}, NvidiaReference, what="[nvidia]"
    )
    check_nvidia(found)
    return found


@cache
def devices(name: str = "honest") -> tuple[DeviceClaims, ...]:
    source = machine() if name == "honest" else machine("switched", count=2, switches=2)
    return judge(show(of=source), of=source)


def claims(*shown: DeviceClaims) -> Claims:
    """Claims with devices alone; the judge looks at nothing else."""
    empty: Any = None
    return Claims(
        tee="tdx",
        root_sha256="",
        simulated=True,
        report=empty,
        measurements={},
        report_data=b"",
        debug=False,
        tcb_status=None,
        advisory_ids=(),
        tcb_evaluation_number=None,
        issued_at=0,
        collateral_expires=0,
        devices=shown,
    )


def test_an_honest_machine_is_accepted_with_its_checks_named() -> None:
    trail = Trail()
    judge_nvidia(claims(*devices()), reference(), trail)
    assert [check.name for check in trail.passed] == [
        "device count",
        "device versions",
        "device wiring",
        "device state",
    ]
    judge_nvidia(claims(*devices("switched")), reference(SWITCHED), Trail())


TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "no devices": ({"gpus": 0}, "gpus and nvswitches together must be 1 to 64"),
    "a negative count": ({"gpus": -1}, "gpus must be 0 to 64"),
    "65 switches": ({"nvswitches": 65}, "nvswitches must be 0 to 64"),
    "65 devices": ({"gpus": 33, "nvswitches": 32}, "gpus and nvswitches together"),
    "no count": ({"gpus": None}, "gpus"),
    "no word about revocation": ({"revocation": None}, "revocation"),
    "no word about manifests": ({"rims": None}, "rims"),
    "an unknown word about manifests": ({"rims": "optional"}, "rims"),
    "no architectures": ({"architectures": None}, "architectures"),
    "an empty list of architectures": ({"architectures": []}, "architectures is an empty list"),
    "an unknown architecture": ({"architectures": ["volta"]}, "architectures names 'volta'"),
    "an architecture twice": ({"architectures": ["hopper", "hopper"]}, "architectures lists a value twice"),
    "no modes": ({"modes": None}, "modes"),
    "an unknown mode": ({"modes": ["devtools"]}, "modes names 'devtools'"),
    "protected PCIe without switches": ({"modes": ["ppcie"]}, "modes accepts ppcie without nvswitches"),
    "no driver versions": ({"driver_versions": None}, "driver_versions or minimum_driver_version"),
    "both kinds of driver versions": (
        {"minimum_driver_version": "000.00.01"},
        "driver_versions or minimum_driver_version",
    ),
    "an empty list of driver versions": ({"driver_versions": []}, "driver_versions is an empty list"),
    "a driver version that is none": ({"driver_versions": ["latest"]}, "driver_versions holds 'latest'"),
    "a VBIOS minimum that is none": (
        {"minimum_vbios_version": "96.00"},
        "minimum_vbios_versions? holds '96.00'",
    ),
    "a VBIOS minimum in lower case": (
        {"minimum_vbios_version": "96.00.a5.00.01"},
        "minimum_vbios_versions? holds",
    ),
    "switches without their versions": (
        {"nvswitches": 1, "modes": ["ppcie"]},
        "switch_bios_versions must be given",
    ),
    "versions of switches without any": (
        {"switch_bios_versions": "any"},
        "switch_bios_versions stands without nvswitches",
    ),
    "a grace without end": ({"rim_grace_days": 3651}, "rim_grace_days must be 0 to 3650"),
    "a negative grace": ({"rim_grace_days": -1}, "rim_grace_days"),
    "an unknown field": ({"confidential_compute": True}, "confidential_compute"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_cannot_be_meant_is_refused_by_the_fields_name(name: str) -> None:
    changes, message = TABLES[name]
    with pytest.raises(FormatError, match=message):
        reference(**changes)


def test_the_rules_for_the_verifier_follow_from_the_table() -> None:
    strict = nvidia_rules(reference())
    assert (strict.revocation_required, strict.rims_required, strict.rim_grace) == (True, True, 0)
    lax = nvidia_rules(reference(revocation="unchecked", rims="unchecked", rim_grace_days=2))
    assert (lax.revocation_required, lax.rims_required, lax.rim_grace) == (False, False, 2 * 86_400)


def _bent(**changes: Any) -> Claims:
    first, second = devices()
    details = {**first.details, **changes.pop("details", {})}
    return claims(dataclasses.replace(first, details=details, **changes), second)


REFUSED: dict[str, tuple[Claims, dict[str, Any], str]] = {
    "a GPU too few": (claims(*devices()[:1]), {}, "1 GPU reports, and the policy wants exactly 2"),
    "a GPU too many": (claims(*devices()), {"gpus": 1}, "2 GPU reports, and the policy wants exactly 1"),
    "no devices": (claims(), {}, "0 GPU reports"),
    "switches where none are wanted": (claims(*devices("switched")), {}, "2 NVSwitch reports"),
    "one GPU twice": (claims(devices()[0], devices()[0]), {}, "one device is shown twice"),
    "another architecture": (_bent(architecture="blackwell"), {}, "architecture is blackwell"),
    "another mode": (_bent(details={"mode": "ppcie"}), {}, "mode is ppcie"),
    "no mode": (_bent(details={"mode": ""}), {}, "mode is empty"),
    "another driver": (_bent(driver_version="000.00.02"), {}, "driver_versions is 000.00.02"),
    "an older driver": (
        _bent(),
        {"driver_versions": None, "minimum_driver_version": "000.00.02"},
        "driver version 000.00.01 is below 000.00.02",
    ),
    "a driver whose version is no number": (
        _bent(driver_version="r590"),
        {"driver_versions": None, "minimum_driver_version": "000.00.01"},
        "driver version r590 is below",
    ),
    "an older VBIOS": (_bent(vbios_version="00.00.00.00.00"), {}, "VBIOS version 00.00.00.00.00 is below"),
    "a measurement that differs": (
        _bent(differing=("index 9 (VBIOS Measurement_9)",)),
        {},
        r"measurements of gpu 0 differ from NVIDIA's reference values: index 9 \(VBIOS Measurement_9\)",
    ),
    "a measurement that differs, where manifests are not required": (
        _bent(differing=("index 9 (VBIOS Measurement_9)",)),
        {"rims": "unchecked"},
        "differ from NVIDIA's reference values",
    ),
    "many measurements that differ": (
        _bent(differing=tuple(f"index {number}" for number in range(20))),
        {},
        "index 7 and 12 more",
    ),
    "one manifest of two": (_bent(rims=("NV_GPU_DRIVER",)), {}, "gpu 0 were not compared"),
    "nothing compared": (_bent(matched=0), {}, "gpu 0 were not compared"),
    "revocation unknown": (_bent(revocation="not checked"), {}, "gpu 0 was revoked is not known"),
    "a switch that is not shown": (
        _bent(details={"neighbours": "0102030405060708"}),
        {},
        "wired to switch 0102030405060708, which is not shown",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_devices_that_the_policy_does_not_name_are_refused(name: str) -> None:
    shown, changes, message = REFUSED[name]
    with pytest.raises(AppraisalRefused, match=message):
        judge_nvidia(shown, reference(**changes), Trail())


def test_gpus_and_switches_that_do_not_name_each_other_are_refused() -> None:
    first, second, left, right = devices("switched")
    stranger = machine("others", count=2, switches=2)
    other = judge(show(of=stranger), of=stranger)[2]
    with pytest.raises(AppraisalRefused, match=r"is wired to switch \w+, which is not shown"):
        judge_nvidia(claims(first, second, left, other), reference(SWITCHED), Trail())
    loner = dataclasses.replace(second, details={**second.details, "neighbours": ""})
    with pytest.raises(AppraisalRefused, match="is not wired to every switch that is shown"):
        judge_nvidia(claims(first, loner, left, right), reference(SWITCHED), Trail())
    half = dataclasses.replace(right, details={**right.details, "neighbours": first.details["pdi"]})
    with pytest.raises(AppraisalRefused, match="is not wired to every GPU that is shown"):
        judge_nvidia(claims(first, second, left, half), reference(SWITCHED), Trail())
    with pytest.raises(AppraisalRefused, match=r"switch_bios_versions is 00\.00\.00\.00\.02"):
        judge_nvidia(
            claims(*devices("switched")),
            reference(SWITCHED, switch_bios_versions=["00.00.00.00.03"]),
            Trail(),
        )


def test_a_minimum_compares_numbers_and_not_texts() -> None:
    newer = _bent(driver_version="000.00.10", vbios_version="00.00.00.00.0A")
    loose = {"driver_versions": None, "minimum_driver_version": "000.00.2"}
    with pytest.raises(AppraisalRefused, match=r"000\.00\.01 is below"):
        judge_nvidia(newer, reference(**loose), Trail())  # the second GPU
    only = claims(newer.devices[0])
    judge_nvidia(only, reference(**loose, gpus=1), Trail())


def test_the_captured_machine_of_eight_gpus_and_four_switches_is_accepted() -> None:
    names = (f"{captured.NVTRUST}/gpu_evidence.json", f"{captured.NVTRUST}/switch_evidence.json")
    shown = tuple(one for name in names for one in captured.evidence(name).devices)
    found = claims(*captured.verified(DeviceEvidence(devices=shown)))
    table = {
        "gpus": 8,
        "nvswitches": 4,
        "architectures": ["hopper"],
        "modes": ["ppcie"],
        "revocation": "unchecked",
        "rims": "unchecked",
        "minimum_driver_version": "580.1",
        "vbios_versions": ["96.00.A5.00.01"],
        "switch_bios_versions": ["96.10.73.00.01"],
    }
    judge_nvidia(found, reference(table), Trail())
    assert observed_nvidia(found) == {
        "gpus": 8,
        "nvswitches": 4,
        "architectures": ["hopper"],
        "modes": ["ppcie"],
        "driver_versions": ["590.12"],
        "vbios_versions": ["96.00.A5.00.01"],
        "switch_bios_versions": ["96.10.73.00.01"],
    }
    with pytest.raises(AppraisalRefused, match="which is not shown"):
        judge_nvidia(
            claims(*(one for one in found.devices if one.kind == "gpu")),
            dataclasses_like(reference(table), nvswitches=0),
            Trail(),
        )


def dataclasses_like(table: NvidiaReference, **changes: Any) -> NvidiaReference:
    """``table`` changed without the checks that would refuse it."""
    import msgspec

    return msgspec.structs.replace(table, **changes)


def test_what_was_observed_is_a_table_that_accepts_it() -> None:
    observed = observed_nvidia(claims(*devices("switched")))
    table = reference({**observed, "rims": "required", "revocation": "required"})
    judge_nvidia(claims(*devices("switched")), table, Trail())


def test_the_example_of_the_reference_is_a_policy() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "policy-nvidia.md").read_text()
    (example,) = re.findall(r"<!-- example -->\n```toml\n(.*?)```", page, re.DOTALL)
    policy = load_policy(example, name="policy-nvidia.md")
    assert policy.nvidia is not None
    assert policy.device_root.name == "NVIDIA Device Identity CA"
    for field in NvidiaReference.__struct_fields__:
        assert f"`{field}`" in page, field
