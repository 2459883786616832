"""Is a reference manifest NVIDIA's? Its XML signature, the chain of its signer, and the signed bytes read again.

The signature is checked by ``signxml`` with everything pinned: one reference, to the whole document, with the two
transforms that NVIDIA uses, ECDSA-SHA384, by the first certificate of a chain that ends in the RIM root. What is
returned was read from the bytes that the digest covers, so a document wrapped around a signature says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cloister.endorsements.rim import Rim, parse_xml, read_rim, read_signed, rim_certificates, signature_of
from cloister.endorsements.roots import Root
from cloister.errors import EndorsementError, VerificationError
from cloister.verifier.nvidia_chain import Chain, require_signer, verify_chain

MAX_REMEMBERED = 32
"""Manifests; a fleet runs a few versions at a time."""


@dataclass(frozen=True, slots=True)
class VerifiedRim:
    """A manifest whose signature and chain hold; :func:`~cloister.verifier.nvidia_chain.require_validity` is open."""

    rim: Rim
    """From the signed bytes."""
    chain: Chain


@lru_cache(maxsize=MAX_REMEMBERED)
def verify_rim(data: bytes, root: Root) -> VerifiedRim:
    """Verify all of a manifest that does not depend on the time; what passed is remembered by its bytes and root.

    Raises :class:`~cloister.errors.EndorsementError` or :class:`~cloister.errors.VerificationError`.
    """
    shown = read_rim(data)
    what = f"the reference manifest {shown.label}"
    chain = verify_chain(rim_certificates(data), root, what=what)
    require_signer(chain.certificates[0], what=what)
    rim = read_signed(_signed_bytes(data, chain, what))
    if rim != shown:
        raise VerificationError(f"{what} shows something else than was signed", todo="fetch it again")
    return VerifiedRim(rim, chain)


def _signed_bytes(data: bytes, chain: Chain, what: str) -> bytes:
    import cryptography.exceptions as foreign  # noqa: PLC0415
    from cryptography import x509  # noqa: PLC0415
    from lxml import etree  # noqa: PLC0415
    from signxml.algorithms import DigestAlgorithm, SignatureMethod  # noqa: PLC0415 -- 130 ms that only GPUs need
    from signxml.exceptions import SignXMLException  # noqa: PLC0415
    from signxml.verifier import SignatureConfiguration, XMLVerifier  # noqa: PLC0415

    root = parse_xml(data)
    signature_of(root)
    configuration = SignatureConfiguration(
        require_x509=True,
        location="./",
        expect_references=1,
        signature_methods=frozenset({SignatureMethod.ECDSA_SHA384}),
        digest_algorithms=frozenset({DigestAlgorithm.SHA384}),
        # The chain is ours to judge, at the caller's time; here the signature alone is asked for.
        verification_time=datetime.fromtimestamp(chain.certificates[0].not_before, UTC),
    )
    try:
        signer = x509.load_der_x509_certificate(chain.ders[0])
        result = XMLVerifier().verify(root, x509_cert=signer, expect_config=configuration)
    except (
        SignXMLException,
        foreign.InvalidSignature,
        foreign.UnsupportedAlgorithm,
        etree.LxmlError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:
        raise VerificationError(
            f"the signature of {what} does not hold ({type(error).__name__})",
            todo="it was altered, or signed by another; fetch it again",
        ) from None
    if isinstance(result, list) or result.signed_xml is None:
        raise EndorsementError(f"{what} signs something else than itself")
    return bytes(result.signed_data)
