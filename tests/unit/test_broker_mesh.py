"""The mesh's certificates: what is issued, to whom, how it is stored, and that foreign software reads it."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import structs

import mesh_parts as mesh
from cloister.broker.mesh import (
    EVIDENCE_OID,
    MANIFEST_OID,
    MeshGeneration,
    MeshRoot,
    encode_bundle,
    issue,
    parse_bundle,
)
from cloister.broker.mesh_peer import MeshRefused, verify_bundle, verify_peer
from cloister.broker.mesh_request import CsrRefused, dns_name, make_request, requested_key, uri_name
from cloister.encoding import encode_json
from cloister.errors import BrokerError, FormatError, KeystoreError
from mesh_parts import APPLICATION, EVIDENCE, NOW
from spec_vectors import spec_vectors

SCORER = "scorer.clinic.mesh.cloister"


def certified(csr: bytes, **changes: Any) -> x509.Certificate:
    fields: dict[str, Any] = {
        "workload": "scorer",
        "application": APPLICATION,
        "evidence_sha256": EVIDENCE,
        "now": NOW,
        "lifetime": 3600,
    }
    return x509.load_der_x509_certificate(issue(mesh.generation(), csr, **{**fields, **changes}))


def request(
    key: Any,
    *,
    names: list[x509.GeneralName] | None = None,
    subject: dict[x509.ObjectIdentifier, str] | None = None,
    extra: tuple[x509.ExtensionType, ...] = (),
) -> bytes:
    """A PKCS #10 request as other software makes them."""
    attributes = [x509.NameAttribute(oid, value) for oid, value in (subject or {}).items()]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for one in extra:
        builder = builder.add_extension(one, critical=True)
    hashed = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else SHA256()
    return builder.sign(key, hashed).public_bytes(Encoding.DER)


def test_certificates_and_bundle_are_the_specified_ones() -> None:
    vectors = spec_vectors("mesh.md")
    now, workload, application = vectors["now"], vectors["workload"], vectors["application"]
    bundle = parse_bundle(encode_json(vectors["bundle"]))
    verify_bundle(
        bundle, root_sha256=vectors["mesh_root_sha256"], now=now, manifest_sha256=vectors["manifest_sha256"]
    )
    leaf = base64.b64decode(vectors["leaf"])
    peer = verify_peer((leaf,), bundle=bundle, now=now, workload=workload)
    assert peer.evidence_sha256.hex() == vectors["evidence_sha256"]
    assert (peer.not_before, peer.not_after) == (now - 60, now + 3600)
    key = requested_key(base64.b64decode(vectors["request"]), workload=workload, application=application)
    assert key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == peer.public_key


KEYS: dict[str, Callable[[], Any]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA 3072": lambda: rsa.generate_private_key(65537, 3072),
}
WEAK: dict[str, Callable[[], Any]] = {
    "RSA 2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA with exponent 3": lambda: rsa.generate_private_key(3, 3072),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed448": ed448.Ed448PrivateKey.generate,
    "DSA": lambda: dsa.generate_private_key(2048),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_leaf_has_the_requests_key_and_the_manifests_names_and_nothing_else(name: str) -> None:
    key = KEYS[name]()
    leaf = certified(request(key))
    assert leaf.public_key() == key.public_key()
    assert leaf.not_valid_before_utc.timestamp() == NOW - 60
    assert leaf.not_valid_after_utc.timestamp() == NOW + 3600
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName(SCORER), x509.UniformResourceIdentifier("cloister://clinic/scorer")]
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH,
    ]  # fmt: skip
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    evidence = extensions.get_extension_for_oid(EVIDENCE_OID)
    assert not evidence.critical
    assert evidence.value.public_bytes() == b"\x04\x20" + EVIDENCE
    assert len(extensions) == 6
    peer = verify_peer((leaf.public_bytes(Encoding.DER),), bundle=mesh.bundle(), now=NOW)
    assert (peer.workload, peer.application, peer.evidence_sha256) == ("scorer", APPLICATION, EVIDENCE)
    assert (peer.not_before, peer.not_after) == (NOW - 60, NOW + 3600)


@pytest.mark.parametrize("name", WEAK)
def test_a_weak_or_unusual_key_gets_no_certificate(name: str) -> None:
    with pytest.raises(CsrRefused, match="a mesh key is"):
        certified(request(WEAK[name]()))


def test_two_leaves_have_different_serial_numbers() -> None:
    csr = request(mesh.new_key())
    assert certified(csr).serial_number != certified(csr).serial_number


def test_a_request_may_ask_for_the_workloads_own_names() -> None:
    names = [x509.DNSName(SCORER), x509.UniformResourceIdentifier("cloister://clinic/scorer")]
    key = mesh.new_key()
    assert certified(request(key, names=names, subject={NameOID.COMMON_NAME: "scorer"}))
    assert certified(make_request(key, workload="scorer", application=APPLICATION))


@pytest.mark.parametrize(("lifetime", "evidence"), [(59, EVIDENCE), (86_401, EVIDENCE), (3600, b"short")])
def test_no_leaf_lives_over_a_day_or_without_its_evidence(lifetime: int, evidence: bytes) -> None:
    with pytest.raises(BrokerError):
        certified(request(mesh.new_key()), lifetime=lifetime, evidence_sha256=evidence)
    assert certified(request(mesh.new_key()), lifetime=86_400)


NAMELESS = {
    "upper case": "Scorer",
    "an empty label": "a..b",
    "a dot at its end": "a.",
    "a label over 63": "a" * 64,
    "a star": "*",
    "a slash": "a/b",
    "nothing": "",
    "a space": "a b",
    "another alphabet": "ѕcorer",
    "a line break": "scorer\n",
}


@pytest.mark.parametrize("name", NAMELESS)
def test_a_workload_whose_name_dns_cannot_say_has_no_name_in_the_mesh(name: str) -> None:
    with pytest.raises(CsrRefused, match="cannot have a name"):
        dns_name(NAMELESS[name], APPLICATION)


def test_a_name_is_not_too_long_as_a_whole() -> None:
    assert dns_name("a.b-c_d", "Clinic.North") == "a.b-c_d.Clinic.North.mesh.cloister"
    assert uri_name("scorer", "clinic") == "cloister://clinic/scorer"
    with pytest.raises(CsrRefused):
        dns_name(".".join(["a" * 60] * 5), APPLICATION)


def test_root_and_generation_survive_being_stored() -> None:
    root, made = mesh.root(), mesh.generation()
    again, generation = MeshRoot.load(root.dump()), MeshGeneration.load(made.dump())
    assert again.certificate == root.certificate
    assert generation.certificate == made.certificate
    leaf = issue(
        generation, request(mesh.new_key()), workload="scorer", application=APPLICATION,
        evidence_sha256=EVIDENCE, now=NOW, lifetime=3600,
    )  # fmt: skip
    assert verify_peer((leaf,), bundle=mesh.bundle(), now=NOW).workload == "scorer"
    other = MeshGeneration.create(again, manifest_version=1, manifest_digest=mesh.digest(1), now=NOW)
    bundle = structs.replace(mesh.bundle(), intermediates=(other.certificate,))
    verify_bundle(bundle, root_sha256=mesh.root_sha256(), now=NOW, manifest_sha256=mesh.digest(1))


@pytest.mark.parametrize(
    "stored", [b"", b"{}", b"not json", encode_json({"format": "cloister/mesh-authority/v1"})]
)
def test_a_stored_authority_that_is_damaged_is_said_so(stored: bytes) -> None:
    with pytest.raises(KeystoreError, match="malformed"):
        MeshRoot.load(stored)


def test_a_stored_authority_of_another_kind_of_key_is_refused() -> None:
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
    )
    stored = encode_json({"format": "cloister/mesh-authority/v1", "certificate": b"", "key": key})
    with pytest.raises(KeystoreError, match="another kind"):
        MeshGeneration.load(stored)


def test_no_key_shows_in_a_representation() -> None:
    for one in (mesh.root(), mesh.generation()):
        assert "PrivateKey" not in repr(one)
        assert "BEGIN" not in repr(one)


def test_a_root_that_has_ended_makes_no_generation() -> None:
    root = MeshRoot.create(application=APPLICATION, now=NOW - 3651 * 86_400)
    with pytest.raises(BrokerError, match="root has ended"):
        MeshGeneration.create(root, manifest_version=1, manifest_digest=mesh.digest(1), now=NOW)


def test_authorities_begin_before_they_were_made_and_a_generation_ends_with_its_root() -> None:
    root = x509.load_der_x509_certificate(mesh.root().certificate)
    one = x509.load_der_x509_certificate(mesh.generation().certificate)
    assert root.not_valid_before_utc.timestamp() == one.not_valid_before_utc.timestamp() == NOW - 60
    assert one.not_valid_after_utc == root.not_valid_after_utc
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 1
    assert one.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    manifest = one.extensions.get_extension_for_oid(MANIFEST_OID).value
    assert manifest.public_bytes() == b"\x04\x20" + bytes.fromhex(mesh.digest(1))


def test_a_bundle_survives_its_encoding() -> None:
    bundle = mesh.bundle()
    assert parse_bundle(encode_bundle(bundle)) == bundle
    verify_bundle(bundle, root_sha256=mesh.root_sha256(), now=NOW)
    verify_bundle(bundle, root_sha256=mesh.root_sha256(), now=NOW, manifest_sha256=mesh.digest(1))


BUNDLES: dict[str, Callable[[], bytes]] = {
    "no intermediate": lambda: encode_bundle(structs.replace(mesh.bundle(), intermediates=())),
    "five intermediates": lambda: encode_bundle(
        structs.replace(mesh.bundle(), intermediates=mesh.bundle().intermediates * 5)
    ),
    "version nought": lambda: encode_bundle(structs.replace(mesh.bundle(), manifest_version=0)),
    "no application": lambda: encode_bundle(structs.replace(mesh.bundle(), application="")),
    "an application with a long name": lambda: encode_bundle(
        structs.replace(mesh.bundle(), application="a" * 65)
    ),
    "white space": lambda: encode_bundle(mesh.bundle()) + b"\n",
    "another format": lambda: encode_bundle(mesh.bundle()).replace(b"bundle/v1", b"bundle/v2"),
    "over its bound": lambda: b" " * 65_537,
}


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_is_refused_that_has(name: str) -> None:
    with pytest.raises(FormatError):
        parse_bundle(BUNDLES[name]())


FOREIGN: dict[str, Callable[[], Any]] = {
    "another root": lambda: (mesh.bundle(1, "other"), {}),
    "another application's name": lambda: (structs.replace(mesh.bundle(), application="other"), {}),
    "an intermediate of another root": lambda: (
        structs.replace(mesh.bundle(), intermediates=mesh.bundle(1, "other").intermediates), {},
    ),
    "one good and one foreign intermediate": lambda: (
        structs.replace(
            mesh.bundle(), intermediates=mesh.bundle().intermediates + mesh.bundle(1, "other").intermediates
        ), {},
    ),
    "the intermediate of another manifest": lambda: (
        structs.replace(mesh.bundle(), intermediates=mesh.bundle(2).intermediates), {},
    ),
    "another version's number": lambda: (structs.replace(mesh.bundle(), manifest_version=2), {}),
    "another manifest's digest": lambda: (mesh.bundle(), {"manifest_sha256": mesh.digest(2)}),
    "a leaf for an intermediate": lambda: (
        structs.replace(mesh.bundle(), intermediates=(mesh.member().chain[0],)), {},
    ),
    "the root for an intermediate": lambda: (
        structs.replace(mesh.bundle(), intermediates=(mesh.root().certificate,)), {},
    ),
    "noise for an intermediate": lambda: (structs.replace(mesh.bundle(), intermediates=(b"noise",)), {}),
    "an end that has passed": lambda: (mesh.bundle(), {"now": NOW + 3651 * 86_400}),
    "a beginning that has not come": lambda: (mesh.bundle(), {"now": NOW - 61}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_bundle_is_not_this_meshs_with(name: str) -> None:
    bundle, changes = FOREIGN[name]()
    with pytest.raises(MeshRefused):
        verify_bundle(bundle, **{"root_sha256": mesh.root_sha256(), "now": NOW, **changes})


def test_openssl_believes_a_leaf_under_its_generation_and_under_no_other(tmp_path: Path) -> None:
    member = mesh.member()
    files = {"leaf": member.chain[0], "one": member.chain[1], "two": mesh.generation(2).certificate}
    for name, der in files.items():
        (tmp_path / name).write_text(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode())

    def verify(anchor: str, host: str) -> int:
        return subprocess.run(
            ["openssl", "verify", "-x509_strict", "-partial_chain", "-no-CApath", "-no-CAfile", "-purpose", "sslserver",
             "-verify_hostname", host, "-trusted", tmp_path / anchor, tmp_path / "leaf"],
            capture_output=True, check=False,
        ).returncode  # fmt: skip

    assert verify("one", SCORER) == 0
    assert verify("two", SCORER) != 0
    assert verify("one", "asker.clinic.mesh.cloister") != 0


def test_a_request_by_openssl_is_taken(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=scorer", "-addext", f"subjectAltName=DNS:{SCORER}", "-keyout", tmp_path / "key",
         "-out", tmp_path / "csr", "-outform", "DER"],
        check=True, capture_output=True,
    )  # fmt: skip
    assert certified((tmp_path / "csr").read_bytes())
