"""Named attacks on the mesh: on requests, on certificates, and over real handshakes on both sides of a connection."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import structs

import mesh_parts as mesh
import ratls_parts
from cloister.broker.mesh import EVIDENCE_OID, MeshGeneration, TrustBundle, digest_extension, issue, mesh_name
from cloister.broker.mesh_peer import MeshRefused, verify_peer
from cloister.broker.mesh_request import CsrRefused, dns_name, make_request, uri_name
from cloister.broker.mesh_tls import client_context, peer_of, server_context
from cloister.errors import BrokerError
from mesh_parts import APPLICATION, EVIDENCE, NOW, Member, member

KEY = mesh.new_key()
OWN = make_request(KEY, workload="scorer", application=APPLICATION)


def asking(
    *,
    names: list[x509.GeneralName] | None = None,
    subject: list[tuple[x509.ObjectIdentifier, str]] | None = None,
    extra: tuple[x509.ExtensionType, ...] = (),
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(oid, value) for oid, value in subject or []])
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for one in extra:
        builder = builder.add_extension(one, critical=True)
    return builder.sign(KEY, SHA256()).public_bytes(Encoding.DER)


def forged() -> bytes:
    """Another's public key in a request that the attacker signed: the certificate would be for a key it never had."""
    victim = mesh.new_key().public_key()
    point = victim.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return OWN.replace(KEY.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint), point)


ASKER = dns_name("asker", APPLICATION)
REQUESTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "whose signature is of another key": (forged, "not signed by its own key"),
    "whose signature is altered": (lambda: OWN[:-1] + bytes([OWN[-1] ^ 1]), "signed by its own key|no certificate request"),
    "for another workload's name": (
        lambda: asking(names=[x509.DNSName(ASKER)]), "a name that is not the workload's own",
    ),
    "for its own and another name": (
        lambda: asking(names=[x509.DNSName(dns_name("scorer", APPLICATION)), x509.DNSName(ASKER)]),
        "a name that is not the workload's own",
    ),
    "for a wildcard": (
        lambda: asking(names=[x509.DNSName(f"*.{APPLICATION}.mesh.cloister")]), "not the workload's own",
    ),
    "for another application": (
        lambda: asking(names=[x509.DNSName(dns_name("scorer", "bank"))]), "not the workload's own",
    ),
    "for another workload's URI": (
        lambda: asking(names=[x509.UniformResourceIdentifier(uri_name("asker", APPLICATION))]),
        "not the workload's own",
    ),
    "for an address": (
        lambda: asking(names=[x509.IPAddress(ip_address("10.0.0.1"))]), "not the workload's own",
    ),
    "for its own name as an e-mail address": (
        lambda: asking(names=[x509.RFC822Name(dns_name("scorer", APPLICATION))]), "not the workload's own",
    ),
    "for another subject": (lambda: asking(subject=[(NameOID.COMMON_NAME, "asker")]), "not the workload's own"),
    "for the subject of an authority": (
        lambda: asking(
            subject=[(NameOID.ORGANIZATION_NAME, APPLICATION), (NameOID.COMMON_NAME, "mesh of manifest 1")]
        ),
        "not the workload's own",
    ),
    "to be an authority": (
        lambda: asking(extra=(x509.BasicConstraints(ca=True, path_length=None),)), "more than a key",
    ),
    "for another use": (
        lambda: asking(extra=(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]),)), "more than a key",
    ),
    "with evidence of its own": (
        lambda: asking(extra=(x509.UnrecognizedExtension(EVIDENCE_OID, digest_extension(b"\0" * 32)),)),
        "more than a key",
    ),
    "that is a certificate": (lambda: member().chain[0], "no certificate request"),
    "that is PEM": (lambda: b"-----BEGIN CERTIFICATE REQUEST-----", "no certificate request"),
    "over its bound": (lambda: OWN + b"\0" * 16_384, "at most"),
    "with bytes behind it": (lambda: OWN + b"\0", "no certificate request"),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_nothing_is_issued_for_a_request(name: str) -> None:
    make, words = REQUESTS[name]
    with pytest.raises(CsrRefused, match=words):
        issue(
            mesh.generation(), make(), workload="scorer", application=APPLICATION,
            evidence_sha256=EVIDENCE, now=NOW, lifetime=3600,
        )  # fmt: skip


def test_the_request_that_those_were_made_from_is_answered() -> None:
    leaf = issue(
        mesh.generation(), OWN, workload="scorer", application=APPLICATION,
        evidence_sha256=EVIDENCE, now=NOW, lifetime=3600,
    )  # fmt: skip
    assert verify_peer((leaf,), bundle=mesh.bundle(), now=NOW).workload == "scorer"


# -- certificates, as the pure check sees them ----------------------------------------------------------------------


def leaf(
    signer: MeshGeneration | tuple[bytes, ec.EllipticCurvePrivateKey] | None = None,
    *,
    names: tuple[str, ...] = (dns_name("scorer", APPLICATION), uri_name("scorer", APPLICATION)),
    ca: bool = False,
    signs: bool = True,
    purposes: tuple[x509.ObjectIdentifier, ...] = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    ),
    evidence: bytes | None = digest_extension(EVIDENCE),
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    start: int = NOW - 60,
    life: int = 3660,
    key: ec.EllipticCurvePrivateKey = KEY,
) -> bytes:
    """What a mesh with a broken broker, or a member with tools of its own, could sign."""
    by = signer or mesh.generation()
    certificate, signing = (by.certificate, by._key) if isinstance(by, MeshGeneration) else by
    issuer = x509.load_der_x509_certificate(certificate)
    begin = datetime.datetime.fromtimestamp(start, datetime.UTC)
    shown = [x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name) for name in names]
    usage = dict.fromkeys(
        (
            "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(mesh_name(APPLICATION, "scorer"))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(seconds=life))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=signs, key_cert_sign=ca, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(shown), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False
        )
    )
    if evidence is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(EVIDENCE_OID, evidence), critical=False)
    for one, critical in extra:
        builder = builder.add_extension(one, critical=critical)
    return builder.sign(signing, SHA384()).public_bytes(Encoding.DER)


def by_member() -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """A workload that signs with its own leaf."""
    mine = member("asker")
    return mine.chain[0], mine.key


def self_made() -> MeshGeneration:
    """A generation with every name of the real one, under a root that the attacker made."""
    root = mesh.MeshRoot.create(application=APPLICATION, now=NOW)
    return MeshGeneration.create(root, manifest_version=1, manifest_digest=mesh.digest(1), now=NOW)


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
CERTIFICATES: dict[str, tuple[Callable[[], tuple[bytes, ...]], str]] = {
    "of the generation before": (lambda: member(version=2).chain, "not of the manifest in force"),
    "of another application's mesh": (lambda: member(application="bank").chain, "not of the manifest in force"),
    "of a mesh that only looks like it": (lambda: (leaf(self_made()),), "not of the manifest in force"),
    "that a workload signed with its leaf": (
        lambda: (leaf(by_member()), member("asker").chain[0]), "not of the manifest in force",
    ),
    "that has ended": (lambda: member(now=NOW - 3600).chain, "cannot be used"),
    "that has not begun": (lambda: member(now=NOW + 61).chain, "cannot be used"),
    "of the generation itself": (lambda: (mesh.generation().certificate,), "not of the manifest in force"),
    "of the root itself": (lambda: (mesh.root().certificate,), "not of the manifest in force"),
    "of an authority among leaves": (lambda: (leaf(ca=True),), "authority"),
    "with a key that is not for signing": (lambda: (leaf(signs=False),), "authority"),
    "for clients alone": (lambda: (leaf(purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,)),), "cannot be used"),
    "for another use": (
        lambda: (leaf(purposes=(ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.CODE_SIGNING)),), "another use",
    ),
    "without evidence": (lambda: (leaf(evidence=None),), "extensions"),
    "with half a digest for evidence": (lambda: (leaf(evidence=b"\x04\x10" + b"\0" * 16),), "evidence"),
    "with an extension more": (lambda: (leaf(extra=((UNKNOWN, False),)),), "extensions"),
    "with a critical extension that nobody knows": (lambda: (leaf(extra=((UNKNOWN, True),)),), "extensions"),
    "with two names": (
        lambda: (leaf(names=(dns_name("scorer", APPLICATION), ASKER, uri_name("scorer", APPLICATION))),), "cannot be used",
    ),
    "with two names that differ": (
        lambda: (leaf(names=(dns_name("scorer", APPLICATION), uri_name("asker", APPLICATION))),), "names no workload",
    ),
    "with a wildcard": (
        lambda: (leaf(names=(f"*.{APPLICATION}.mesh.cloister", uri_name("*", APPLICATION))),), "names no workload",
    ),
    "with a name in capitals": (
        lambda: (leaf(names=(f"SCORER.{APPLICATION}.mesh.cloister", uri_name("SCORER", APPLICATION))),),
        "names no workload",
    ),
    "with another application's name": (
        lambda: (leaf(names=(dns_name("scorer", "bank"), uri_name("scorer", "bank"))),), "names no workload",
    ),
    "that is noise": (lambda: (b"noise",), "cannot be used"),
    "that is not there": (lambda: (), "chain of one"),
    "in a chain of five": (lambda: member().chain[:1] * 5, "chain of one"),
}  # fmt: skip


@pytest.mark.parametrize("name", CERTIFICATES)
def test_the_mesh_vouches_for_no_certificate(name: str) -> None:
    make, words = CERTIFICATES[name]
    with pytest.raises(MeshRefused, match=words):
        verify_peer(make(), bundle=mesh.bundle(), now=NOW)


def test_the_certificate_that_those_were_made_from_is_vouched_for() -> None:
    assert verify_peer((leaf(),), bundle=mesh.bundle(), now=NOW).workload == "scorer"


def test_one_workload_is_not_another() -> None:
    with pytest.raises(MeshRefused, match="the peer is asker, not scorer"):
        verify_peer(member("asker").chain, bundle=mesh.bundle(), now=NOW, workload="scorer")


# -- over real handshakes -------------------------------------------------------------------------------------------


def shown(chain: tuple[bytes, ...], key: ec.EllipticCurvePrivateKey, bundle: TrustBundle) -> Member:
    return Member("attacker", key, chain, bundle)


def with_every_authority(mine: Member) -> Member:
    """The attacker's chain leads up to the root that both generations have."""
    return shown((*mine.chain, mesh.root().certificate), mine.key, mesh.bundle())


def under_a_leaf() -> Member:
    asker = member("asker")
    return shown((leaf((asker.chain[0], asker.key)), *asker.chain), KEY, mesh.bundle())


def ended() -> Member:
    mine = member(now=NOW - 7200)
    return shown(mine.chain, mine.key, mesh.bundle())


def self_signed() -> Member:
    certificate = ratls_parts.certified(KEY, None)
    return shown((certificate,), KEY, mesh.bundle())


IMPOSTORS: dict[str, Callable[[], Member]] = {
    "a certificate of the generation before": lambda: believing(member(version=2)),
    "the same with its whole chain up to the root": lambda: with_every_authority(member(version=2)),
    "a certificate of another application": lambda: believing(member(application="bank")),
    "a certificate that has ended": ended,
    "a certificate that a workload signed with its leaf": under_a_leaf,
    "a certificate of its own": self_signed,
    "an attested certificate in the place of one of the mesh": lambda: shown(
        (ratls_parts.attested().certificate,), ratls_parts.attested().key, mesh.bundle()
    ),
}


def believing(mine: Member) -> Member:
    """The attacker believes the mesh in force, so that nothing but its own certificate stands in the way."""
    return shown(mine.chain, mine.key, mesh.bundle())


@pytest.mark.parametrize("name", IMPOSTORS)
def test_a_server_hears_nothing_from_a_client_with(name: str) -> None:
    impostor = IMPOSTORS[name]()
    with mesh.answering(member("scorer").server()) as (port, told):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            mesh.talk(impostor.client(), port)
        assert told == []
        assert mesh.talk(member("asker").client(), port) == b"welcome"


@pytest.mark.parametrize("name", IMPOSTORS)
def test_a_client_says_nothing_to_a_server_with(name: str) -> None:
    impostor = IMPOSTORS[name]()
    with mesh.answering(impostor.server()) as (port, told):
        with pytest.raises(ssl.SSLCertVerificationError):
            mesh.talk(member("asker").client(), port, "scorer")
        assert told == []


def test_a_client_without_a_certificate_is_not_heard() -> None:
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    with mesh.answering(member("scorer").server()) as (port, told):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            mesh.talk(nobody, port)
        assert told == []


@pytest.mark.parametrize("pretender", ["asker", "scorer2", "core"])
def test_a_workload_cannot_serve_as_another(pretender: str) -> None:
    with mesh.answering(member(pretender).server()) as (port, told):
        with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)hostname"):
            mesh.talk(member("asker").client(), port, "scorer")
        assert told == []
        assert mesh.talk(member("asker").client(), port, pretender) == b"welcome"


@contextlib.contextmanager
def connected(client: Member, server: Member) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """Both ends of one connection."""
    left, right = socket.socketpair()
    ends: list[ssl.SSLSocket] = []
    thread = threading.Thread(
        target=lambda: ends.append(server.server().wrap_socket(right, server_side=True)), daemon=True
    )
    thread.start()
    with client.client().wrap_socket(left, server_hostname=dns_name(server.workload, APPLICATION)) as near:
        near.sendall(b"x")
        thread.join(10)
        with ends[0] as far:
            assert far.recv(1) == b"x"
            yield near, far


def test_a_server_learns_who_came_and_refuses_whom_it_did_not_mean() -> None:
    asker, scorer = member("asker"), member("scorer")
    with connected(asker, scorer) as (near, far):
        found = peer_of(far, bundle=scorer.bundle, now=NOW)
        assert (found.workload, found.evidence_sha256) == ("asker", EVIDENCE)
        assert peer_of(near, bundle=asker.bundle, now=NOW, workload="scorer").workload == "scorer"
        with pytest.raises(MeshRefused, match="the peer is asker, not reader"):
            peer_of(far, bundle=scorer.bundle, now=NOW, workload="reader")
        with pytest.raises(MeshRefused, match="not of the manifest in force"):
            peer_of(far, bundle=mesh.bundle(2), now=NOW)  # the manifest changed while they were connected
        with pytest.raises(MeshRefused, match="cannot be used"):
            peer_of(far, bundle=scorer.bundle, now=NOW + 3600)


def test_a_connection_without_a_certificate_is_nobodys() -> None:
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(MeshRefused, match="no certificate"):
        peer_of(
            anyone.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="x"),
            bundle=mesh.bundle(),
            now=NOW,
        )


def test_contexts_speak_tls_1_3_alone_and_both_sides_show_themselves() -> None:
    for context in (member().client(), member().server()):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
        assert len(context.get_ca_certs(binary_form=True)) <= 1
    assert member().client().check_hostname


def test_openssl_as_a_client_is_heard_with_a_certificate_of_the_mesh_and_not_without(tmp_path: Path) -> None:
    asker = member("asker")
    pem = x509.load_der_x509_certificate(asker.chain[0]).public_bytes(Encoding.PEM)
    (tmp_path / "asker.pem").write_bytes(
        pem + asker.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    anchor = x509.load_der_x509_certificate(mesh.generation().certificate).public_bytes(Encoding.PEM)
    (tmp_path / "anchor.pem").write_bytes(anchor)
    name = dns_name("scorer", APPLICATION)

    def ask(*arguments: str | Path) -> bytes:
        return subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", name, "-verify_hostname", name,
             "-partial_chain", "-no-CApath", "-CAfile", tmp_path / "anchor.pem", "-verify_return_error", "-quiet",
             *arguments],
            input=b"the question\n", capture_output=True, timeout=30, check=False,
        ).stdout  # fmt: skip

    with mesh.answering(member("scorer").server()) as (port, told):
        assert b"welcome" in ask("-cert", tmp_path / "asker.pem", "-key", tmp_path / "asker.pem")
        assert b"welcome" not in ask()
        assert told == [b"the question\n"]


def test_an_unbelieved_bundle_makes_no_context() -> None:
    mine = member()
    broken = structs.replace(mesh.bundle(), intermediates=(b"noise",))
    for make in (client_context, server_context):
        with pytest.raises(BrokerError, match="bundle"):
            make(broken, mine.chain, mine.key)
