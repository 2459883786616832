"""TPM 2.0 quotes: did a TPM that the policy's authorities vouch for sign these PCR values over this qualifying data?

The attestation key must be a restricted signing key: such a key signs a quote only when its TPM made it. That the key
is such a key is known from its certificate: an enrolment of ours (verifier/tpm_enrolment.py) writes the key's name,
which covers its attributes, into it, and then the name must be that of the key that came along; a cloud's authority
vouches for the attributes with its name. Which values are right is not judged here: see appraisal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.endorsements.roots import Root
from cloister.endorsements.tpm import (
    AK_CERTIFICATE_USAGE,
    AK_IDENTITY,
    AkIdentity,
    parse_identity,
    parse_tpm_endorsements,
)
from cloister.endorsements.x509 import Certificate
from cloister.errors import VerificationError
from cloister.evidence.tpm import TpmQuote, parse_quote
from cloister.evidence.tpm_structures import PublicKey, TpmPublic, parse_signature
from cloister.verifier.certificates import public_key
from cloister.verifier.claims import Claims
from cloister.verifier.tpm_chain import verify_chain
from cloister.verifier.trail import Trail

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


def verify(
    quote: bytes,
    endorsements: bytes,
    *,
    roots: Sequence[Root],
    now: int,
    revocation_required: bool,
    trail: Trail | None = None,
) -> Claims:
    """Verify ``quote`` (evidence/tpm.py) against ``endorsements`` (endorsements/tpm.py) at ``now`` (Unix seconds).

    Raises :class:`~cloister.errors.EvidenceError` (not a quote, or values that it does not cover),
    :class:`~cloister.errors.EndorsementError` (chain or lists missing, malformed, out of time) or
    :class:`~cloister.errors.VerificationError` (another root, revoked, another key, a wrong signature).
    """
    trail = Trail() if trail is None else trail
    # 3. The quote has its form, and the PCR values are those it covers.
    with trail.check(3) as found:
        parsed = parse_quote(quote)
        found(f"TPM quote over {len(parsed.pcrs)} PCRs of bank {parsed.bank}")
    documents = parse_tpm_endorsements(endorsements)
    # 5. to 7. The key's certificate leads to a root of the policy, now, and nothing of it was revoked.
    chain = verify_chain(
        documents.ak_chain,
        documents.crls,
        roots=roots,
        now=now,
        usage=AK_CERTIFICATE_USAGE,
        usage_required=False,
        revocation_required=revocation_required,
        trail=trail,
    )
    # 8. The quote's key is the certified one, and a key that only signs what its TPM made.
    with trail.check(8, name="attestation key") as found:
        key = parsed.attestation_key
        identity = _certified(key, chain.leaf)
        found(f"name {key.name.hex()[:20]}…, {'enrolled' if identity else 'certified without its name'}")
    # 7. It signed exactly this quote.
    with trail.check(7, name="quote signature") as found:
        found(verify_signature(parsed, key.key))
    return Claims(
        tee="tpm",
        root_sha256=chain.root.sha256,
        simulated=chain.root.simulated,
        report=parsed,
        measurements=pcr_measurements(parsed),
        report_data=parsed.extra_data,
        debug=False,
        tcb_status=None,
        advisory_ids=(),
        tcb_evaluation_number=None,
        issued_at=chain.issued_at,
        collateral_expires=chain.expires,
        hardware={} if identity is None else {"ek_sha256": identity.ek_sha256.hex()},
        details={**quote_details(parsed), "revocation": chain.revocation},
        checks=trail.passed,
    )


def verify_signature(quote: TpmQuote, key: PublicKey) -> str:
    """The scheme by which ``key`` signed ``quote``. Raises :class:`~cloister.errors.VerificationError`.

    The key must be an attestation key (attributes), and the scheme its own.
    """
    public = quote.attestation_key
    public.require_attestation_key()
    signature = parse_signature(quote.signature)
    if public.scheme != (signature.scheme, signature.hash):
        raise VerificationError(
            f"the quote is signed by {signature.scheme} with {signature.hash}, which is not the key's scheme"
        )
    algorithm = _HASHES[signature.hash]
    try:
        if isinstance(key, rsa.RSAPublicKey):
            scheme = (
                padding.PKCS1v15()
                if signature.scheme == "rsassa"
                else padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            )
            key.verify(signature.value, quote.attest, scheme, algorithm)
        else:
            der = encode_dss_signature(signature.r, signature.s)
            key.verify(der, quote.attest, ec.ECDSA(algorithm))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        raise VerificationError(
            "the quote's signature does not verify", todo="the quote was altered, or another key signed it"
        ) from None
    return f"{signature.scheme} with {signature.hash}"


def pcr_measurements(quote: TpmQuote) -> dict[str, bytes]:
    """The PCR values as claims name them."""
    return {f"pcr{number}": value for number, value in sorted(quote.pcrs.items())}


def quote_details(quote: TpmQuote) -> dict[str, str]:
    """What else the quote says, in text."""
    return {
        "bank": quote.bank,
        "firmware_version": f"{quote.firmware_version:016x}",
        "clock": str(quote.clock),
        "clock_safe": str(quote.safe).lower(),
        "reset_count": str(quote.reset_count),
        "restart_count": str(quote.restart_count),
        "qualified_signer": quote.qualified_signer.hex(),
    }


def key_info(key: PublicKey) -> bytes:
    """``key`` as a SubjectPublicKeyInfo (DER)."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _certified(key: TpmPublic, certificate: Certificate) -> AkIdentity | None:
    key.require_attestation_key()
    # Keys are compared, not encodings: a certificate may write the same key's algorithm in another form.
    if public_key(certificate.public_key) != key.key:
        raise VerificationError(
            "the attestation key's certificate is another key's",
            todo="the quote is of another TPM; send the certificate of the key that signs",
        )
    extension = certificate.extensions.get(AK_IDENTITY)
    if extension is None:
        return None
    identity = parse_identity(extension.value)
    if identity.ak_name != key.name:
        raise VerificationError(
            "the attestation key has other attributes than when it was enrolled",
            todo="its public area was altered; enrol the key again",
        )
    return identity
