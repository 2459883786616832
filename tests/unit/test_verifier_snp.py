"""The verifier of SEV-SNP reports: AMD's chain, its extensions, its list, the host's table, and what claims say."""

from __future__ import annotations

import datetime
import logging
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attester import RawEvidence
from cloister.attester.simulation import snp_chain
from cloister.attester.simulation.snp import SimulatedSnp
from cloister.endorsements.amd import SnpEndorsements, encode_snp_endorsements, parse_cert_chain
from cloister.endorsements.amd_table import MAX_ENTRIES, CertificateTable, parse_certificate_table
from cloister.endorsements.roots import AMD_ROOTS, simulated_root
from cloister.endorsements.x509 import (
    MAX_CERTIFICATE,
    read_certificate,
    read_pem_certificates,
    read_revocation_list,
)
from cloister.errors import AttesterError, EndorsementError, VerificationError
from cloister.verifier import certificates, snp
from cloister.verifier.amd_chain import read_chain, read_signing_key, verify_chain
from cloister.verifier.certificates import (
    MAX_REMEMBERED,
    check_validity,
    signature_algorithm,
    verify_issued,
    verify_revocation_list,
)
from cloister.verifier.trail import Trail
from simulated_evidence import NOW, REPORT_DATA
from simulated_snp import (
    Shown,
    chip,
    claims_of,
    honest_window,
    platform,
    revocation_list,
    stranger,
    vendor_keys,
)
from snp_vectors import NOW as CAPTURED
from snp_vectors import VLEK, endorsements, report, signing_key


def named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def issue(
    key: Any,
    signer: Any,
    *,
    subject: str = "leaf",
    issuer: str = "authority",
    authority: bool = True,
    scheme: Any = None,
    algorithm: Any = None,
    usage: x509.KeyUsage | None = None,
    extensions: dict[str, tuple[bool, bytes]] | None = None,
) -> bytes:
    """A certificate (DER) of a small CA of the test's own."""
    start = datetime.datetime.fromtimestamp(honest_window().issued, tz=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    for oid, (critical, value) in (extensions or {}).items():
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(extension, critical=critical)
    certificate = builder.sign(signer, algorithm or hashes.SHA384(), rsa_padding=scheme)
    return certificate.public_bytes(Encoding.DER)


P384 = ec.generate_private_key(ec.SECP384R1())
P256 = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SMALL = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 -- refused below
PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)


@pytest.mark.parametrize(
    ("signer", "scheme", "algorithm", "name"),
    [
        (P384, None, hashes.SHA384(), "ecdsa-sha384"),
        (P256, None, hashes.SHA256(), "ecdsa-sha256"),
        (P384, None, hashes.SHA512(), "ecdsa-sha512"),
        (RSA, padding.PKCS1v15(), hashes.SHA256(), "rsa-sha256"),
        (RSA, padding.PKCS1v15(), hashes.SHA384(), "rsa-sha384"),
        (RSA, PSS, hashes.SHA384(), "rsa-pss-sha384"),
        (
            RSA,
            padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32),
            hashes.SHA256(),
            "rsa-pss-sha256",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_certificate_verifies_under_its_issuer(signer: Any, scheme: Any, algorithm: Any, name: str) -> None:
    root = issue(signer, signer, subject="authority", scheme=scheme, algorithm=algorithm)
    leaf = issue(P256, signer, authority=False, scheme=scheme, algorithm=algorithm)
    assert verify_issued(root, root).common_name == "authority"
    found = verify_issued(leaf, root)
    assert (found.common_name, found.is_authority) == ("leaf", False)
    assert signature_algorithm(found) == name
    # Cryptography's own reading of the same bytes.
    theirs = x509.load_der_x509_certificate(leaf)
    assert found.serial == theirs.serial_number
    assert found.not_before == int(theirs.not_valid_before_utc.timestamp())
    assert found.not_after == int(theirs.not_valid_after_utc.timestamp())
    assert found.signed == theirs.tbs_certificate_bytes
    assert found.public_key == theirs.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )


NOT_ISSUED: dict[str, tuple[Callable[[], tuple[bytes, bytes]], str]] = {
    "by another key": (
        lambda: (issue(P256, P384), issue(P256, P256, subject="authority")),
        "signature of leaf does not verify",
    ),
    "by another kind of key": (
        lambda: (issue(P256, P384), issue(RSA, RSA, subject="authority", scheme=PSS)),
        "signature of leaf does not verify",
    ),
    "by another name": (
        lambda: (issue(P256, P384, issuer="somebody"), issue(P384, P384, subject="authority")),
        "leaf was not issued by authority",
    ),
    "by what is no authority": (
        lambda: (issue(P256, P384), issue(P384, P384, subject="authority", authority=False)),
        "authority may not sign certificates",
    ),
    "by what may sign other things": (
        lambda: (
            issue(P256, P384),
            issue(P384, P384, subject="authority", usage=usage(key_cert_sign=False)),
        ),
        "authority may not sign certificates",
    ),
    "with SHA-1's successor of another family": (
        lambda: (
            issue(P256, P384, algorithm=hashes.SHA3_384()),
            issue(P384, P384, subject="authority"),
        ),
        "algorithm that is not accepted",
    ),
    "with a salt of another length": (
        lambda: (
            issue(P256, RSA, scheme=padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=32)),
            issue(RSA, RSA, subject="authority", scheme=PSS),
        ),
        "algorithm that is not accepted",
    ),
    "with RSA of 1024 bits": (
        lambda: (
            issue(P256, SMALL, scheme=padding.PKCS1v15()),
            issue(SMALL, SMALL, subject="authority", scheme=padding.PKCS1v15()),
        ),
        "signature of leaf does not verify",
    ),
}


def usage(*, key_cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


@pytest.mark.parametrize("name", NOT_ISSUED)
def test_a_certificate_is_refused_under_what_did_not_issue_it(name: str) -> None:
    build, says = NOT_ISSUED[name]
    leaf, issuer = build()
    for _ in range(2):  # a refusal is not remembered as a success
        with pytest.raises(VerificationError, match=says):
            verify_issued(leaf, issuer)


def test_a_curve_that_nobody_uses_here_is_refused() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    start = datetime.datetime.fromtimestamp(NOW, tz=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named("authority"))
        .issuer_name(named("authority"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    der = builder.sign(key, None).public_bytes(Encoding.DER)
    with pytest.raises(VerificationError, match="algorithm that is not accepted"):
        verify_issued(der, der)


def test_what_was_verified_is_remembered_within_a_bound() -> None:
    remembered = certificates._Remembered(3)
    for number in range(9):
        remembered.add(bytes([number]))
    assert bytes([8]) in remembered
    assert bytes([5]) not in remembered
    assert len(remembered._pairs) == 3
    assert MAX_REMEMBERED * 64 <= 1 << 16


def test_dates_are_looked_at_each_time() -> None:
    root = read_certificate(issue(P384, P384, subject="authority"))
    end = root.not_after
    assert check_validity([root], now=end - 1) == (root.not_before, end)
    for now, says in ((root.not_before - 1, "after now"), (end, "ended")):
        with pytest.raises(EndorsementError, match=says):
            check_validity([root], now=now)


def test_a_list_is_read_and_belongs_to_its_issuer() -> None:
    listed = verify_revocation_list(revocation_list(5, 6), platform().vendor.ark, now=NOW)
    assert listed.revoked == {5, 6}
    assert (listed.this_update, listed.next_update) == (honest_window().issued, honest_window().next_update)
    with pytest.raises(EndorsementError, match="does not verify"):
        verify_revocation_list(revocation_list(), stranger().vendor.ark, now=NOW)
    with pytest.raises(EndorsementError, match="not issued by"):
        verify_revocation_list(revocation_list(), platform("genoa").vendor.ark, now=NOW)
    with pytest.raises(EndorsementError, match="not issued by SEV-Milan"):
        verify_revocation_list(revocation_list(), platform().vendor.ask, now=NOW)
    for now in (listed.this_update - 1, listed.next_update):
        with pytest.raises(EndorsementError, match="revocation list"):
            verify_revocation_list(revocation_list(), platform().vendor.ark, now=now)


def test_a_list_that_is_not_whole_is_refused() -> None:
    """A delta list names only what changed; read as a whole one it would revive everything else."""
    start = datetime.datetime.fromtimestamp(honest_window().issued, tz=datetime.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(named("authority"))
        .last_update(start)
        .next_update(start + datetime.timedelta(days=9))
        .add_extension(x509.DeltaCRLIndicator(1), critical=True)
    )
    with pytest.raises(EndorsementError, match=r"critical extension 2\.5\.29\.27"):
        read_revocation_list(builder.sign(P384, hashes.SHA384()).public_bytes(Encoding.DER))


MALFORMED = {
    "nothing": b"",
    "a cut one": b"\x30\x82\x05",
    "an indefinite length": b"\x30\x80\x00\x00",
    "a length that is not minimal": b"\x30\x81\x05" + bytes(5),
    "a length over everything": b"\x30\x84\xff\xff\xff\xff",
    "another tag": b"\x31\x00",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_der_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(EndorsementError, match="malformed") as caught:
        read_certificate(MALFORMED[name])
    assert "\n" not in str(caught.value)


def test_bytes_behind_a_certificate_are_refused() -> None:
    with pytest.raises(EndorsementError, match="bytes follow"):
        read_certificate(platform().vendor.ark + b"\0")


def test_a_certificate_over_its_bound_is_refused() -> None:
    with pytest.raises(EndorsementError, match="over its bound"):
        read_certificate(bytes(MAX_CERTIFICATE + 1))


# --- AMD's chain ---------------------------------------------------------------------------------------------


def shown_with(**parts: bytes) -> SnpEndorsements:
    honest = platform().endorsements(NOW)
    return SnpEndorsements(**{name: parts.get(name, getattr(honest, name)) for name in PARTS})


PARTS = ("signing_key", "intermediate", "root", "crl")


@pytest.mark.parametrize("product", ["genoa", "turin"])
def test_where_all_families_are_trusted_none_vouches_for_another(product: str) -> None:
    """As under AMD's own roots: every ARK is trusted, and each only for its own."""
    other = platform(product)
    roots = [simulated_root(platform(name).root_sha256) for name in ("milan", "genoa", "turin")]
    read = read_chain(shown_with(intermediate=other.vendor.ask, root=other.vendor.ark))
    with pytest.raises(VerificationError, match="SEV-VCEK was not issued by"):
        verify_chain(read, roots)
    # A report that says Milan, signed by a genuine key of the other family, with all of that family's papers.
    with pytest.raises(VerificationError, match="another family"):
        snp.verify(
            Shown(signer=other).quote(),
            encode_snp_endorsements(Shown(product=product).endorsed()),
            roots=roots,
            now=NOW,
            revocation_required=True,
        )


def rebuilt(monkeypatch: pytest.MonkeyPatch, **extensions: bytes | None) -> SnpEndorsements:
    """The honest chip's VCEK with other extensions: ``_4`` for 3704.1.4, None to leave one out."""
    honest = snp_chain.signing_key_extensions

    def changed(*args: Any) -> dict[str, bytes]:
        found = honest(*args)
        for name, value in extensions.items():
            oid = name[1:].replace("_", ".")
            found.pop(oid, None)
            if value is not None:
                found[oid] = value
        return found

    monkeypatch.setattr(snp_chain, "signing_key_extensions", changed)
    return shown_with(signing_key=chip().certificates["vcek"])


EXTENSIONS = {
    "without a product": ({"_2": None}, "does not state its product name"),
    "of an unknown product": ({"_2": b"\x16\x06Venice"}, "is of product Venice"),
    "of another product than its chain": ({"_2": b"\x16\x08Genoa-B1"}, "is of product Genoa-B1"),
    "with a product that is no text": ({"_2": b"\x02\x01\x05"}, "product name is malformed"),
    "with a product that steers a terminal": ({"_2": b"\x16\x06Milan\x1b"}, "printable"),
    "without a level": ({"_3_8": None}, "does not state its microcode level"),
    "with a level over one byte": ({"_3_8": b"\x02\x02\x01\x00"}, "256 is not one byte"),
    "with a negative level": ({"_3_1": b"\x02\x01\xff"}, "-1 is not one byte"),
    "with a level that is not minimal": ({"_3_1": b"\x02\x02\x00\x04"}, "not minimal"),
    "with something behind a level": ({"_3_1": b"\x02\x01\x04\x00"}, "bytes follow"),
    "with a reserved level": ({"_3_5": b"\x02\x01\x01"}, "does not have"),
    "with Turin's level": ({"_3_9": b"\x02\x01\x01"}, "does not have"),
    "without a chip": ({"_4": None}, "does not state its chip's identity"),
    "with a chip of eight bytes": ({"_4": bytes(8)}, "8 bytes, not 64"),
    "with a cloud": ({"_5": b"\x16\x02me"}, "states a cloud's name"),
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_a_signing_key_is_refused_for_what_it_states(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extensions, says = EXTENSIONS[name]
    read = read_chain(rebuilt(monkeypatch, **extensions))
    verify_chain(read, [simulated_root(platform().root_sha256)])
    with pytest.raises(EndorsementError, match=says):
        read_signing_key(read)


def test_a_chip_identity_in_an_octet_string_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hwid = platform().chip.hwid
    read = read_chain(rebuilt(monkeypatch, _4=b"\x04\x40" + hwid))
    assert read_signing_key(read).hwid == hwid


def test_a_vlek_that_names_a_chip_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = snp_chain.signing_key_extensions
    monkeypatch.setattr(
        snp_chain, "signing_key_extensions", lambda *args: honest(*args) | {"4": platform().chip.hwid}
    )
    parts = platform().endorsements(NOW, "vlek")
    document = SnpEndorsements(
        signing_key=chip().certificates["vlek"], intermediate=parts.intermediate, root=parts.root
    )
    with pytest.raises(EndorsementError, match="a chip's identity"):
        read_signing_key(read_chain(document))


SHAPES: dict[str, tuple[Callable[[], SnpEndorsements], type[Exception], str]] = {
    "a root that is no ARK": (
        lambda: shown_with(root=platform().vendor.ask),
        EndorsementError,
        "which is no ARK",
    ),
    "an intermediate that is none": (
        lambda: shown_with(intermediate=platform().vendor.ark),
        EndorsementError,
        "no intermediate of ARK-Milan",
    ),
    "an ASVK over a VCEK": (
        lambda: shown_with(intermediate=platform().vendor.asvk),
        EndorsementError,
        "SEV-VCEK stands where a SEV-VLEK should",
    ),
    "an authority in a VCEK's place": (
        lambda: shown_with(signing_key=platform().vendor.ask),
        EndorsementError,
        "SEV-Milan stands where a SEV-VCEK should",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_chain_of_another_shape_is_refused(name: str) -> None:
    build, error, says = SHAPES[name]
    with pytest.raises(error, match=says):
        read_chain(build())


def test_keys_that_are_not_amds_kind_are_refused() -> None:
    """Everything verifies, under a trusted root, with keys and algorithms that AMD does not use."""
    ask = vendor_keys().ask
    name = read_certificate(platform().vendor.ask).subject
    shapes = {
        "not P-384": lambda: leaf(P256, PSS),
        "not signed with RSA-PSS": lambda: leaf(P384, padding.PKCS1v15()),
        "not the certificate of an elliptic-curve": lambda: leaf(RSA, PSS),
        "critical extension": lambda: leaf(P384, PSS, critical=True),
    }

    def leaf(key: Any, scheme: Any, *, critical: bool = False) -> bytes:
        start = datetime.datetime.fromtimestamp(honest_window().issued, tz=datetime.UTC)
        issuer = x509.load_der_x509_certificate(platform().vendor.ask).subject
        assert issuer.public_bytes() == name
        builder = (
            x509.CertificateBuilder()
            .subject_name(named("SEV-VCEK"))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(9)
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=9))
            .add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), critical=critical
            )
        )
        return builder.sign(ask, hashes.SHA384(), rsa_padding=scheme).public_bytes(Encoding.DER)

    for says, build in shapes.items():
        with pytest.raises(VerificationError, match=says):
            verify_chain(
                read_chain(shown_with(signing_key=build())), [simulated_root(platform().root_sha256)]
            )


def test_claims_say_every_field_in_words() -> None:
    details = claims_of(Shown(version=5)).details
    assert details["reported_tcb"] == "bootloader 4, tee 0, snp 24, microcode 219"
    assert details["policy_flags"] == "single_socket"
    assert details["platform_flags"] == "alias_check_complete, ecc_en"
    assert details["policy_minimum_abi"] == "1.55"
    assert details["current_version"] == details["committed_version"] == "1.55.40"
    assert details["product_name"] == "Milan-B1"
    assert details["cpuid"] == "family 0x19, model 0x1, stepping 1"
    assert details["launch_mitigations"] == "0x0"
    assert details["revocation"] == "checked"
    assert details["chip_id_masked"] == details["mask_chip_key"] == "false"
    assert "csp_id" in claims_of(Shown(kind="vlek")).details


def test_claims_end_with_what_ends_first() -> None:
    claims = claims_of(Shown())
    assert claims.issued_at == honest_window().issued
    assert claims.collateral_expires == honest_window().next_update
    unlisted = claims_of(Shown(revoked=None), revocation_required=False)
    assert unlisted.collateral_expires > claims.collateral_expires


def test_a_shared_trail_keeps_what_was_on_it_before() -> None:
    trail = Trail()
    trail.found(1, "before")
    shown = Shown()
    claims = snp.verify(
        shown.quote(),
        encode_snp_endorsements(shown.endorsed()),
        roots=[simulated_root(platform().root_sha256)],
        now=NOW,
        revocation_required=True,
        trail=trail,
    )
    assert [check.number for check in trail.passed] == [1, 3, 4, 5, 6, 7, 8, 9]
    assert claims.checks == trail.passed[1:]


def test_no_roots_trust_nobody() -> None:
    with pytest.raises(VerificationError, match="any known root"):
        snp.verify(report(VLEK), endorsements(VLEK), roots=(), now=CAPTURED, revocation_required=False)


def test_the_simulation_says_loudly_that_nothing_is_protected(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snp, "_announced", type(snp._announced)())
    with caplog.at_level(logging.WARNING):
        machine = SimulatedSnp.generate(now=NOW, keys=vendor_keys())
        evidence = machine.tee(clock=lambda: NOW).quote(REPORT_DATA)
        for _ in range(2):
            snp.verify(
                evidence.quote,
                evidence.endorsements,
                roots=[simulated_root(machine.root_sha256)],
                now=NOW,
                revocation_required=True,
            )
    said = [record.message for record in caplog.records if "SIMULATED" in record.message]
    assert len(said) == 3
    assert "NOTHING IS PROTECTED" in said[1]
    assert "SIMULATED TEE ACCEPTED" in said[2]
    assert machine.root_sha256 in said[2]
    assert "Key" not in repr(machine)


def test_the_simulated_machine_refuses_what_it_cannot_mean() -> None:
    with pytest.raises(AttesterError, match="no simulated processor"):
        SimulatedSnp.generate(now=NOW, product="rome", keys=vendor_keys())
    with pytest.raises(AttesterError, match="version 2, 3 or 5"):
        platform().tee(version=4)
    with pytest.raises(AttesterError, match="63 bytes"):
        platform().tee(clock=lambda: NOW).quote(bytes(63))
    assert isinstance(platform().tee(clock=lambda: NOW).quote(bytes(64)), RawEvidence)


# --- what hosts and AMD's service hand over ------------------------------------------------------------------

GUIDS = {
    "vcek": "63da758d-e664-4564-adc5-f4b93be8accd",
    "vlek": "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
    "intermediate": "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    "root": "c0b406a4-a803-4952-9743-3fb6014cd0ae",
    "crl": "92f81bc3-5811-4d3d-97ff-d19f88dc67ea",
    "other": "fbb6ed74-e73e-44ab-8893-4252792d737a",
}


def table(*entries: tuple[str, bytes], offset: int | None = None, length: int | None = None) -> bytes:
    """A certificate table as the GHCB specification lays it out, with a terminating entry."""
    at = 24 * (len(entries) + 1)
    head, body = b"", b""
    for name, content in entries:
        place = at + len(body) if offset is None else offset
        size = len(content) if length is None else length
        head += uuid.UUID(GUIDS[name]).bytes + place.to_bytes(4, "little") + size.to_bytes(4, "little")
        body += content
    return head + bytes(24) + body


def test_a_hosts_certificate_table_is_taken_apart() -> None:
    parts = platform().endorsements(NOW)
    data = table(
        ("root", parts.root),
        ("other", b"whatever"),
        ("intermediate", parts.intermediate),
        ("vcek", parts.signing_key),
        ("crl", parts.crl),
    )
    found = parse_certificate_table(data + bytes(4096))  # pages are padded
    assert found == CertificateTable(
        vcek=parts.signing_key, intermediate=parts.intermediate, root=parts.root, crl=parts.crl
    )
    assert found.endorsements("vcek") == parts
    assert found.endorsements("vcek", crl=b"newer").crl == b"newer"
    with pytest.raises(EndorsementError, match="has no VLEK"):
        found.endorsements("vlek")


def test_a_table_with_nothing_but_the_key_is_completed() -> None:
    found = parse_certificate_table(table(("vlek", signing_key(VLEK))))
    assert encode_snp_endorsements(found.endorsements("vlek")) == endorsements(VLEK)
    # And one whose chain is that of the other kind of key.
    ask = parse_certificate_table(
        table(("vlek", signing_key(VLEK)), ("intermediate", platform().vendor.ask), ("root", b"r"))
    )
    assert ask.endorsements("vlek") == found.endorsements("vlek")


def test_a_table_may_hold_pem() -> None:
    pem = x509.load_der_x509_certificate(platform().vendor.ask).public_bytes(Encoding.PEM)
    assert parse_certificate_table(table(("intermediate", pem))).intermediate == platform().vendor.ask


@pytest.mark.parametrize("data", [b"", bytes(24), bytes(48)], ids=["nothing", "an end", "zeros"])
def test_an_empty_table_is_empty(data: bytes) -> None:
    assert parse_certificate_table(data) == CertificateTable()


TABLES = {
    "without an end": (table(("vcek", b"x"))[:24], "header does not end"),
    "cut in its header": (table(("vcek", b"x"))[:30], "header does not end"),
    "with an entry twice": (table(("vcek", b"x"), ("vcek", b"y")), "two entries for vcek"),
    "with an entry in the header": (table(("vcek", b"x"), offset=24), "not inside"),
    "with an entry behind the end": (table(("vcek", b"x"), length=2), "not inside"),
    "with an empty entry": (table(("vcek", b"")), "not inside"),
    "with offsets that wrap": (table(("vcek", b"x"), offset=0xFFFFFFFF, length=0xFFFFFFFF), "not inside"),
    "with too many entries": (table(*[("other", b"x")] * (MAX_ENTRIES + 1)), "more than 16 entries"),
    "with an enormous certificate": (table(("vcek", bytes(40_000))), "40000 bytes long"),
    "with PEM that is none": (table(("vcek", b"-----BEGIN nothing")), "not PEM"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_hostile_table_is_refused(name: str) -> None:
    data, says = TABLES[name]
    with pytest.raises(EndorsementError, match=says):
        parse_certificate_table(data)


def test_a_chain_in_another_order_or_number_is_refused() -> None:
    ask, ark = (
        x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
        for der in (platform().vendor.ask, platform().vendor.ark)
    )
    assert parse_cert_chain(ask + ark) == (platform().vendor.ask, platform().vendor.ark)
    for pem, says in (
        (ark + ask, "in this order"),
        (ask, "holds 1 certificates, not 2"),
        (ask + ark + ark, "holds 3 certificates"),
        (ask + b"text between\n" + ark, "nothing else"),
        (ask.replace(b"CERTIFICATE", b"PRIVATE KEY") + ark, "nothing else"),
        (b"\xff" + ask + ark, "not PEM"),
        (ask[:60] + b"=" + ask[60:] + ark, "nothing else"),
    ):
        with pytest.raises(EndorsementError, match=says):
            parse_cert_chain(pem)
    with pytest.raises(EndorsementError, match="nothing else"):
        read_pem_certificates(ask * 9, what="nine")


def test_the_vendor_roots_are_amds() -> None:
    assert [root.name for root in AMD_ROOTS] == ["AMD ARK-Milan", "AMD ARK-Genoa", "AMD ARK-Turin"]
