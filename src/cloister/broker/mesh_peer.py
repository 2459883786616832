"""Whom the mesh vouches for: a peer's certificate under the trust bundle of the manifest in force. Pure.

The anchors are the bundle's intermediates and nothing above them, so what another manifest certified is refused although
its root is the same. A leaf is exactly what :func:`cloister.broker.mesh.issue` makes; a certificate with anything else in
it is refused. The bundle itself is believed for the digest of its root, which the broker's evidence binds.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloister.broker.mesh import EVIDENCE_OID, MANIFEST_OID, TrustBundle, digest_extension, mesh_name
from cloister.broker.mesh_request import DOMAIN, CsrRefused, dns_name, uri_name
from cloister.encoding import from_hex
from cloister.endorsements.der import SEQUENCE, Der
from cloister.endorsements.x509 import BASIC_CONSTRAINTS, KEY_USAGE, Certificate, read_certificate
from cloister.errors import BrokerError, EndorsementError, FormatError, VerificationError
from cloister.verifier.certificates import check_validity, verify_issued

MAX_CHAIN: Final = 4
_NAMES: Final = "2.5.29.17"
_PURPOSES: Final = "2.5.29.37"
_AUTHORITY_KEY: Final = "2.5.29.35"
_LEAF: Final = frozenset(
    (BASIC_CONSTRAINTS, KEY_USAGE, _NAMES, _PURPOSES, _AUTHORITY_KEY, EVIDENCE_OID.dotted_string)
)
_SERVER_AND_CLIENT: Final = {"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"}
_DIGITAL_SIGNATURE: Final = 0
_DNS: Final = 0x82
_URI: Final = 0x86


class MeshRefused(BrokerError):
    """A certificate that the mesh in force does not vouch for, or a bundle that is not of this mesh."""

    exit_code = FormatError.exit_code


@dataclass(frozen=True, slots=True)
class MeshPeer:
    """Whose certificate it is. Times are Unix seconds."""

    workload: str
    application: str
    evidence_sha256: bytes
    """Of the evidence on which the broker issued it; the broker's audit log has the entry."""
    not_before: int
    not_after: int
    public_key: bytes
    """SubjectPublicKeyInfo, DER."""


def verify_peer(
    chain: Sequence[bytes], *, bundle: TrustBundle, now: int, workload: str | None = None
) -> MeshPeer:
    """Whose a chain (DER, leaf first) is. Raises :class:`MeshRefused`.

    ``workload`` asks for one by name; None takes any of the application. What comes behind the leaf is not believed, so it
    is not looked at. ``bundle`` was verified.
    """
    if not 1 <= len(chain) <= MAX_CHAIN:
        raise MeshRefused(f"a peer shows a chain of one to {MAX_CHAIN} certificates")
    try:
        leaf = _issued_by_one_of(bundle.intermediates, chain[0])
        found = _name_of(leaf, bundle.application)
        check_validity((leaf,), now=now)
    except EndorsementError as error:
        raise MeshRefused(
            f"the peer's certificate cannot be used ({error.what})", todo="the peer renews it"
        ) from None
    if workload is not None and found != workload:
        raise MeshRefused(f"the peer is {found}, not {workload[:80]}")
    return MeshPeer(
        workload=found,
        application=bundle.application,
        evidence_sha256=leaf.extensions[EVIDENCE_OID.dotted_string].value[2:],
        not_before=leaf.not_before,
        not_after=leaf.not_after,
        public_key=leaf.public_key,
    )


def verify_bundle(
    bundle: TrustBundle, *, root_sha256: str, now: int, manifest_sha256: str | None = None
) -> None:
    """Raise :class:`MeshRefused` unless ``bundle`` is of the mesh with this root, and of this manifest where one is given.

    Both digests are hexadecimal, as the broker's key material has them.
    """
    if not hmac.compare_digest(hashlib.sha256(bundle.root).hexdigest(), root_sha256):
        raise MeshRefused("the bundle is of another mesh: its root is not what the broker's evidence binds")
    try:
        root = verify_issued(bundle.root, bundle.root)
        for der in bundle.intermediates:
            one = verify_issued(der, bundle.root)
            check_validity((root, one), now=now)
            named = mesh_name(
                bundle.application, f"mesh of manifest {bundle.manifest_version}"
            ).public_bytes()
            manifest = one.extensions.get(MANIFEST_OID.dotted_string)
            if one.subject != named or one.path_length != 0 or manifest is None:
                raise MeshRefused("an intermediate of the bundle is not of the manifest that it names")
            if manifest_sha256 is not None and manifest.value != digest_extension(
                from_hex(manifest_sha256, 32, what="manifest's digest")
            ):
                raise MeshRefused("the bundle is of another manifest than the one that the broker runs")
    except (EndorsementError, VerificationError) as error:
        raise MeshRefused(
            f"the mesh's bundle cannot be used ({error.what})", todo="get the newest one"
        ) from None


def _issued_by_one_of(intermediates: Sequence[bytes], der: bytes) -> Certificate:
    leaf = read_certificate(der)
    for one in intermediates:
        if read_certificate(one).subject != leaf.issuer:
            continue
        try:
            return verify_issued(der, one)
        except VerificationError:
            continue
    raise MeshRefused(
        "the peer's certificate is not of the manifest in force",
        todo="it was issued under another manifest, or by another mesh: get the newest bundle",
    )


def _name_of(leaf: Certificate, application: str) -> str:
    """The workload of a leaf that has exactly what a leaf has. Raises :class:`MeshRefused`, ``EndorsementError``."""
    critical = {name for name, extension in leaf.extensions.items() if extension.critical}
    if leaf.extensions.keys() != _LEAF or critical != {BASIC_CONSTRAINTS, KEY_USAGE}:
        raise MeshRefused("the peer's certificate has not the extensions of a workload's")
    if leaf.is_authority or not leaf.may(_DIGITAL_SIGNATURE):
        raise MeshRefused("an authority's certificate was shown as a workload's")
    purposes = Der(leaf.extensions[_PURPOSES].value, "certificate's extendedKeyUsage").enter(SEQUENCE)
    found = {purposes.oid(), purposes.oid()}
    purposes.end()
    if found != _SERVER_AND_CLIENT:
        raise MeshRefused("the peer's certificate is for another use than the mesh")
    evidence = leaf.extensions[EVIDENCE_OID.dotted_string].value
    if len(evidence) != 34 or evidence != digest_extension(evidence[2:]):
        raise MeshRefused("the peer's certificate does not name its evidence")
    names = Der(leaf.extensions[_NAMES].value, "certificate's names").enter(SEQUENCE)
    host, uri = names.element(_DNS)[1], names.element(_URI)[1]
    names.end()
    workload = host.decode("latin-1").removesuffix(f".{application}.{DOMAIN}")
    wrong = MeshRefused("the peer's certificate names no workload of this application")
    try:
        expected = dns_name(workload, application).encode(), uri_name(workload, application).encode()
    except CsrRefused:
        raise wrong from None
    if (host, uri) != expected:
        raise wrong
    return workload
