"""Evidence of the simulated workload as files, for tests of `cloister verify` and `cloister inspect`."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister import cli
from cloister.appraisal.draft import draft_policy
from cloister.evidence.binding import report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof, encode_bundle
from cloister.evidence.eventlog import LaunchEvent
from cloister.evidence.key_material import KeyMaterial, encode_key_material
from cloister.merkle import root
from simulated_evidence import LAUNCH, NONCE, NOW, platform

KEYS = encode_key_material(KeyMaterial(ohttp_keys=b"keys", not_after=NOW + 600, replica="replica-1"))
AT = ("--at", str(NOW))


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


def run(*arguments: str, stdin: bytes | None = None) -> Ran:
    """The command line in this process, with its outputs as a pipe would get them."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    held = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin or b""))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main(list(arguments))
            except SystemExit as ended:
                code = ended.code
    finally:
        sys.stdin = held
    assert isinstance(code, int)
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return Ran(code, *texts)


def bundle(
    *, launch: Sequence[LaunchEvent] = LAUNCH, nonce: bytes = NONCE, keys: bytes = KEYS
) -> EvidenceBundle:
    """What the simulated workload answers to ``nonce``."""
    raw = platform().tee("tdx", launch=launch, clock=lambda: NOW).quote(report_data(root([nonce]), keys))
    return EvidenceBundle(
        tee="tdx",
        quote=raw.quote,
        key_material=keys,
        nonce_proof=NonceProof(index=0, size=1, path=()),
        event_log=raw.event_log,
        endorsements=raw.endorsements,
    )


def write_bundle(folder: Path, **changes: object) -> str:
    path = folder / "evidence.json"
    path.write_bytes(encode_bundle(bundle(**changes)))  # type: ignore[arg-type]
    return str(path)


def write_policy(folder: Path, launch: Sequence[LaunchEvent] = LAUNCH, **changes: str) -> str:
    """The policy that accepts the simulated workload, with text replaced."""
    text = draft_policy(
        tee="tdx",
        measurements=platform().tee("tdx", launch=launch).measurements,
        events=launch,
        min_tcb_evaluation_number=1,
        simulated_root=platform().root_sha256,
    )
    for old, new in changes.items():
        text = text.replace(old, new)
    path = folder / "policy.toml"
    path.write_text(text)
    return str(path)


def steers(text: str) -> list[str]:
    """Everything in ``text`` that would steer a terminal."""
    return re.findall(r"[^\n -~\u00a0-\u2027\u2030-\uffff]", text)
