"""`cloister token`: what one verifier signed, another machine accepts, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import simulated_evidence as attacks
from cloister import merkle
from cloister.appraisal.ear import EarSigner
from cloister.evidence.binding import report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof, encode_bundle
from cloister.evidence.key_material import KeyMaterial, encode_key_material
from ear_parts import policy_text
from simulated_evidence import NOW

CLOISTER = Path(sys.executable).parent / "cloister"
NONCE = bytes(range(32))
KEYS = encode_key_material(KeyMaterial(ohttp_keys=b"keys", not_after=NOW + 900, replica="replica-1"))


def cloister(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [CLOISTER, "token", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A verifier's folder: evidence, policy, and both halves of its key."""
    tee = attacks.platform().tee("tdx", launch=attacks.LAUNCH, clock=lambda: NOW)
    raw = tee.quote(report_data(merkle.root([NONCE]), KEYS))
    bundle = EvidenceBundle(
        tee=raw.tee,
        quote=raw.quote,
        key_material=KEYS,
        nonce_proof=NonceProof(index=0, size=1, path=()),
        event_log=raw.event_log,
        endorsements=raw.endorsements,
    )
    (tmp_path / "evidence.json").write_bytes(encode_bundle(bundle))
    (tmp_path / "policy.toml").write_text(policy_text())
    signer = EarSigner.generate("Ed25519")
    (tmp_path / "key.pem").write_bytes(signer.key.as_pem(private=True))
    (tmp_path / "key.pem").chmod(0o600)
    (tmp_path / "public.pem").write_bytes(signer.public_pem)
    return tmp_path


def issue(place: Path, *more: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    return cloister(
        "issue", place / "evidence.json", "--policy", place / "policy.toml", "--key", place / "key.pem",
        "--verifier", "v", "--nonce", NONCE.hex(), "--at", str(NOW), *more, code=code,
    )  # fmt: skip


def accept(place: Path, token: str, *more: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    (place / "token").write_text(token)
    return cloister(
        "accept", place / "token", "--policy", place / "policy.toml", "--verifier-key", place / "public.pem",
        "--verifier", "v", "--at", str(NOW + 1), *more, code=code,
    )  # fmt: skip


def test_what_was_issued_is_accepted(place: Path) -> None:
    options = ("--audience", "me", "--eat-nonce", "aa" * 16)
    token = issue(place, *options).stdout
    said = json.loads(accept(place, token, *options, "--json").stdout)
    assert said["verifier"] == "v"
    assert (said["tee"], said["simulated"], said["replica"]) == ("tdx", True, "replica-1")
    assert (said["verified_at"], said["expires"]) == (NOW, NOW + 300)
    assert "SIMULATED TEE" in accept(place, token, *options).stdout
    document = json.loads(issue(place, *options, "--json").stdout)
    assert document["expires"] == NOW + 900
    assert document["token"].count(".") == 2


def test_what_does_not_fit_is_one_line_with_its_exit_code(place: Path) -> None:
    token = issue(place, "--audience", "me").stdout
    assert accept(place, token, code=3).stderr.startswith("token: the token is meant for another audience")
    refused = accept(place, token, "--audience", "me", "--eat-nonce", "aa" * 16, code=3)
    assert refused.stderr.startswith("evidence: the token answers another nonce")
    assert accept(place, token, "--audience", "me", "--max-age", "1", code=3).stderr.startswith("appraisal: ")
    assert accept(place, "x", code=3).stderr.startswith("token: this is no signed token")
    assert accept(place, "ä", code=2).stderr.startswith("usage: ")
    other = (place / "policy.toml").read_text().replace("max_age_seconds = 3600", "max_age_seconds = 60")
    (place / "policy.toml").write_text(other)
    assert "which is not listed" in accept(place, token, "--audience", "me", code=5).stderr


def test_only_an_appraised_bundle_is_signed_and_only_with_a_key_of_ones_own(place: Path) -> None:
    assert "\nevidence: " in issue(place, "--nonce", "11" * 32, code=3).stderr
    assert issue(place, "--nonce", "11", code=2).stderr.startswith("usage: --nonce is not 32 bytes")
    assert issue(place, "--eat-nonce", "11", code=2).stderr.startswith(
        "usage: --eat-nonce is not 8 to 64 bytes"
    )
    assert issue(place, "--key", place / "public.pem", code=2).stderr.startswith("usage: the signing key")
    (place / "key.pem").chmod(0o644)
    assert "can be read by others" in issue(place, code=2).stderr
