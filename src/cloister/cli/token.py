"""`cloister token`: sign an appraisal for others, and accept one that somebody else signed (docs/spec/ear.md).

Only a bundle that answers a nonce under a policy is signed for: what was merely verified gives no token here. The
signing key is a PEM file (PKCS#8) that only its owner may read; no key stands on a command line.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.appraisal.result import AttestationResult
    from cloister.evidence.key_material import KeyMaterial

app = typer.Typer(
    no_args_is_help=True, help="Sign attestation results as tokens (EAR), and accept those of others."
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
AtOption = Annotated[
    str | None,
    typer.Option("--at", metavar="TIME", help="As of this time: 2026-03-01, …T12:00Z or Unix seconds."),
]
AudienceOption = Annotated[str | None, typer.Option("--audience", help="Whom the token is meant for.")]
AskedOption = Annotated[
    str | None,
    typer.Option(
        "--eat-nonce", metavar="HEX", help="What the relying party asked the verifier, 8 to 64 bytes."
    ),
]


@app.command("issue")
def issue(
    evidence: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A Cloister evidence bundle; - for stdin.")
    ],
    policy: Annotated[Path, typer.Option("--policy", help="The appraisal policy (TOML).")],
    nonce: Annotated[
        str, typer.Option("--nonce", metavar="HEX", help="The nonce that the bundle answers, 32 bytes.")
    ],
    key: Annotated[
        Path, typer.Option("--key", help="The signing key: PEM, P-384 or Ed25519, yours alone to read.")
    ],
    verifier: Annotated[str, typer.Option("--verifier", help="Your name, as relying parties trust it.")],
    endorsements: Annotated[
        list[str] | None,
        typer.Option(
            "--endorsements", metavar="FILE", help="Collateral, certificates, CRLs, RIMs; may be repeated."
        ),
    ] = None,
    audience: AudienceOption = None,
    eat_nonce: AskedOption = None,
    at: AtOption = None,
    as_json: JsonOption = False,
) -> None:
    """Appraise a bundle and print the result as a signed token."""
    from importlib.metadata import version

    from cloister.appraisal.appraise import appraise
    from cloister.appraisal.ear import EarSigner, VerifierId, issue_ear
    from cloister.appraisal.ear_keys import MAX_PEM
    from cloister.appraisal.given import gather
    from cloister.appraisal.policy import read_policy
    from cloister.cli.evidence_input import read_input, recognise_files
    from cloister.cli.verify import parse_time
    from cloister.evidence.bundle import parse_bundle
    from cloister.evidence.key_material import parse_key_material
    from cloister.sealing.descriptors import read_private

    answered = _hex(nonce, "--nonce", 32, 32)
    asked = None if eat_nonce is None else _hex(eat_nonce, "--eat-nonce", 8, 64)
    signer = EarSigner.from_pem(read_private(key, what="the signing key", limit=MAX_PEM))
    rules = read_policy(policy)
    bundle = parse_bundle(read_input(evidence))
    given = gather(recognise_files(endorsements))
    now = int(time.time()) if at is None else parse_time(at)
    result = appraise(
        bundle,
        nonce=answered,
        policy=rules,
        now=now,
        decode=parse_key_material,
        not_after=lambda material: material.not_after,
        collateral=given.of(bundle.tee) or None,
        device_collateral=given.nvidia or None,
    )
    token = issue_ear(
        result,
        policy=rules,
        signer=signer,
        verifier_id=VerifierId(developer=verifier, build=f"cloister {version('cloister')}"),
        now=now,
        nonce=asked,
        audience=audience,
    )
    if as_json:
        typer.echo(json.dumps({"token": token, "kid": signer.kid, **_shown(result)}, indent=2))
    else:
        typer.echo(token)


@app.command("accept")
def accept(
    token: Annotated[str, typer.Argument(metavar="FILE", help="The token; - for stdin.")],
    verifier_key: Annotated[Path, typer.Option("--verifier-key", help="The verifier's public key (PEM).")],
    verifier: Annotated[str, typer.Option("--verifier", help="The verifier's name.")],
    policy: Annotated[
        list[Path], typer.Option("--policy", help="A policy that you accept (TOML); may be repeated.")
    ],
    audience: AudienceOption = None,
    eat_nonce: AskedOption = None,
    max_age: Annotated[int, typer.Option("--max-age", help="Seconds since the evidence was verified.")] = 300,
    skew: Annotated[
        int, typer.Option("--skew", help="Seconds that the verifier's clock may be ahead, 0 to 300.")
    ] = 0,
    at: AtOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accept a trusted verifier's token, or say why not."""
    from cloister.appraisal.ear import TrustedVerifier, accept_ear
    from cloister.appraisal.policy import read_policy
    from cloister.cli.evidence_input import read_input
    from cloister.cli.verify import parse_time
    from cloister.evidence.key_material import parse_key_material

    rules = [read_policy(path) for path in policy]
    simulated = {one.roots.simulated for one in rules}
    if len(simulated) > 1:
        raise UsageError("the policies name different roots", todo="hardware and simulation are never mixed")
    try:
        text = read_input(token).decode("ascii").strip()
    except UnicodeDecodeError:
        raise UsageError(f"{token} is no token", todo="a token is one line of base64url with dots") from None
    result = accept_ear(
        text,
        trusted=[TrustedVerifier.from_pem(verifier, read_input(str(verifier_key)))],
        policies=[one.digest for one in rules],
        nonce=None if eat_nonce is None else _hex(eat_nonce, "--eat-nonce", 8, 64),
        audience=audience,
        now=int(time.time()) if at is None else parse_time(at),
        max_age_seconds=max_age,
        decode=parse_key_material,
        not_after=lambda material: material.not_after,
        simulated_root=simulated.pop(),
        skew_seconds=skew,
    )
    shown = _shown(result)
    if as_json:
        typer.echo(json.dumps(shown, indent=2))
        return
    if result.claims.simulated:
        typer.secho("SIMULATED TEE: no hardware protects this workload.", fg="red", bold=True)
    for name, value in shown.items():
        typer.echo(f"{name.replace('_', ' '):<15} {value}")


def _shown(result: AttestationResult[KeyMaterial]) -> dict[str, Any]:
    return {
        "verifier": result.verifier or "this command",
        "tee": result.claims.tee,
        "simulated": result.claims.simulated,
        "devices": len(result.claims.devices),
        "policy_digest": result.policy_digest,
        "verified_at": result.verified_at,
        "expires": result.expires,
        "replica": "".join(char if char.isprintable() else "?" for char in result.keys.replica),
    }


def _hex(text: str, option: str, least: int, most: int) -> bytes:
    try:
        value = bytes.fromhex(text) if text.isascii() else b""
    except ValueError:
        value = b""
    if not least <= len(value) <= most:
        sizes = str(least) if least == most else f"{least} to {most}"
        raise UsageError(
            f"{option} is not {sizes} bytes in hexadecimal", todo="give the nonce that was asked with"
        )
    return value
