"""A CPU and its GPUs give one result: bound to one nonce and one set of keys, ended by the first of their ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

import simulated_evidence as attacks
import simulated_nvidia as gpus
from cloister import merkle
from cloister.appraisal.appraise import appraise
from cloister.appraisal.draft_observed import draft_from_claims
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.result import AttestationResult
from cloister.errors import AppraisalRefused, BindingMismatch, CloisterError, EvidenceError
from cloister.evidence.binding import device_nonce, report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof
from cloister.evidence.nvidia import DeviceReport
from cloister.verifier.claims import Claims
from ear_parts import accept, issue, resigned
from ear_parts import result as cpu_alone
from simulated_evidence import NOW

KEYS = b'{"keys":"of this workload"}'
NONCES = tuple(bytes([number]) * 32 for number in range(3))
ROOT = merkle.root(NONCES)


def shown(*, root: bytes = ROOT, keys: bytes = KEYS) -> gpus.Shown:
    """The honest machine's devices, asked with the nonce of this window and these keys."""
    return gpus.show(nonce=device_nonce(root, keys))


@cache
def reports(root: bytes = ROOT, keys: bytes = KEYS) -> tuple[DeviceReport, ...]:
    return gpus.reports(gpus.machine().devices, device_nonce(root, keys))


def bundle(evidence: bytes | None = None, **changes: Any) -> EvidenceBundle:
    """Honest evidence of a trust domain with two GPUs; ``evidence`` is quoted in the place of theirs."""
    honest = gpus.encoded(*reports())
    devices = honest if evidence is None else evidence
    tee = attacks.platform().tee("tdx", launch=attacks.LAUNCH, clock=lambda: NOW)
    raw = tee.quote(report_data(ROOT, KEYS, devices))
    fields: dict[str, Any] = {
        "tee": raw.tee,
        "quote": raw.quote,
        "key_material": KEYS,
        "nonce_proof": NonceProof(index=1, size=3, path=merkle.inclusion_proof(NONCES, 1)),
        "event_log": raw.event_log,
        "endorsements": raw.endorsements,
        "device_evidence": devices,
        "device_endorsements": shown().endorsements,
    }
    return EvidenceBundle(**{**fields, **changes})


def observed() -> Claims:
    from dataclasses import replace

    return replace(cpu_alone().claims, devices=gpus.judge(gpus.show()))


@cache
def policy(**changes: str) -> Policy:
    """As measured, with the manifests and revocation required; ``changes`` are lines of ``[nvidia]``."""
    text = draft_from_claims(observed())
    text = text.replace('rims = "unchecked"', 'rims = "required"')
    text = text.replace("[roots]\n", f'[roots]\nsimulated_rim = "{gpus.machine().rim_root_sha256}"\n')
    head, _, nvidia = text.partition("[nvidia]\n")
    lines = dict(line.split(" = ", 1) for line in nvidia.splitlines() if line)
    lines |= {"revocation": '"required"', **changes}
    table = "[nvidia]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items())
    return load_policy(head + table, name="p")


def judge(
    evidence: EvidenceBundle, rules: Policy | None = None, *, nonce: bytes = NONCES[1]
) -> AttestationResult[bytes]:
    return appraise(
        evidence, nonce=nonce, policy=rules or policy(), now=NOW, decode=bytes, not_after=lambda _: None
    )


def test_a_cpu_and_its_gpus_give_one_result() -> None:
    result = judge(bundle())
    assert result.keys == KEYS
    assert [device.kind for device in result.claims.devices] == ["gpu", "gpu"]
    assert len({device.identity for device in result.claims.devices}) == 2
    assert {check.number for check in result.checks} == set(range(1, 18))
    assert result.expires == min(
        NOW + 3600, result.claims.collateral_expires, *(device.expires for device in result.claims.devices)
    )


def test_a_result_with_gpus_travels_in_a_token() -> None:
    result = judge(bundle())
    token = issue(result, policy=policy())
    accepted = accept(token, policies=[policy().digest])
    assert accepted.claims == result.claims
    assert len(accepted.claims.devices) == 2


def test_a_token_whose_gpu_was_stripped_is_refused() -> None:
    from ear_parts import opened

    whole = opened(issue(judge(bundle()), policy=policy()))

    def strip(claims: dict[str, Any]) -> None:
        claims.update(whole)
        del claims["submods"]["gpu1"]

    with pytest.raises(CloisterError, match="submodules are not those"):
        accept(resigned(strip), policies=[policy().digest])


REFUSED: dict[str, tuple[Callable[[], object], type[CloisterError], str]] = {
    "gpus exchanged after quoting": (
        lambda: judge(bundle(device_evidence=gpus.encoded(*reports()[::-1]))),
        BindingMismatch,
        "binds other keys, devices",
    ),
    "gpus left out after quoting": (
        lambda: judge(bundle(device_evidence=b"")),
        BindingMismatch,
        "binds other",
    ),
    "no gpus at all": (lambda: judge(bundle(b"")), AppraisalRefused, "requires device evidence"),
    "gpus that nobody asked for": (
        lambda: judge(bundle(), load_policy(draft_from_claims(cpu_alone().claims), name="p")),
        AppraisalRefused,
        "says nothing of devices",
    ),
    "gpus of another window": (
        lambda: judge(bundle(gpus.encoded(*reports(merkle.root(NONCES[:1]))))),
        EvidenceError,
        "nonce",
    ),
    "gpus that answer for other keys": (
        lambda: judge(bundle(gpus.encoded(*reports(ROOT, b"other keys")))),
        EvidenceError,
        "nonce",
    ),
    "one gpu shown twice": (
        lambda: judge(bundle(gpus.encoded(reports()[0], reports()[0]))),
        CloisterError,
        "",
    ),
    "one gpu too few": (
        lambda: judge(bundle(gpus.encoded(reports()[0]))),
        AppraisalRefused,
        "wants exactly 2",
    ),
    "one gpu more than counted": (
        lambda: judge(bundle(), policy(gpus="1")),
        AppraisalRefused,
        "wants exactly 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mixed_evidence_is_refused(case: str) -> None:
    attempt, error, words = REFUSED[case]
    with pytest.raises(error) as refusal:
        attempt()
    assert words.lower() in str(refusal.value).lower()
