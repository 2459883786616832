"""Reference manifests: what a signature covers is what is read, and nothing around it is."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

import pytest

from cloister.attester.simulation.chain import Signer
from cloister.attester.simulation.nvidia_chain import issue
from cloister.attester.simulation.nvidia_report import DRIVER_VERSION, golden, rim_document, sign_rim
from cloister.endorsements.rim import MAX_RIM, parse_xml, read_rim, rim_certificates
from cloister.endorsements.roots import NVIDIA_RIM_ROOT, simulated_root
from cloister.errors import CloisterError, EndorsementError, VerificationError
from cloister.evidence.spdm import Measurement, SpdmReport
from cloister.verifier.comparison import compare
from cloister.verifier.nvidia_chain import require_validity
from cloister.verifier.rim import verify_rim
from simulated_evidence import NOW, seeded
from simulated_nvidia import ISSUED, machine, other_rims

ROOT = simulated_root(machine().rim_root_sha256)
DRIVER, VBIOS = machine().rims
EVIL = b"6" * 96


def test_a_genuine_manifest_is_read_from_its_signed_bytes() -> None:
    verified = verify_rim(DRIVER, ROOT)
    assert (verified.rim.product, verified.rim.edition, verified.rim.version) == (
        "GH100",
        "GPU",
        DRIVER_VERSION,
    )
    assert [one.index for one in verified.rim.measurements] == [7, 21, 22, 23, 26, 30, 35, 47]
    require_validity(verified.chain, NOW, what="it")
    assert verify_rim(VBIOS, ROOT).rim.is_vbios


def test_manifests_of_one_root_are_not_those_of_another() -> None:
    for root in (NVIDIA_RIM_ROOT, simulated_root("0" * 64)):
        with pytest.raises(VerificationError, match="the chain ends in root"):
            verify_rim(DRIVER, root)


def _signature(document: bytes = DRIVER) -> bytes:
    found = re.search(rb"<ds:Signature .*</ds:Signature>", document, re.DOTALL)
    assert found is not None
    return found[0]


def _payload(document: bytes = DRIVER) -> bytes:
    found = re.search(rb"<ns0:Payload>.*</ns0:Payload>", document, re.DOTALL)
    assert found is not None
    return found[0]


def _forged() -> bytes:
    """An unsigned manifest of the attacker's values."""
    values = {index: (bytes.fromhex(EVIL.decode()),) for index in golden("GH100", (7, 21))}
    return rim_document("GH100", "GPU", DRIVER_VERSION, values)


def _inside(document: bytes, before: bytes, what: bytes) -> bytes:
    assert before in document
    return document.replace(before, what + before, 1)


def _replaced(old: bytes, new: bytes, document: bytes = DRIVER) -> bytes:
    assert old in document, old
    return document.replace(old, new, 1)


def _many(pattern: bytes) -> bytes:
    return b"".join(pattern % number for number in range(20_000))


def _regex(pattern: bytes, new: bytes) -> bytes:
    found, count = re.subn(pattern, new, DRIVER, count=1, flags=re.DOTALL)
    assert count == 1
    return found


CHANGED_VALUE = _regex(
    rb'index="7" active="True" alternatives="1" ns2:Hash0="[0-9a-f]{96}"',
    b'index="7" active="True" alternatives="1" ns2:Hash0="' + EVIL + b'"',
)

WRAPPED: dict[str, tuple[bytes, type[CloisterError], str]] = {
    "a value is changed": (CHANGED_VALUE, VerificationError, "does not hold"),
    "a measurement is made inactive": (
        _replaced(b'index="7" active="True"', b'index="7" active="False"'),
        VerificationError,
        "does not hold",
    ),
    "the version is changed": (
        _replaced(DRIVER_VERSION.encode(), b"000.00.02"),
        VerificationError,
        "does not hold",
    ),
    "the signature of another manifest": (
        DRIVER.replace(_signature(), _signature(VBIOS)),
        VerificationError,
        "does not hold",
    ),
    "the payload of another manifest": (
        DRIVER.replace(_payload(), _payload(VBIOS)),
        VerificationError,
        "does not hold",
    ),
    "no signature": (DRIVER.replace(_signature(), b""), EndorsementError, "0 signatures"),
    "a forged document around a genuine one": (
        _inside(_forged(), b"</SoftwareIdentity>", DRIVER),
        EndorsementError,
        "not one directly below its root",
    ),
    "a genuine document inside the signature of a forged one": (
        _inside(
            _forged(),
            b"</SoftwareIdentity>",
            _replaced(
                b"</ds:Signature>", b"<ds:Object>" + DRIVER + b"</ds:Object></ds:Signature>", _signature()
            ),
        ),
        EndorsementError,
        "deeper than 8",
    ),
    "an Object in the signature": (
        _replaced(b"</ds:KeyInfo>", b"</ds:KeyInfo><ds:Object>x</ds:Object>"),
        EndorsementError,
        "other parts",
    ),
    "two signatures": (
        _inside(DRIVER, b"</SoftwareIdentity>", _signature()),
        EndorsementError,
        "2 signatures",
    ),
    "a second payload": (
        _inside(DRIVER, b"<ds:Signature", _payload(_forged())),
        EndorsementError,
        "not a SWID tag of the form",
    ),
    "a reference to a part of the document": (
        _replaced(b'<ds:Reference URI=""', b'<ds:Reference URI="#x"'),
        EndorsementError,
        "other algorithms or references",
    ),
    "a reference to another document": (
        _replaced(b'<ds:Reference URI=""', b'<ds:Reference URI="https://127.0.0.1/rim"'),
        EndorsementError,
        "other algorithms or references",
    ),
    "a reference to nothing": (
        _replaced(b'<ds:Reference URI=""', b"<ds:Reference"),
        EndorsementError,
        "other algorithms or references",
    ),
    "two references": (
        _regex(rb"(<ds:Reference .*?</ds:Reference>)", rb"\1\1"),
        EndorsementError,
        "other algorithms or references",
    ),
    "no transforms": (
        _regex(rb"<ds:Transforms>.*?</ds:Transforms>", b"<ds:Transforms/>"),
        EndorsementError,
        "other algorithms or references",
    ),
    "an XPath transform": (
        _replaced(
            b"</ds:Transforms>",
            b'<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xpath-19991116"/></ds:Transforms>',
        ),
        EndorsementError,
        "other algorithms or references",
    ),
    "an XSLT transform": (
        _regex(
            rb'<ds:Transform Algorithm="[^"]*enveloped-signature"/>',
            b'<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xslt-19991116"/>',
        ),
        EndorsementError,
        "other algorithms or references",
    ),
    "a digest of SHA-1": (
        _replaced(
            b"http://www.w3.org/2001/04/xmldsig-more#sha384", b"http://www.w3.org/2000/09/xmldsig#sha1"
        ),
        EndorsementError,
        "other algorithms or references",
    ),
    "a signature by HMAC": (
        _replaced(
            b"http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384",
            b"http://www.w3.org/2000/09/xmldsig#hmac-sha1",
        ),
        EndorsementError,
        "other algorithms or references",
    ),
    "a bare key in place of certificates": (
        _regex(rb"<ds:X509Data>.*</ds:X509Data>", b"<ds:KeyValue/>"),
        EndorsementError,
        "chain of certificates alone",
    ),
    "a key beside the certificates": (
        _replaced(b"<ds:X509Data>", b"<ds:KeyValue/><ds:X509Data>"),
        EndorsementError,
        "chain of certificates alone",
    ),
    "the root alone signs": (
        _regex(
            rb"<ds:X509Data>.*</ds:X509Data>",
            b"<ds:X509Data><ds:X509Certificate>AA==</ds:X509Certificate></ds:X509Data>",
        ),
        EndorsementError,
        "chain of certificates alone",
    ),
    "a certificate that is not base64": (
        _regex(rb"<ds:X509Certificate>[^<]*<", b"<ds:X509Certificate>*<"),
        EndorsementError,
        "not base64",
    ),
    "a certificate that is none": (
        _regex(rb"<ds:X509Certificate>[^<]*<", b"<ds:X509Certificate>MAA=<"),
        EndorsementError,
        "malformed",
    ),
    "a comment in a value": (
        _inside(DRIVER, b"<ns0:Resource", b"<!-- x -->"),
        EndorsementError,
        "document type, entities, comments",
    ),
    "a document type": (b"<!DOCTYPE x>" + DRIVER, EndorsementError, "document type, entities, comments"),
    "an entity bomb": (
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + DRIVER,
        EndorsementError,
        "document type, entities, comments",
    ),
    "an external entity": (
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
        + _inside(DRIVER, b"</ns0:Payload>", b"&a;"),
        EndorsementError,
        "document type, entities, comments",
    ),
    "an entity that nobody defined": (
        _inside(DRIVER, b"</ns0:Payload>", b"&a;"),
        EndorsementError,
        "not XML",
    ),
    "a processing instruction": (
        _inside(DRIVER, b"</ns0:Payload>", b"<?x y?>"),
        EndorsementError,
        "processing instructions",
    ),
    "a processing instruction before the root": (b"<?x y?>" + DRIVER, EndorsementError, "around its root"),
    "another encoding": (DRIVER.decode().encode("utf-16"), EndorsementError, "not UTF-8"),
    "another encoding declared": (
        b'<?xml version="1.0" encoding="utf-7"?>' + DRIVER,
        EndorsementError,
        "another encoding",
    ),
    "a NUL": (DRIVER + b"\0", EndorsementError, "another encoding"),
    "text behind it": (DRIVER + b"x", EndorsementError, "not XML"),
    "cut off": (DRIVER[:-1], EndorsementError, "not XML"),
    "nothing": (b"", EndorsementError, "not XML"),
    "too long": (DRIVER + b" " * MAX_RIM, EndorsementError, "over its bound"),
    "too deep": (
        _inside(DRIVER, b"</ns0:Payload>", b"<a>" * 9 + b"</a>" * 9),
        EndorsementError,
        "deeper than 8",
    ),
    "a byte order mark": (b"\xef\xbb\xbf" + DRIVER, EndorsementError, "another encoding"),
    "thousands of attributes": (
        _inside(DRIVER, b"</ns0:Payload>", b"<a " + _many(b'a%d="1" ') + b"/>"),
        EndorsementError,
        "too many attributes or name spaces",
    ),
    "thousands of name spaces": (
        _replaced(b"<SoftwareIdentity ", b"<SoftwareIdentity " + _many(b'xmlns:n%d="u" ')),
        EndorsementError,
        "too many attributes or name spaces",
    ),
    "too many elements": (
        _inside(DRIVER, b"</ns0:Payload>", b"<a/>" * 4097),
        EndorsementError,
        "deeper than 8 or",
    ),
    "another root": (b"<x>" + _signature() + b"</x>", EndorsementError, "not a SWID tag"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_manifest_that_was_bent_is_refused(name: str) -> None:
    data, error, message = WRAPPED[name]
    with pytest.raises(error, match=message):
        verify_rim(data, ROOT)


def _signed(change: Callable[[bytes], bytes]) -> bytes:
    values = golden("GH100", (7, 21))
    return sign_rim(
        change(rim_document("GH100", "GPU", DRIVER_VERSION, values)), machine().rim_authority.chain
    )


def _swap(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(document: bytes) -> bytes:
        assert old.encode() in document, old
        return document.replace(old.encode(), new.encode(), 1)

    return change


SENSELESS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no active measurement": (
        lambda d: d.replace(b'active="True"', b'active="False"'),
        "no measurement to compare",
    ),
    "an index twice": (_swap('index="8"', 'index="7"'), "measurement 7 twice"),
    "an index that is no number": (_swap('index="8"', 'index="0x8"'), "no small number"),
    "a measurement that is neither active nor inactive": (
        _swap('active="True"', 'active="true"'),
        "neither active",
    ),
    "no alternatives": (
        _swap('active="True" alternatives="1"', 'active="True" alternatives="0"'),
        "has no values",
    ),
    "more alternatives than values": (
        _swap('active="True" alternatives="1"', 'active="True" alternatives="2"'),
        "not a SHA-384 digest",
    ),
    "more values than alternatives": (
        _swap('active="True" alternatives="1"', 'active="True" alternatives="1" ns2:Hash9="00"'),
        "other values than it counts",
    ),
    "a value of another size": (
        _swap('name="Measurement_7" size="48"', 'name="Measurement_7" size="32"'),
        "not of 48 bytes",
    ),
    "another element in the payload": (
        _swap("<ns0:Payload>", "<ns0:Payload><ns0:File/>"),
        "other things than measurements",
    ),
    "a version that is no text": (
        _swap(f'colloquialVersion="{DRIVER_VERSION}"', 'colloquialVersion="&#10;"'),
        "colloquialVersion",
    ),
    "no version": (_swap(f'colloquialVersion="{DRIVER_VERSION}"', ""), "colloquialVersion"),
    "two products": (_swap('product="GH100"', 'product="GB100"'), "two products"),
    "another kind of document": (_swap("ns0:Meta", "ns0:Link"), "not a SWID tag"),
}


@pytest.mark.parametrize("name", SENSELESS)
def test_even_a_signed_manifest_has_to_make_sense(name: str) -> None:
    change, message = SENSELESS[name]
    with pytest.raises(EndorsementError, match=message):
        verify_rim(_signed(change), ROOT)


HONEST = machine().rim_authority
DOCUMENT = rim_document("GH100", "GPU", DRIVER_VERSION, golden("GH100", (7,)))


def _below(issuer: Signer, name: str, *, authority: bool = False) -> Signer:
    return issue(seeded(name), name, issuer, ISSUED, authority=authority)


def _long() -> tuple[Signer, ...]:
    sub = _below(HONEST.issuer, "sub", authority=True)
    return (_below(sub, "leaf"), sub, HONEST.issuer, HONEST.family, HONEST.root)


CHAINS: dict[str, tuple[tuple[Signer, ...], str]] = {
    "an authority signs itself": ((HONEST.family, HONEST.root), "not one that signs data"),
    "below a signer": (
        (_below(HONEST.signer, "below"), *HONEST.chain),
        "may not sign certificates",
    ),
    "an authority too many": (_long(), "longer than one of its authorities allows"),
    "another vendor's signer": ((other_rims().signer, *HONEST.chain[1:]), "does not verify"),
    "another vendor's root at the end": ((*HONEST.chain[:-1], other_rims().root), "the chain ends in root"),
    "out of order": (
        (HONEST.signer, HONEST.family, HONEST.issuer, HONEST.root),
        "was not issued by",
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_manifest_whose_signer_is_not_certified_for_it_is_refused(name: str) -> None:
    chain, message = CHAINS[name]
    with pytest.raises(VerificationError, match=message):
        verify_rim(sign_rim(DOCUMENT, chain), ROOT)


def test_what_a_manifest_shows_before_it_is_verified_is_what_was_signed() -> None:
    assert read_rim(DRIVER) == verify_rim(DRIVER, ROOT).rim
    assert [base64.b64encode(one)[:4] for one in rim_certificates(DRIVER)] == [b"MIIC"] * 4
    assert parse_xml(DRIVER).tag.endswith("SoftwareIdentity")


def _report(values: dict[int, bytes]) -> SpdmReport:
    measured = tuple(Measurement(index + 1, 1, value) for index, value in values.items())
    return SpdmReport(0, bytes(32), bytes(32), (0, 0), measured, (), b"", bytes(96))


def test_measurements_are_compared_index_by_index_and_named_where_they_differ() -> None:
    driver, vbios = verify_rim(DRIVER, ROOT).rim, verify_rim(VBIOS, ROOT).rim
    values = dict(machine().devices[0].values)
    whole = compare(_report(values), [driver, vbios], nvdec0_disabled=False)
    assert (whole.matched, whole.differing) == (19, ())
    # Measurement 47 may be zero, which its manifest says.
    assert compare(_report({**values, 47: bytes(48)}), [driver], nvdec0_disabled=False).differing == ()
    bent = compare(_report({**values, 9: bytes(48), 21: bytes(48)}), [driver, vbios], nvdec0_disabled=False)
    assert bent.differing == ("index 9 (VBIOS Measurement_9)", "index 21 (driver Measurement_21)")
    del values[22]
    assert (
        "index 22 (driver Measurement_22)"
        in compare(_report(values), [driver], nvdec0_disabled=False).differing
    )


def test_measurement_35_counts_only_where_its_decoder_is_on() -> None:
    driver = verify_rim(DRIVER, ROOT).rim
    report = _report({**machine().devices[0].values, 35: b"\x01" * 48})
    assert compare(report, [driver], nvdec0_disabled=True).differing == ()
    assert compare(report, [driver], nvdec0_disabled=False).differing == ("index 35 (driver Measurement_35)",)


def test_two_manifests_of_one_index_are_refused() -> None:
    driver = verify_rim(DRIVER, ROOT).rim
    with pytest.raises(VerificationError, match="two reference manifests have a measurement at index 7"):
        compare(_report({}), [driver, driver], nvdec0_disabled=False)
