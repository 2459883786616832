"""The appraisal policy: what a relying party accepts, as a TOML file (docs/reference/policy.md).

Everything that matters is decided by the file: a measurement that may be anything says ``"any"``, an empty list, an
unknown field or an unknown status is refused, and a policy that pins nothing is refused too. There is no field
for debug. The simulated root is named by its digest, and never beside a vendor's. Every refusal names the line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from cloister.appraisal.document import MAX_POLICY, PAGE, parse_document
from cloister.appraisal.hardware import Hardware, check_hardware
from cloister.appraisal.reference_intel import (
    Platform,
    SgxReference,
    Tcb,
    TdxReference,
    check_sgx,
    check_tcb,
    check_tdx,
)
from cloister.appraisal.reference_nvidia import NvidiaReference, check_nvidia
from cloister.appraisal.reference_snp import SnpReference, check_snp
from cloister.appraisal.reference_tpm import AzureReference, TpmReference, check_azure, check_tpm
from cloister.appraisal.refusals import readable, refused_line
from cloister.appraisal.values import check_digests, check_some
from cloister.encoding import Record, convert, encode_json, from_hex
from cloister.endorsements.roots import (
    AMD_ROOTS,
    INTEL_ROOT,
    NVIDIA_DEVICE_ROOT,
    NVIDIA_RIM_ROOT,
    VENDOR_ROOT_SHA256S,
    Root,
    named_root,
    simulated_root,
)
from cloister.errors import FormatError, PolicyError
from cloister.evidence.bundle import TeeKind

FORMAT: Final = "cloister/policy/v1"
MAX_AGE = 30 * 24 * 3600
"""Upper bound of ``max_age_seconds``: collateral lives about as long."""
VENDORS: Final = ("intel", "amd", "nvidia")


class Roots(Record, frozen=True, kw_only=True):
    """``[roots]``: vendors' by default, or simulated ones by their SHA-256; never both."""

    vendor: tuple[str, ...] | None = None
    """Vendors whose embedded roots are accepted; without the field all whose tables stand in the policy."""
    simulated: str | None = None
    """Root of a simulated CPU."""
    simulated_device: str | None = None
    """Root of simulated GPUs."""
    simulated_rim: str | None = None
    """Root of simulated reference manifests."""
    tpm: tuple[str, ...] | None = None
    """Roots of attestation keys' certificates, for ``[tpm]``: a cloud's CA, or an enrolment's."""


class Policy(Record, frozen=True, kw_only=True):
    """A policy that passed :func:`load_policy`. Immutable; its digest names it in results and receipts."""

    format: Literal["cloister/policy/v1"]
    max_age_seconds: int
    tcb: Tcb | None = None
    platform: Platform = Platform()
    hardware: Hardware | None = None
    roots: Roots = Roots()
    tdx: TdxReference | None = None
    sgx: SgxReference | None = None
    snp: SnpReference | None = None
    tpm: TpmReference | None = None
    azure: AzureReference | None = None
    nvidia: NvidiaReference | None = None

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the policy's canonical JSON: comments and layout do not count.

        Absent fields are left out, so that a release which learns a new field leaves old policies their names.
        """
        return hashlib.sha256(encode_json(_present(msgspec.to_builtins(self)))).hexdigest()

    @property
    def tees(self) -> tuple[TeeKind, ...]:
        """The kinds of TEE that are accepted."""
        tables: dict[TeeKind, object] = {
            "tdx": self.tdx,
            "sgx": self.sgx,
            # With [azure], [snp] describes the guest behind the vTPM: a bare report would leave its PCRs unjudged.
            "snp": self.snp if self.azure is None else None,
            "az-snp-vtpm": self.azure,
            "tpm": self.tpm,
        }
        return tuple(kind for kind, table in tables.items() if table is not None)

    def roots_of(self, tee: TeeKind) -> tuple[Root, ...]:
        """Where certificate chains of evidence of this kind may end; empty when the policy trusts none."""
        if tee == "tpm":
            return tuple(named_root("a TPM root of the policy", digest) for digest in self.roots.tpm or ())
        if self.roots.simulated is not None:
            return (simulated_root(self.roots.simulated),)
        vendor, roots = ("intel", (INTEL_ROOT,)) if tee in ("tdx", "sgx") else ("amd", AMD_ROOTS)
        return roots if vendor in (self.roots.vendor or VENDORS) else ()

    @property
    def device_root(self) -> Root:
        """Where certificate chains of GPUs must end."""
        return (
            simulated_root(self.roots.simulated_device) if self.roots.simulated_device else NVIDIA_DEVICE_ROOT
        )

    @property
    def rim_root(self) -> Root:
        """Where the signers of reference manifests must come from."""
        return simulated_root(self.roots.simulated_rim) if self.roots.simulated_rim else NVIDIA_RIM_ROOT


def read_policy(path: str | Path) -> Policy:
    """Read and check a policy file. Raises :class:`~cloister.errors.PolicyError`."""
    return load_policy(read_policy_text(path), name=str(path))


def read_policy_text(path: str | Path) -> str:
    """The text of a policy file, unchecked. Raises :class:`~cloister.errors.PolicyError`."""
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_POLICY + 1).decode("utf-8")
    except OSError as error:
        raise PolicyError(
            f"{path} cannot be read ({error.strerror})", todo="name an existing policy file"
        ) from None
    except UnicodeDecodeError:
        raise PolicyError(f"{path} is not UTF-8 text", todo="save it as UTF-8") from None


def load_policy(text: str, *, name: str) -> Policy:
    """Check the TOML ``text`` of a policy; ``name`` is its file in errors.

    Raises :class:`~cloister.errors.PolicyError`, which says ``name:line: `` and what is wrong there.
    """
    document = parse_document(text, name=name)
    if marks := document.marks:
        first, more = marks[0], len(marks) - 1
        raise PolicyError(
            f"{name}:{first.line}: {first.field} is not decided{f' (and {more} more)' if more else ''}",
            todo=f"{first.note}: write what you accept in its place",
        )
    try:
        return _convert(document.table)
    except FormatError as error:
        scope = error.table if isinstance(error, _TableRefused) else ""
        line = refused_line(document.table, error.what, _refusal_of, document.positions, scope=scope)
        what = readable(error.what.removeprefix(_FORM))
        raise PolicyError(f"{name}:{line}: {what}", todo=error.todo or PAGE) from None


_FORM = "policy does not have the form it should: "


class _TableRefused(FormatError):
    """What a table's own check says, and which table's."""

    def __init__(self, table: str, error: FormatError) -> None:
        super().__init__(error.what, todo=error.todo)
        self.table = table


def _convert(table: dict[str, Any]) -> Policy:
    policy = convert(table, Policy, what="policy")
    _check(policy)
    return policy


def _refusal_of(table: dict[str, Any]) -> str:
    try:
        _convert(table)
    except FormatError as error:
        return error.what
    return ""


def _check(policy: Policy) -> None:
    if not 1 <= policy.max_age_seconds <= MAX_AGE:
        raise FormatError(f"max_age_seconds must be 1 to {MAX_AGE}, not {policy.max_age_seconds}")
    if not policy.tees:
        raise FormatError(
            "the policy accepts no kind of TEE",
            todo="add a table of reference values: [tdx], [sgx], [snp], [azure] or [tpm]",
        )
    intel = policy.tdx is not None or policy.sgx is not None
    if intel != (policy.tcb is not None):
        raise FormatError(
            "[tcb] and [tdx] or [sgx] go together", todo="say which TCB an Intel platform must have"
        )
    if (policy.tpm is not None) != (policy.roots.tpm is not None):
        raise FormatError("[tpm] and roots.tpm go together", todo="name the roots of the TPM's keys")
    if policy.azure is not None and policy.snp is None:
        raise FormatError("[azure] needs [snp] beside it", todo="say what the guest must measure")
    checks: tuple[tuple[str, Callable[[Any], None]], ...] = (
        ("roots", _check_roots),
        ("tcb", check_tcb),
        ("hardware", check_hardware),
        ("tdx", check_tdx),
        ("sgx", check_sgx),
        ("snp", check_snp),
        ("tpm", check_tpm),
        ("azure", check_azure),
        ("nvidia", check_nvidia),
    )
    for name, check in checks:
        table = getattr(policy, name)
        if table is not None:
            try:
                check(table)
            except FormatError as error:
                raise _TableRefused(name, error) from None
    _check_companions(policy)


def _check_companions(policy: Policy) -> None:
    """A table without a root that could vouch for it would accept nothing, and hide a mistake."""
    roots = policy.roots
    for tee in policy.tees:
        if not policy.roots_of(tee):
            raise FormatError(
                f"roots.vendor leaves out the vendor of {tee} evidence, whose table stands here",
                todo="list the vendor, or remove the table",
            )
    if policy.nvidia is not None:
        if roots.vendor is not None and "nvidia" not in roots.vendor:
            raise FormatError(
                "roots.vendor leaves out nvidia, and [nvidia] stands here",
                todo="list the vendor, or remove the table",
            )
        if (roots.simulated is None) != (roots.simulated_device is None):
            raise FormatError(
                "[nvidia] beside roots.simulated needs roots.simulated_device: hardware and simulation are never mixed",
                todo="name the root of the simulated GPUs",
            )
    if policy.hardware is not None and policy.hardware.device is not None and policy.nvidia is None:
        raise FormatError(
            "hardware.device stands without [nvidia], so no device would be asked for",
            todo="add [nvidia] with the number of GPUs, or remove the list",
        )
    if policy.tpm is not None and roots.simulated is not None:
        raise FormatError(
            "[tpm] stands beside roots.simulated: hardware and simulation are never mixed",
            todo="write one policy for each",
        )


def _present(value: Any) -> Any:
    """``value`` without the fields that are absent."""
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    return value


def _check_roots(roots: Roots) -> None:
    if roots.vendor is not None:
        check_some("vendor", roots.vendor)
        for vendor in roots.vendor:
            if vendor not in VENDORS:
                raise FormatError(
                    f"vendor names {vendor[:40]!r}", todo=f"the vendor roots are: {', '.join(VENDORS)}"
                )
    if roots.tpm is not None:
        check_digests("tpm", roots.tpm, 32)
    for name in ("simulated", "simulated_device", "simulated_rim"):
        digest = getattr(roots, name)
        if digest is None:
            continue
        if roots.vendor is not None:
            raise FormatError(
                f"{name} stands beside vendor roots: hardware and simulation are never mixed",
                todo="write one policy for each",
            )
        if name != "simulated" and roots.simulated is None:
            raise FormatError(
                f"{name} stands without simulated: hardware and simulation are never mixed",
                todo="write one policy for each",
            )
        from_hex(digest, 32, what=name)
        if digest in VENDOR_ROOT_SHA256S:
            raise FormatError(f"{name} names a hardware vendor's root", todo="leave [roots] out for hardware")
