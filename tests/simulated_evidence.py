"""Evidence built from the simulated vendor's own parts: honest, or genuine but for one thing.

The factory of simulated_attacks.py. It lives with the tests: no production path can reach it.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import structs

from cloister import merkle
from cloister.attester.simulated import SimulatedPlatform, collateral_window
from cloister.attester.simulation.chain import (
    DAY,
    Chain,
    Signer,
    Window,
    draw_key,
    issue_crl,
    issue_pck,
    public_point,
    sign_raw,
)
from cloister.attester.simulation.collateral import (
    assemble_collateral,
    issue_collateral,
    microcode_for,
    qe_identity,
    tcb_info,
)
from cloister.attester.simulation.hardware import TEE_TCB_SVN, Entropy, enclave_measurements, td_measurements
from cloister.attester.simulation.quote import (
    Layout,
    certification,
    enclave_report,
    header,
    qe_report,
    report_body,
    td_report,
)
from cloister.evidence.binding import report_data
from cloister.evidence.eventlog import LaunchEvent

NOW = 1_790_000_000
"""The moment of every attack: 2026-09-21T13:33:20Z."""
NONCE = bytes(range(32))
KEYS = b"the key material that the quote binds"
REPORT_DATA = report_data(merkle.root([NONCE]), KEYS)
AUTH_DATA = bytes(range(32))
LAUNCH = (LaunchEvent(name="cloister.config", payload=b"\x11" * 32),)


def seeded(seed: str) -> Entropy:
    """Reproducible bytes in place of ``os.urandom``."""
    return random.Random(seed).randbytes


@cache
def platform(seed: str = "honest") -> SimulatedPlatform:
    """The honest platform (or another vendor's, by another seed)."""
    return SimulatedPlatform.generate(now=NOW, entropy=seeded(seed))


def processor(**changes: Any) -> SimulatedPlatform:
    """Another processor of the honest vendor whose hardware differs in ``changes``."""
    vendor = platform()
    entropy = seeded(repr(sorted(changes.items())))
    hardware = structs.replace(vendor.hardware, **changes)
    pck = issue_pck(entropy, vendor.chain.pck_ca, hardware, collateral_window(NOW).issued)
    return SimulatedPlatform(replace(vendor.chain, pck=pck), hardware, draw_key(entropy))


@dataclass(frozen=True)
class Presented:
    """What the attacker shows, and under which root and time it is judged."""

    quote: bytes
    collateral: str
    root: bytes
    now: int = NOW


def forge(
    source: SimulatedPlatform,
    layout: Layout = Layout.TDX_V4,
    *,
    body: bytes | None = None,
    chain: Chain | None = None,
    report: bytes | None = None,
    shown_key: ec.EllipticCurvePrivateKey | None = None,
    signing_key: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """A quote made part by part; what is not given is as the honest quoting enclave would make it."""
    attestation = draw_key(seeded("attestation"))
    shown = shown_key or attestation
    measured = enclave_measurements(LAUNCH) if layout is Layout.SGX_V3 else td_measurements(LAUNCH)
    body = body or report_body(layout, source.hardware, measured, debug=False, report_data=REPORT_DATA)
    point = public_point(shown)
    report = report or qe_report(layout.kind, source.hardware, public_point(attestation), AUTH_DATA)
    signed = header(layout, source.hardware) + body
    tail = (
        sign_raw(signing_key or attestation, signed)
        + point
        + certification(layout, chain or source.chain, report, AUTH_DATA)
    )
    return signed + struct.pack("<I", len(tail)) + tail


def honest(layout: Layout = Layout.TDX_V4) -> Presented:
    """What no verifier may refuse."""
    return presented(platform(), layout)


def presented(
    source: SimulatedPlatform,
    layout: Layout = Layout.TDX_V4,
    *,
    quote: bytes | None = None,
    collateral: str | None = None,
    debug: bool = False,
) -> Presented:
    """``source``'s own evidence, with its parts replaced."""
    tee = source.tee(layout.kind, launch=LAUNCH, debug=debug, layout=layout, clock=lambda: NOW)
    evidence = tee.quote(REPORT_DATA)
    return Presented(
        quote or evidence.quote, collateral or evidence.endorsements.decode(), platform().chain.root.der
    )


def with_status(status: str, layout: Layout = Layout.TDX_V4) -> Presented:
    """A processor on the microcode that has ``status``; ``""`` is below every level."""
    return presented(processor(cpu_svn=microcode_for(status)), layout)


def with_module(isv_svn: int) -> Presented:
    """A TDX module of that ISVSVN."""
    svn = bytes([isv_svn]) + TEE_TCB_SVN[1:]
    return presented(processor(tee_tcb_svn=svn, current_tee_tcb_svn=svn))


def relaunch_advised(microcode: str = "UpToDate") -> Presented:
    """A TD launched under an old module that was renewed since (TD 1.5 reports both)."""
    launched = bytes([TEE_TCB_SVN[0] - 1]) + TEE_TCB_SVN[1:]
    source = processor(tee_tcb_svn=launched, cpu_svn=microcode_for(microcode))
    return presented(source, Layout.TDX_V5_TD15)


def reissued(window: Window, *, root: Collection[int] = (), pck_ca: Collection[int] = ()) -> str:
    """The honest vendor's collateral for another time, or with certificates revoked."""
    vendor = platform()
    return issue_collateral(
        vendor.chain,
        "tdx",
        vendor.hardware,
        window,
        revoked_by_root=root,
        revoked_by_pck_ca=pck_ca,
    )


def edited(field: str, old: str, new: str) -> str:
    """The honest collateral with one text replaced in one field, signatures left as they were."""
    document = json.loads(honest().collateral)
    assert old in document[field]
    document[field] = document[field].replace(old, new, 1)
    return json.dumps(document)


def taken(field: str, other: str) -> str:
    """The honest collateral with one field from ``other`` collateral."""
    return json.dumps({**json.loads(honest().collateral), field: json.loads(other)[field]})


def signed_by(signer: Signer, field: str) -> str:
    """The honest collateral with ``field`` signed by a key of ``signer``, whose chain is shown for it."""
    document = json.loads(honest().collateral)
    document[f"{field}_signature"] = sign_raw(signer.key, document[field].encode()).hex()
    return json.dumps(document)


def ended(*parts: str) -> str:
    """Fresh collateral of which ``parts`` (root_crl, pck_crl, tcb_info, qe_identity) ended yesterday."""
    vendor, fresh = platform(), collateral_window(NOW)
    old = Window(fresh.issued - 31 * DAY, fresh.issued - DAY)

    def window(part: str) -> Window:
        return old if part in parts else fresh

    return assemble_collateral(
        vendor.chain,
        tcb_info("tdx", vendor.hardware, window("tcb_info")),
        qe_identity("tdx", window("qe_identity")),
        root_crl=issue_crl(vendor.chain.root, window("root_crl")),
        pck_crl=issue_crl(vendor.chain.pck_ca, window("pck_crl")),
    )


def foreign_enclave() -> bytes:
    """A quote vouched for by another enclave on the same processor, which the PCK key was made to sign."""
    hardware = platform().hardware
    genuine = qe_report("tdx", hardware, public_point(draw_key(seeded("attestation"))), AUTH_DATA)
    report = enclave_report(
        cpu_svn=hardware.cpu_svn,
        flags=0x15,
        mrenclave=b"\x66" * 32,
        mrsigner=b"\x66" * 32,
        isv_prod_id=2,
        isv_svn=4,
        report_data=genuine[-64:],
    )
    return forge(platform(), report=report)


def td_with(attributes: int) -> bytes:
    """A TD whose attributes are these."""
    hardware = platform().hardware
    body = td_report(
        Layout.TDX_V4,
        hardware,
        td_measurements(LAUNCH),
        attributes=attributes,
        report_data=REPORT_DATA,
    )
    return forge(platform(), body=body)


def flipped(offset: int) -> bytes:
    """The honest TDX v4 quote with one bit flipped at ``offset``."""
    quote = bytearray(honest().quote)
    quote[offset] ^= 1
    return bytes(quote)


def mixed(field: str, other: str) -> str:
    """The honest collateral with one signed document, and its signature, from ``other``."""
    document, source = json.loads(honest().collateral), json.loads(other)
    for name in (field, f"{field}_signature", f"{field}_issuer_chain"):
        document[name] = source[name]
    return json.dumps(document)
