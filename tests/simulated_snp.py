"""SEV-SNP evidence of the simulated vendor: honest, or genuine but for one thing. Lives with the tests alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from msgspec import structs

from cloister.appraisal.appraise import appraise
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.reference_snp import observed_snp
from cloister.appraisal.result import AttestationResult
from cloister.attester.simulation.chain import Window
from cloister.attester.simulation.snp import SimulatedSnp
from cloister.attester.simulation.snp_chain import Chip, VendorKeys, issue_list
from cloister.attester.simulation.snp_report import encode_signed, sign_report
from cloister.endorsements.amd import SnpEndorsements, encode_snp_endorsements
from cloister.endorsements.roots import simulated_root
from cloister.evidence.bundle import EvidenceBundle, NonceProof
from cloister.evidence.snp import SignerName, SnpReport
from cloister.verifier.claims import Claims
from cloister.verifier.snp import verify
from simulated_evidence import KEYS, NONCE, NOW, REPORT_DATA, seeded

DAY = 86_400


@cache
def vendor_keys() -> VendorKeys:
    """RSA-4096 keys take a second; every vendor of the tests shares these."""
    return VendorKeys.generate()


def platform(product: str = "milan") -> SimulatedSnp:
    """The honest vendor's honest processor."""
    return _platform(product)


@cache
def _platform(product: str) -> SimulatedSnp:
    return SimulatedSnp.generate(now=NOW, product=product, keys=vendor_keys(), entropy=seeded(product))


@cache
def stranger() -> SimulatedSnp:
    """A processor of a vendor with other keys that calls itself the same."""
    keys = vendor_keys()
    other = VendorKeys(ark=keys.asvk, ask=keys.ark, asvk=keys.ask)
    return SimulatedSnp.generate(now=NOW, keys=other, entropy=seeded("stranger"))


def chip(product: str = "milan", **changes: Any) -> SimulatedSnp:
    """Another chip of the honest vendor, which differs in ``changes`` of :class:`Chip`, with keys of its own."""
    honest = platform(product)
    changed: Chip = replace(honest.chip, **changes)
    return SimulatedSnp(honest.vendor, changed, issued=honest_window().issued)


def honest_window() -> Window:
    issued = (NOW - 3600) // DAY * DAY
    return Window(issued, issued + 30 * DAY)


@dataclass(frozen=True)
class Shown:
    """What an attacker shows: a report, who signs it, and what vouches for that."""

    product: str = "milan"
    version: int = 3
    kind: SignerName = "vcek"
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the report that are otherwise than an honest guest's."""
    patches: dict[int, bytes] = field(default_factory=dict)
    """Bytes in front of the signature that are otherwise than this package would write them; signed."""
    signer: SimulatedSnp | None = None
    """Whose key signs; the honest processor's without it."""
    endorsements: dict[str, bytes] = field(default_factory=dict)
    """Parts of the endorsements that are otherwise."""
    revoked: tuple[int, ...] | None = ()

    def report(self) -> SnpReport:
        honest = platform(self.product).report(REPORT_DATA, version=self.version, kind=self.kind)
        return replace(honest, **self.changes)

    def quote(self) -> bytes:
        signed = bytearray(encode_signed(self.report()))
        for offset, data in self.patches.items():
            signed[offset : offset + len(data)] = data
        return sign_report(bytes(signed), (self.signer or platform(self.product)).keys[self.kind])

    def endorsed(self) -> SnpEndorsements:
        honest = platform(self.product).endorsements(NOW, self.kind, revoked=self.revoked)
        return structs.replace(honest, **self.endorsements)

    def bundle(self, **changes: Any) -> EvidenceBundle:
        bundle = EvidenceBundle(
            tee="snp",
            quote=self.quote(),
            key_material=KEYS,
            nonce_proof=NonceProof(index=0, size=1, path=()),
            endorsements=encode_snp_endorsements(self.endorsed()),
        )
        return structs.replace(bundle, **changes)


def revocation_list(*revoked: int, age_days: int = 0, vendor: SimulatedSnp | None = None) -> bytes:
    """The vendor's list, issued ``age_days`` before its day."""
    window = honest_window()
    window = Window(window.issued - age_days * DAY, window.next_update - age_days * DAY)
    return issue_list((vendor or platform()).vendor, window, revoked)


def claims_of(shown: Shown, *, now: int = NOW, revocation_required: bool = True) -> Claims:
    return verify(
        shown.quote(),
        encode_snp_endorsements(shown.endorsed()),
        roots=[simulated_root(platform(shown.product).root_sha256)],
        now=now,
        revocation_required=revocation_required,
    )


@cache
def _observed(product: str, version: int, kind: SignerName) -> dict[str, Any]:
    return dict(observed_snp(claims_of(Shown(product=product, version=version, kind=kind))))


def policy_text(fields: dict[str, Any], *, roots: str = "") -> str:
    """A whole policy whose ``[snp]`` has ``fields``; ``roots`` is the content of ``[roots]``."""
    tcb = fields["tcb"]
    lines = ['format = "cloister/policy/v1"', "max_age_seconds = 3600"]
    lines += ["[roots]", roots] if roots else []
    lines += ["[snp]", *(f"{name} = {_toml(value)}" for name, value in fields.items() if name != "tcb")]
    for product, minimum in tcb.items():
        lines += [f"[snp.tcb.{product}]", *(f"{name} = {_toml(value)}" for name, value in minimum.items())]
    return "\n".join(lines) + "\n"


def policy(
    shown: Shown | None = None, *, root: str | None = None, without: tuple[str, ...] = (), **changes: Any
) -> Policy:
    """The policy of somebody who pinned the honest guest of ``shown``'s form; ``changes`` of ``[snp]``."""
    form = shown or Shown()
    fields = {**_observed(form.product, form.version, form.kind), **changes}
    fields = {name: value for name, value in fields.items() if name not in without}
    digest = root or platform(form.product).root_sha256
    return load_policy(policy_text(fields, roots=f'simulated = "{digest}"'), name="scenario")


def judge(
    bundle: EvidenceBundle, rule: Policy, *, now: int = NOW, nonce: bytes = NONCE
) -> AttestationResult[bytes]:
    return appraise(
        bundle, nonce=nonce, policy=rule, now=now, decode=lambda keys: keys, not_after=lambda _: None
    )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return str(value) if isinstance(value, int) else f'"{value}"'
