"""Certificate chains of TPM keys: from an attestation or endorsement key's certificate to a root of the policy.

Beyond signatures and dates (verifier/certificates.py): path lengths, extended key usage, and no critical extension
that is not understood. A revocation list of each issuer may come along; where one comes, it counts. Chains of one
certificate are refused: a key that is its own root vouches for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from cloister.endorsements.der import SEQUENCE, Der
from cloister.endorsements.roots import Root, require_root
from cloister.endorsements.tpm import MAX_CHAIN
from cloister.endorsements.x509 import (
    BASIC_CONSTRAINTS,
    KEY_USAGE,
    Certificate,
    read_certificate,
    read_revocation_list,
)
from cloister.errors import EndorsementError, VerificationError
from cloister.verifier.certificates import check_validity, verify_issued, verify_revocation_list
from cloister.verifier.trail import Trail

EXTENDED_KEY_USAGE: Final = "2.5.29.37"
SUBJECT_ALTERNATIVE_NAME: Final = "2.5.29.17"
_UNDERSTOOD: Final = {BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_KEY_USAGE}
MAX_TIME: Final = 1 << 40
_MAX_USAGES = 16


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that was verified. Times are Unix seconds."""

    leaf: Certificate
    root: Root
    issued_at: int
    """The newest issue date among certificates and lists."""
    expires: int
    """The earliest end among them."""
    revocation: Literal["checked", "not checked"]


def verify_chain(
    certificates: Sequence[bytes],
    crls: Sequence[bytes],
    *,
    roots: Sequence[Root],
    now: int,
    usage: str,
    usage_required: bool,
    revocation_required: bool,
    trail: Trail,
) -> Chain:
    """5. to 7. Verify ``certificates`` (DER, leaf first, root last) at ``now`` (Unix seconds).

    ``usage`` is the extended key usage that the leaf must state; a leaf that states none passes unless
    ``usage_required``. Raises :class:`~cloister.errors.EndorsementError` (malformed, out of time, no list where
    one is required) or :class:`~cloister.errors.VerificationError` (another root, not issued, revoked).
    """
    if not 0 <= now <= MAX_TIME:
        raise EndorsementError(f"{now} is no time", todo="give Unix seconds")
    with trail.check(5) as found:
        if not 2 <= len(certificates) <= MAX_CHAIN:
            raise EndorsementError(
                f"a TPM key's chain has 2 to {MAX_CHAIN} certificates, not {len(certificates)}",
                todo="give the key's certificate first and its root last",
            )
        root = require_root(certificates[-1], roots)
        found(f"{root.name}, SHA-256 {root.sha256[:16]}…")
    with trail.check(6) as found:
        parsed = [read_certificate(der) for der in certificates]
        issued_at, expires = check_validity(parsed, now=now)
        found(f"certificates until {expires}")
    with trail.check(7, name="chain and revocation") as found:
        _roles(parsed)
        for der, issuer in pairwise(certificates):
            verify_issued(der, issuer)
        _usage(parsed[0], usage, required=usage_required)
        lists = _revocation(parsed, crls, now=now, required=revocation_required)
        issued_at, expires = max([issued_at, *lists[0]]), min([expires, *lists[1]])
        checked: Literal["checked", "not checked"] = (
            "checked" if len(lists[0]) == len(parsed) - 1 else "not checked"
        )
        found(f"{len(parsed)} certificates, revocation {checked}")
    return Chain(parsed[0], root, issued_at, expires, checked)


def _roles(chain: Sequence[Certificate]) -> None:
    leaf, *authorities = chain
    if leaf.is_authority:
        raise VerificationError(
            "the TPM key's certificate is an authority's", todo="give the key's own certificate first"
        )
    for below, authority in enumerate(authorities):
        length = authority.path_length
        if length is None:
            raise VerificationError(f"{authority.common_name or 'an issuer'} is no certificate authority")
        if length < below:
            raise VerificationError(
                f"{authority.common_name or 'an issuer'} may not stand above so many authorities"
            )
    for certificate in chain:
        for name, extension in certificate.extensions.items():
            # An endorsement key's names (maker, model, version) are critical when its subject is empty.
            known = name in _UNDERSTOOD or (name == SUBJECT_ALTERNATIVE_NAME and certificate is leaf)
            if extension.critical and not known:
                raise VerificationError(
                    f"a certificate has the critical extension {name}, which is not understood"
                )


def _usage(leaf: Certificate, usage: str, *, required: bool) -> None:
    extension = leaf.extensions.get(EXTENDED_KEY_USAGE)
    if extension is None:
        if required:
            raise VerificationError(
                f"the TPM key's certificate does not state its purpose ({usage})",
                todo="another certificate of the same authority could pass for it",
            )
        return
    outer = Der(extension.value, "certificate's extended key usage")
    content = outer.enter(SEQUENCE)
    outer.end()
    stated: list[str] = []
    while not content.done and len(stated) < _MAX_USAGES:
        stated.append(content.oid())
    if usage not in stated:
        raise VerificationError(
            f"the TPM key's certificate was issued for another purpose than {usage}",
            todo="it is not the certificate of such a key",
        )


def _revocation(
    chain: Sequence[Certificate], crls: Sequence[bytes], *, now: int, required: bool
) -> tuple[list[int], list[int]]:
    """Issue dates and ends of the lists; each is of one issuer of the chain."""
    lists: dict[bytes, bytes] = {}
    for der in crls:
        issuer_name = read_revocation_list(der).issuer
        if issuer_name in lists:
            raise EndorsementError("two revocation lists of one issuer came along", todo="give the newest")
        lists[issuer_name] = der
    starts, ends = [], []
    for certificate, issuer in pairwise(chain):
        name = issuer.common_name or "an issuer"
        der_list = lists.pop(issuer.subject, None)
        if der_list is None:
            if required:
                raise EndorsementError(
                    f"no revocation list of {name} came along, and the policy requires it",
                    todo='fetch the list, or decide for revocation = "unchecked"',
                )
            continue
        found = verify_revocation_list(der_list, issuer.der, now=now)
        if certificate.serial in found.revoked:
            raise VerificationError(
                f"a certificate of the chain (serial {certificate.serial:x}) was revoked by {name}",
                todo="this key or authority is no longer trusted",
            )
        starts.append(found.this_update)
        ends.append(found.next_update)
    if lists:
        raise EndorsementError(
            "a revocation list came along that no issuer of the chain signed", todo="fetch the lists again"
        )
    return starts, ends
