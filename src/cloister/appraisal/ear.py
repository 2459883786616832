"""EAR tokens: attestation results that a verifier signs for others (docs/spec/ear.md).

:func:`issue_ear` turns a result (or claims that nobody appraised, which say so) into a JWT. :func:`accept_ear` turns
the token of a trusted verifier back into an :class:`~cloister.appraisal.result.AttestationResult` (RFC 9334's passport
model). The algorithm is that of the trusted key, never the token's word. Refused are tokens over 256 KiB, other
headers than three, other fields, unknown submodules, and whatever the relying party did not list.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, TypeVar

from joserfc import jws
from joserfc.errors import JoseError

from cloister.appraisal.ear_claims import decode_claims, encode_claims
from cloister.appraisal.ear_form import (
    MAX_TOKEN,
    PROFILE,
    Ear,
    EarBody,
    Submodule,
    TokenRefused,
    VerifierId,
    parse_token,
)
from cloister.appraisal.ear_keys import EarSigner, TrustedVerifier
from cloister.appraisal.ear_trust import cpu_vector, device_vector, status_of
from cloister.appraisal.policy import Policy
from cloister.appraisal.result import Appraised, AttestationResult
from cloister.encoding import b64url_decode, b64url_encode, from_hex
from cloister.errors import AppraisalRefused, ResultExpired, StaleNonce, UsageError
from cloister.verifier.claims import Claims

__all__ = ["EarSigner", "TokenRefused", "TrustedVerifier", "VerifierId", "accept_ear", "issue_ear"]

_log = logging.getLogger(__name__)

K = TypeVar("K")

MAX_SKEW: Final = 300
"""Most seconds that a verifier's clock may be ahead, if the relying party says so."""
VERIFIED_LIFETIME: Final = 3600
"""A token of claims that nobody appraised ends after so many seconds."""
NOTICE: Final = "SIMULATED TEE: no hardware protects this workload"


def issue_ear(
    subject: AttestationResult[Any] | Claims,
    *,
    signer: EarSigner,
    verifier_id: VerifierId,
    now: int,
    policy: Policy | None = None,
    nonce: bytes | None = None,
    audience: str | None = None,
) -> str:
    """A token about ``subject``, signed by ``signer`` at ``now`` (Unix seconds).

    For a result, ``policy`` is the one it was appraised under; claims take none, and their token has status ``none``,
    ``warning`` or ``contraindicated``. ``nonce`` is what the relying party gave the verifier (8 to 64 bytes).
    Raises :class:`~cloister.errors.UsageError` for another policy, or for a result that came in a token itself;
    :class:`~cloister.errors.ResultExpired` for one that ended.
    """
    if nonce is not None and not 8 <= len(nonce) <= 64:
        raise UsageError(
            f"an EAT nonce has 8 to 64 bytes, not {len(nonce)}", todo="see RFC 9711, section 4.1"
        )
    if isinstance(subject, AttestationResult):
        claims, body, expires = _of_result(subject, policy, now)
    else:
        if policy is not None:
            raise UsageError(
                "claims that nobody appraised have no policy", todo="appraise the evidence first"
            )
        claims, expires = subject, min(subject.collateral_expires, now + VERIFIED_LIFETIME)
        body = EarBody(simulated=claims.simulated, verified_at=now, claims=encode_claims(claims))
    if expires <= now:
        raise ResultExpired(f"there is nothing left to sign for: the claims ended at {expires}")
    if claims.simulated:
        body = EarBody(**{**_fields(body), "notice": NOTICE})
    token = Ear(
        eat_profile=PROFILE,
        iat=now,
        exp=expires,
        verifier=verifier_id,
        eat_nonce=None if nonce is None else b64url_encode(nonce),
        aud=audience,
        submods=_submodules(claims, policy),
        cloister=body,
    )
    header = {"alg": signer.algorithm, "kid": signer.kid, "typ": "JWT"}
    text = jws.serialize_compact(header, token.encode(), signer.key, registry=_registry(signer.algorithm))
    if len(text) > MAX_TOKEN:
        raise UsageError(f"the token is longer than {MAX_TOKEN} bytes", todo="pass the evidence on instead")
    return text


def accept_ear(
    token: str,
    *,
    trusted: Sequence[TrustedVerifier],
    policies: Collection[str],
    nonce: bytes | None,
    audience: str | None,
    now: int,
    max_age_seconds: int,
    decode: Callable[[bytes], K],
    not_after: Callable[[K], int | None],
    simulated_root: str | None = None,
    skew_seconds: int = 0,
) -> AttestationResult[K]:
    """The result that a trusted verifier's token states, until the earliest of all ends.

    ``trusted`` are the verifiers and ``policies`` the digests (hexadecimal) of the policies that this relying party
    accepts. ``nonce`` is what it gave the verifier; None says that a token may be used again until it ends. ``audience``
    is its own name; None takes only a token without audience. ``max_age_seconds`` counts from the moment that the
    evidence was verified. ``simulated_root`` (SHA-256, hexadecimal) asks for a simulated TEE under this root, and then
    for nothing else. ``skew_seconds`` (0 to 300) is how far the verifier's clock may be ahead.
    Raises :class:`TokenRefused`, :class:`~cloister.errors.StaleNonce`, :class:`~cloister.errors.ResultExpired`,
    :class:`~cloister.errors.AppraisalRefused`; for arguments that cannot be meant :class:`~cloister.errors.UsageError`
    and :class:`~cloister.errors.FormatError`.
    """
    _check_arguments(trusted, policies, max_age_seconds, skew_seconds, simulated_root)
    # 1. and 2. A trusted key's signature over exactly this text; nothing of the claims is read before.
    verifier, payload = _signed(token, trusted)
    ear = Ear.parse(payload)
    body = ear.cloister
    # 3. It is meant for this relying party, and answers its question.
    if ear.verifier.developer != verifier.name:
        raise TokenRefused("the token names another verifier than its key belongs to")
    if ear.aud != audience:
        raise TokenRefused(
            "the token is meant for another audience", todo="ask the verifier for one of your own"
        )
    if nonce is not None and (ear.eat_nonce is None or ear.eat_nonce != b64url_encode(nonce)):
        raise StaleNonce("the token answers another nonce", todo="ask the verifier again")
    # 4. It stands now.
    _check_times(ear, now=now, max_age_seconds=max_age_seconds, skew_seconds=skew_seconds)
    # 5. It was appraised under a policy of this relying party.
    if body.policy_digest is None or body.key_material is None:
        raise AppraisalRefused(
            "the token says what was verified, and nobody appraised it", todo="ask for a result"
        )
    if body.policy_digest not in policies:
        raise AppraisalRefused(
            f"the token was issued under policy {body.policy_digest[:16]}…, which is not listed",
            todo="compare that policy with yours before you list it",
        )
    # 6. Its claims are whole, and its submodules say of them what a verifier would.
    claims = decode_claims(body.claims)
    _check_submodules(ear, claims)
    _check_simulation(claims, body, simulated_root)
    # 7. The keys are those of the claims, and everything ends with the first of its ends.
    material = b64url_decode(body.key_material, what="the token's key material")
    if hashlib.sha256(material).hexdigest() != body.key_material_sha256:
        raise TokenRefused("the token's key material has another digest than it states")
    keys = decode(material)
    keys_end = not_after(keys)
    ends = [ear.exp, body.verified_at + max_age_seconds, claims.collateral_expires]
    expires = min(ends if keys_end is None else [*ends, keys_end])
    if expires <= now:
        raise ResultExpired(f"what the token states ended at {expires}", todo="ask the verifier again")
    standing: dict[str, Any] = {
        "key_material": material,
        "policy_digest": body.policy_digest,
        "verified_at": body.verified_at,
        "expires": expires,
        "checks": claims.checks,
        "verifier": verifier.name,
    }
    return AttestationResult(keys=keys, claims=claims, **standing, _seal=Appraised(keys, claims, **standing))


def _of_result(
    result: AttestationResult[Any], policy: Policy | None, now: int
) -> tuple[Claims, EarBody, int]:
    result.require_fresh(now)
    if result.verifier:
        raise UsageError("this result came in a token", todo="pass that token on: it is its verifier's word")
    if policy is None or policy.digest != result.policy_digest:
        raise UsageError("a result's token needs the policy that it was appraised under")
    body = EarBody(
        policy_digest=result.policy_digest,
        simulated=result.claims.simulated,
        verified_at=result.verified_at,
        key_material=b64url_encode(result.key_material),
        key_material_sha256=hashlib.sha256(result.key_material).hexdigest(),
        claims=encode_claims(result.claims),
    )
    return result.claims, body, result.expires


def _fields(body: EarBody) -> dict[str, Any]:
    return {name: getattr(body, name) for name in body.__struct_fields__}


def _submodules(claims: Claims, policy: Policy | None) -> dict[str, Submodule]:
    vectors = {"cpu0": cpu_vector(claims, policy)}
    for name, device in zip(_device_names(claims), claims.devices, strict=True):
        vectors[name] = device_vector(device, policy)
    submodules = {}
    for name, vector in vectors.items():
        status = status_of(vector)
        if policy is None and status == "affirming":
            status = "none"  # genuine, and nobody said that it is the right one
        submodules[name] = Submodule(status=status, vector=vector, policy=policy.digest if policy else None)
    return submodules


def _device_names(claims: Claims) -> list[str]:
    """``gpu0``, ``gpu1`` …, ``nvswitch0`` …, in the order of the claims."""
    counts: dict[str, int] = {}
    names = []
    for device in claims.devices:
        names.append(f"{device.kind}{counts.get(device.kind, 0)}")
        counts[device.kind] = counts.get(device.kind, 0) + 1
    return names


def _check_arguments(
    trusted: Sequence[TrustedVerifier],
    policies: Collection[str],
    max_age_seconds: int,
    skew_seconds: int,
    simulated_root: str | None,
) -> None:
    if not trusted:
        raise UsageError("no verifier is trusted", todo="name the public key of at least one")
    if not policies or isinstance(policies, str):
        raise UsageError("no policy is accepted", todo="list the digests of the policies you accept")
    for digest in policies:
        from_hex(digest, 32, what="a policy digest")
    if max_age_seconds < 1 or not 0 <= skew_seconds <= MAX_SKEW:
        raise UsageError(f"a maximum age is at least 1 second, and a clock skew 0 to {MAX_SKEW} seconds")
    if simulated_root is not None:
        from_hex(simulated_root, 32, what="the simulated root")


def _signed(token: str, trusted: Sequence[TrustedVerifier]) -> tuple[TrustedVerifier, bytes]:
    header = parse_token(token)
    verifier = next((one for one in trusted if one.kid == header.kid), None)
    if verifier is None:
        raise TokenRefused(
            "the token is signed by no trusted verifier", todo="compare its kid with your list"
        )
    if header.alg != verifier.algorithm:
        raise TokenRefused(f"the token's alg is not {verifier.algorithm}, which its key is for")
    try:
        signed = jws.deserialize_compact(token, verifier.key, registry=_registry(verifier.algorithm))
    except (JoseError, ValueError, TypeError):
        raise TokenRefused(
            "the token's signature does not verify", todo="it was altered, or is forged"
        ) from None
    return verifier, signed.payload


def _registry(algorithm: str) -> jws.JWSRegistry:
    """Exactly one algorithm; the library's own bounds are below ours."""
    registry = jws.JWSRegistry(algorithms=[algorithm])
    registry.max_payload_length = MAX_TOKEN
    return registry


def _check_times(ear: Ear, *, now: int, max_age_seconds: int, skew_seconds: int) -> None:
    verified_at = ear.cloister.verified_at
    if not verified_at <= ear.iat < ear.exp:
        raise TokenRefused("the token's times contradict each other")
    if ear.iat > now + skew_seconds:
        raise TokenRefused(f"the token was issued at {ear.iat}, after now ({now})", todo="compare the clocks")
    if ear.exp <= now:
        raise ResultExpired(f"the token ended at {ear.exp}", todo="ask the verifier again")
    if verified_at + max_age_seconds <= now:
        raise ResultExpired(
            f"the evidence was verified at {verified_at}, over {max_age_seconds} s ago",
            todo="ask the verifier again",
        )


def _check_submodules(ear: Ear, claims: Claims) -> None:
    if set(ear.submods) != {"cpu0", *_device_names(claims)}:
        raise TokenRefused("the token's submodules are not those of its claims")
    vectors = [cpu_vector(claims, None), *(device_vector(device, None) for device in claims.devices)]
    for name, least in zip(["cpu0", *_device_names(claims)], vectors, strict=True):
        submodule = ear.submods[name]
        # What the claims alone say has to stand there; what the policy adds is the verifier's word.
        if any(submodule.vector[key] != least[key] for key in ("hardware", "runtime-opaque")):
            raise TokenRefused(f"the token's {name} says something else than its claims")
        if submodule.status != status_of(submodule.vector) or submodule.policy != ear.cloister.policy_digest:
            raise TokenRefused(f"the token's {name} contradicts itself")
    if claims.debug:
        raise TokenRefused("the token is about a workload in debug mode")


def _check_simulation(claims: Claims, body: EarBody, simulated_root: str | None) -> None:
    devices = {device.simulated for device in claims.devices}
    if body.simulated != claims.simulated or devices - {claims.simulated}:
        raise TokenRefused("the token does not agree with itself whether the TEE is simulated")
    if claims.simulated and claims.root_sha256 != simulated_root:
        raise AppraisalRefused(
            "the token is about a simulated TEE: no hardware protects it",
            todo="name that simulated root's digest if this is a test, else refuse the service",
        )
    if claims.simulated:
        _log.warning(
            "SIMULATED TEE ACCEPTED: a token about simulated root %s. No hardware protects this workload; never use this "
            "for real data.",
            claims.root_sha256,
        )
    elif simulated_root is not None:
        raise AppraisalRefused("a simulated TEE was asked for, and the token is about hardware")
