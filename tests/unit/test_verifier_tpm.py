"""TPM quotes and enrolments under attack: chains, lists, keys, signatures; each refusal for its own reason."""

from __future__ import annotations

import hashlib
import json
import random
import re
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.encoding import encode_json
from cloister.endorsements.roots import Root, named_root
from cloister.endorsements.tpm import (
    AK_CERTIFICATE_USAGE,
    AK_IDENTITY,
    AkIdentity,
    TpmEndorsements,
    encode_identity,
    encode_tpm_endorsements,
    parse_identity,
)
from cloister.errors import CloisterError, EndorsementError, EvidenceError, UsageError, VerificationError
from cloister.evidence.tpm import TpmQuoteWire
from cloister.evidence.tpm_structures import RESTRICTED, parse_public
from cloister.verifier.claims import Claims
from cloister.verifier.credential import make_credential
from cloister.verifier.tpm import verify
from cloister.verifier.tpm_enrolment import (
    ANSWER_SECONDS,
    MAX_CERTIFICATE_SECONDS,
    Activated,
    Enrolment,
    EnrolmentAuthority,
    challenge,
)
from cloister.verifier.trail import Trail
from handmade_tpm import AK_ATTRIBUTES, EXTRA, NOW, PCRS, Key, Quote, ec_key, public_area, rsa_key
from tpm_certificates import DAY, Authority, authority, leaf, open_credential, serial

QUOTE = Quote()
UNKNOWN = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")


def root_of(der: bytes) -> Root:
    return named_root("a root of these tests", hashlib.sha256(der).hexdigest())


@cache
def cloud() -> tuple[Authority, Authority]:
    """A cloud's authorities: root and intermediate."""
    root = authority("Cloud Root")
    return root, authority("Cloud AK CA", root, path_length=0)


@cache
def ak_certificate() -> bytes:
    return leaf(ec_key("ak"), cloud()[1], purpose=AK_CERTIFICATE_USAGE)


def endorsed(*chain: bytes, crls: tuple[bytes, ...] = ()) -> bytes:
    return encode_tpm_endorsements(TpmEndorsements(ak_chain=chain, crls=crls))


def honest_chain() -> tuple[bytes, ...]:
    root, intermediate = cloud()
    return ak_certificate(), intermediate.der, root.der


def claims(
    quote: bytes | None = None,
    endorsements: bytes | None = None,
    *,
    now: int = NOW,
    required: bool = False,
    roots: tuple[Root, ...] | None = None,
    trail: Trail | None = None,
) -> Claims:
    return verify(
        encode_json(QUOTE.wire) if quote is None else quote,
        endorsed(*honest_chain()) if endorsements is None else endorsements,
        roots=(root_of(cloud()[0].der),) if roots is None else roots,
        now=now,
        revocation_required=required,
        trail=trail,
    )


def test_a_genuine_quote_becomes_claims() -> None:
    trail = Trail()
    found = claims(trail=trail)
    assert (found.tee, found.debug, found.simulated, found.report_data) == ("tpm", False, False, EXTRA)
    assert found.measurements == {f"pcr{number}": value for number, value in PCRS.items()}
    assert found.details["clock_safe"] == "true"
    assert found.details["revocation"] == "not checked"
    assert found.hardware == {}
    assert [check.number for check in trail.passed] == [3, 5, 6, 7, 8, 7]
    assert found.issued_at == NOW - DAY
    assert found.collateral_expires == NOW + 1000 * DAY


@pytest.mark.parametrize(
    ("key", "scheme", "digest"),
    [
        pytest.param(rsa_key("ak"), "rsassa", "sha256", id="RSASSA"),
        pytest.param(rsa_key("ak"), "rsapss", "sha256", id="RSAPSS"),
        pytest.param(rsa_key("ak"), "rsapss", "sha512", id="RSAPSS with SHA-512"),
        pytest.param(ec_key("p384", ec.SECP384R1), "ecdsa", "sha384", id="P-384"),
    ],
)
def test_every_scheme_of_a_tpm_verifies(key: Key, scheme: str, digest: str) -> None:
    quote = Quote(key=key, scheme=scheme, digest=digest)
    root, intermediate = cloud()
    certificate = leaf(key, intermediate, purpose=AK_CERTIFICATE_USAGE)
    found = claims(encode_json(quote.wire), endorsed(certificate, intermediate.der, root.der))
    assert found.report_data == EXTRA


def _bent(**changes: object) -> bytes:
    wire = QUOTE.wire
    fields = {name: getattr(wire, name) for name in ("attest", "signature", "ak_public", "pcrs")}
    return encode_json(TpmQuoteWire(**{**fields, **changes}))  # type: ignore[arg-type]


def _other(**changes: object) -> bytes:
    return encode_json(QUOTE.bent(**changes).wire)


def _cross_signed() -> bytes:
    """A quote by another key that shows the certified public area."""
    other = QUOTE.bent(key=ec_key("another ak")).wire
    return encode_json(
        TpmQuoteWire(attest=other.attest, signature=other.signature, ak_public=QUOTE.public, pcrs=other.pcrs)
    )


QUOTES = {
    "signed by a key that is not the one it shows": (_cross_signed, "signature does not verify"),
    "another TPM's quote under this certificate": (
        lambda: _other(key=ec_key("another ak")),
        "certificate is another key's",
    ),
    "a key that is not restricted": (
        lambda: _other(attributes=AK_ATTRIBUTES & ~RESTRICTED),
        "not restricted",
    ),
    "signature of another quote": (
        lambda: _bent(signature=QUOTE.bent(extra=bytes(32)).wire.signature),
        "signature does not verify",
    ),
    "qualifying data of another challenge, signature kept": (
        lambda: _bent(attest=QUOTE.bent(extra=bytes(32)).attest),
        "signature does not verify",
    ),
    "signed with another hash than the key's": (
        lambda: _bent(ak_public=public_area(ec_key("ak"), digest="sha384")),
        "not the key's scheme",
    ),
    "signed by RSASSA with an elliptic key": (
        lambda: _bent(signature=Quote(key=rsa_key("ak"), scheme="rsassa").wire.signature),
        "not the key's scheme",
    ),
}


@pytest.mark.parametrize("attack", QUOTES)
def test_a_quote_that_is_not_genuine_is_refused(attack: str) -> None:
    make, reason = QUOTES[attack]
    with pytest.raises((VerificationError, EvidenceError), match=reason):
        claims(make())


def _chain(name: str) -> tuple[bytes, int]:  # noqa: PLR0912 -- one branch for each named attack
    """Endorsements of a named attack, and the time."""
    root, intermediate = cloud()
    ak, key, now = ak_certificate(), ec_key("ak"), NOW
    purpose = AK_CERTIFICATE_USAGE
    chain: tuple[bytes, ...] = (ak, intermediate.der, root.der)
    crls: tuple[bytes, ...] = ()
    match name:
        case "no chain above the key":
            chain = (ak,)
        case "the root alone":
            chain = (root.der,)
        case "without its intermediate":
            chain = (ak, root.der)
        case "another root of the same name":
            other = Authority(root.certificate, ec_key("Cloud Root 2"))
            chain = (ak, intermediate.der, authority("Cloud Root", other, ca=True).der)
        case "the intermediate twice":
            chain = (ak, intermediate.der, intermediate.der, root.der)
        case "seven certificates":
            chain = (ak, *[intermediate.der] * 5, root.der)
        case "the intermediate is no authority":
            fake = authority("Cloud Leaf", root, ca=False)
            chain = (leaf(key, fake, purpose=purpose), fake.der, root.der)
        case "the intermediate may not sign":
            fake = authority("Cloud Mute", root, may_sign=False)
            chain = (leaf(key, fake, purpose=purpose), fake.der, root.der)
        case "a path that is too long":
            below = authority("Cloud Below", intermediate)
            chain = (leaf(key, below, purpose=purpose), below.der, intermediate.der, root.der)
        case "an authority in the place of the key":
            chain = (intermediate.der, root.der)
        case "expired":
            now = NOW + 1001 * DAY
        case "not yet valid":
            now = NOW - 2 * DAY
        case "the intermediate expired":
            old = authority("Cloud Old", root, end=NOW - 1)
            chain = (leaf(key, old, purpose=purpose), old.der, root.der)
        case "issued for a web server":
            chain = (leaf(key, intermediate, purpose="1.3.6.1.5.5.7.3.1"), intermediate.der, root.der)
        case "issued for an endorsement key":
            chain = (leaf(key, intermediate), intermediate.der, root.der)
        case "a critical extension that is not understood":
            odd = leaf(key, intermediate, purpose=purpose, critical=UNKNOWN)
            chain = (odd, intermediate.der, root.der)
        case "an authority with a critical extension that is not understood":
            odd_ca = authority("Cloud Odd", root, critical=UNKNOWN)
            chain = (leaf(key, odd_ca, purpose=purpose), odd_ca.der, root.der)
        case "the key revoked":
            crls = (intermediate.list([serial(ak)]),)
        case "the intermediate revoked":
            crls = (root.list([serial(intermediate.der)]),)
        case "a list of somebody else":
            crls = (authority("Stranger").list(),)
        case "two lists of one issuer":
            crls = (root.list(), root.list(end=NOW + 2 * DAY))
        case "a list signed by another key of that name":
            crls = (Authority(intermediate.certificate, ec_key("thief")).list(),)
        case "an old list":
            crls = (intermediate.list(start=NOW - 9 * DAY, end=NOW - 1),)
        case "a list of tomorrow":
            crls = (intermediate.list(start=NOW + 1, end=NOW + DAY),)
        case _:
            raise AssertionError(name)
    return endorsed(*chain, crls=crls), now


CHAINS = {
    "no chain above the key": "2 to 6 certificates, not 1",
    "the root alone": "2 to 6 certificates, not 1",
    "without its intermediate": "was not issued by",
    "another root of the same name": "the chain ends in root",
    "the intermediate twice": "may not stand above|was not issued by",
    "seven certificates": "hold 7 certificates",
    "the intermediate is no authority": "no certificate authority",
    "the intermediate may not sign": "may not sign certificates",
    "a path that is too long": "may not stand above",
    "an authority in the place of the key": "is an authority's",
    "expired": "ended at",
    "not yet valid": "holds from",
    "the intermediate expired": "ended at",
    "issued for a web server": "for another purpose",
    "issued for an endorsement key": "for another purpose",
    "a critical extension that is not understood": "critical extension 1.3.6.1.4.1.99999.1",
    "an authority with a critical extension that is not understood": "critical extension",
    "the key revoked": "was revoked by Cloud AK CA",
    "the intermediate revoked": "was revoked by Cloud Root",
    "a list of somebody else": "no issuer of the chain signed",
    "two lists of one issuer": "two revocation lists of one issuer",
    "a list signed by another key of that name": "signature of the revocation list",
    "an old list": "revocation list ended",
    "a list of tomorrow": "revocation list was issued at",
}


@pytest.mark.parametrize("attack", CHAINS)
def test_a_chain_that_does_not_hold_is_refused(attack: str) -> None:
    endorsements, now = _chain(attack)
    with pytest.raises((EndorsementError, VerificationError), match=CHAINS[attack]):
        claims(endorsements=endorsements, now=now)


def test_a_root_that_the_policy_does_not_name_is_refused() -> None:
    with pytest.raises(VerificationError, match="the chain ends in root"):
        claims(roots=(root_of(b"another"),))
    with pytest.raises(VerificationError, match="any known root"):
        claims(roots=())


def test_no_endorsements_are_refused_with_what_to_do() -> None:
    with pytest.raises(EndorsementError, match="enrol the attestation key first"):
        claims(endorsements=b"")


def test_required_revocation_needs_the_list_of_every_issuer() -> None:
    root, intermediate = cloud()
    with pytest.raises(EndorsementError, match="no revocation list of Cloud AK CA"):
        claims(required=True)
    with pytest.raises(EndorsementError, match="no revocation list of Cloud Root"):
        claims(endorsements=endorsed(*honest_chain(), crls=(intermediate.list(),)), required=True)
    both = endorsed(*honest_chain(), crls=(root.list([1]), intermediate.list(end=NOW + 60)))
    found = claims(endorsements=both, required=True)
    assert found.details["revocation"] == "checked"
    assert found.collateral_expires == NOW + 60


@pytest.mark.parametrize("now", [-1, 1 << 41])
def test_a_time_that_is_none_is_refused(now: int) -> None:
    with pytest.raises(EndorsementError, match="is no time"):
        claims(now=now)


@cache
def flippable() -> dict[str, bytes]:
    wire = QUOTE.wire
    return {name: getattr(wire, name) for name in ("attest", "signature", "ak_public")} | {
        f"pcr {number}": value for number, value in PCRS.items()
    }


@pytest.mark.parametrize("part", ["attest", "signature", "ak_public", "pcr 0", "pcr 15"])
def test_a_flipped_bit_in_any_byte_is_refused(part: str) -> None:
    honest = flippable()
    identity = encode_identity(AkIdentity(bytes(32), parse_public(honest["ak_public"]).name))
    root, intermediate = cloud()
    certificate = leaf(
        ec_key("ak"), intermediate, purpose=AK_CERTIFICATE_USAGE, extension=(AK_IDENTITY, identity)
    )
    endorsements = endorsed(certificate, intermediate.der, root.der)
    chance = random.Random(part)

    def wire(parts: dict[str, bytes]) -> bytes:
        pcrs = {str(number): parts[f"pcr {number}"] for number in PCRS}
        return encode_json(
            TpmQuoteWire(
                attest=parts["attest"], signature=parts["signature"], ak_public=parts["ak_public"], pcrs=pcrs
            )
        )

    claims(wire(honest), endorsements)
    for at in range(len(honest[part])):
        altered = bytearray(honest[part])
        altered[at] ^= 1 << chance.randrange(8)
        with pytest.raises(CloisterError):
            claims(wire({**honest, part: bytes(altered)}), endorsements)


# Enrolment


@cache
def vendor() -> Authority:
    return authority("TPM Vendor")


@cache
def enroller() -> EnrolmentAuthority:
    return EnrolmentAuthority.create("Enrolment of tests", now=NOW - DAY, lifetime=1000 * DAY)


def enrol(ek: Key, *, public: bytes | None = None, now: int = NOW) -> Enrolment:
    chain = (leaf(ek, vendor()), vendor().der)
    return challenge(
        chain, QUOTE.public if public is None else public, roots=(root_of(vendor().der),), now=now
    )


EKS = {
    "RSA 2048": lambda: rsa_key("ek"),
    "RSA 3072": lambda: rsa_key("ek", 3072),
    "P-256": lambda: ec_key("ek"),
    "P-384": lambda: ec_key("ek384", ec.SECP384R1),
}


@pytest.mark.parametrize("kind", EKS)
def test_who_holds_both_keys_gets_a_certificate_that_verifies(kind: str) -> None:
    ek = EKS[kind]()
    enrolment = enrol(ek)
    name = parse_public(QUOTE.public).name
    activated = enrolment.answer(open_credential(ek, enrolment.credential, name), now=NOW)
    certificate = enroller().certify(activated, now=NOW, lifetime=DAY)
    crl = enroller().revocation_list((), now=NOW, lifetime=DAY)
    found = claims(
        endorsements=endorsed(certificate, enroller().certificate, crls=(crl,)),
        roots=(named_root("the enrolment", enroller().root_sha256),),
        required=True,
    )
    spki = x509.load_der_x509_certificate(leaf(ek, vendor())).public_key()
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    expected = hashlib.sha256(spki.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    assert found.hardware == {"ek_sha256": expected}
    revoked = enroller().revocation_list([serial(certificate)], now=NOW, lifetime=DAY)
    with pytest.raises(VerificationError, match="was revoked by Enrolment of tests"):
        claims(
            endorsements=endorsed(certificate, enroller().certificate, crls=(revoked,)),
            roots=(named_root("the enrolment", enroller().root_sha256),),
        )


def _activated() -> Activated:
    enrolment = enrol(ec_key("ek"))
    secret = open_credential(ec_key("ek"), enrolment.credential, parse_public(QUOTE.public).name)
    return enrolment.answer(secret, now=NOW)


def test_a_key_with_other_attributes_than_those_enrolled_is_refused() -> None:
    certificate = enroller().certify(_activated(), now=NOW, lifetime=DAY)
    quote = QUOTE.bent(attributes=AK_ATTRIBUTES ^ (1 << 10))
    with pytest.raises(VerificationError, match="other attributes than when it was enrolled"):
        claims(
            encode_json(quote.wire),
            endorsed(certificate, enroller().certificate),
            roots=(named_root("the enrolment", enroller().root_sha256),),
        )


def test_an_answer_is_taken_once_right_or_wrong() -> None:
    enrolment = enrol(ec_key("ek"))
    secret = open_credential(ec_key("ek"), enrolment.credential, parse_public(QUOTE.public).name)
    with pytest.raises(VerificationError, match="not in the TPM of that endorsement key"):
        enrolment.answer(bytes(32), now=NOW)
    with pytest.raises(VerificationError, match="had its answer already"):
        enrolment.answer(secret, now=NOW)


@pytest.mark.parametrize("answer", [b"", bytes(31), bytes(33), b"\xff" * 32])
def test_a_wrong_answer_is_refused(answer: bytes) -> None:
    with pytest.raises(VerificationError, match="the answer is not the secret"):
        enrol(ec_key("ek")).answer(answer, now=NOW)


def test_a_late_answer_is_refused() -> None:
    enrolment = enrol(ec_key("ek"))
    secret = open_credential(ec_key("ek"), enrolment.credential, parse_public(QUOTE.public).name)
    with pytest.raises(VerificationError, match="after the challenge ended"):
        enrolment.answer(secret, now=NOW + ANSWER_SECONDS)


def test_a_credential_opens_for_no_other_key_of_the_same_tpm() -> None:
    enrolment = enrol(ec_key("ek"))
    other = parse_public(public_area(ec_key("another ak"))).name
    with pytest.raises(AssertionError, match="integrity"):
        open_credential(ec_key("ek"), enrolment.credential, other)


def test_an_enrolment_never_shows_its_secret() -> None:
    enrolment = enrol(ec_key("ek"))
    secret = open_credential(ec_key("ek"), enrolment.credential, parse_public(QUOTE.public).name)
    assert secret.hex() not in repr(enrolment)
    assert repr(secret) not in repr(enrolment)


def test_an_activated_key_cannot_be_made_by_hand() -> None:
    with pytest.raises(UsageError, match="by an enrolment alone"):
        Activated(parse_public(QUOTE.public), AkIdentity(bytes(32), bytes(34)), object())


def test_a_key_that_is_not_restricted_is_not_challenged() -> None:
    with pytest.raises(EvidenceError, match="not restricted"):
        enrol(ec_key("ek"), public=public_area(ec_key("ak"), attributes=AK_ATTRIBUTES & ~RESTRICTED))


def _ek_chain(name: str) -> tuple[tuple[bytes, ...], int]:
    ek, maker = ec_key("ek"), vendor()
    match name:
        case "of a vendor that nobody named":
            stranger = authority("Stranger")
            return (leaf(ek, stranger), stranger.der), NOW
        case "without a purpose":
            return (leaf(ek, maker, purpose=None), maker.der), NOW
        case "of an attestation key":
            return (leaf(ek, maker, purpose=AK_CERTIFICATE_USAGE), maker.der), NOW
        case "expired":
            return (leaf(ek, maker, end=NOW - 1), maker.der), NOW
        case "signed by somebody else":
            thief = Authority(maker.certificate, ec_key("thief"))
            return (leaf(ek, thief), maker.der), NOW
        case "on an unusual curve":
            return (leaf(ec_key("p521", ec.SECP521R1), maker), maker.der), NOW
    raise AssertionError(name)


EK_CHAINS = {
    "of a vendor that nobody named": "the chain ends in root",
    "without a purpose": "does not state its purpose",
    "of an attestation key": "for another purpose",
    "expired": "ended at",
    "signed by somebody else": "signature of a certificate does not verify",
    "on an unusual curve": "none of the TCG's templates",
}


@pytest.mark.parametrize("attack", EK_CHAINS)
def test_an_endorsement_key_that_nobody_vouches_for_is_not_challenged(attack: str) -> None:
    chain, now = _ek_chain(attack)
    with pytest.raises((EndorsementError, VerificationError), match=re.escape(EK_CHAINS[attack])):
        challenge(chain, QUOTE.public, roots=(root_of(vendor().der),), now=now)


def test_certificates_and_lists_have_bounded_lives() -> None:
    activated = _activated()
    for lifetime in (0, -1, MAX_CERTIFICATE_SECONDS + 1):
        with pytest.raises(UsageError, match="a certificate lives"):
            enroller().certify(activated, now=NOW, lifetime=lifetime)
        with pytest.raises(UsageError, match="a revocation list lives"):
            enroller().revocation_list((), now=NOW, lifetime=lifetime)
    with pytest.raises(UsageError, match="outlive"):
        enroller().certify(activated, now=NOW + 998 * DAY, lifetime=2 * DAY)


def test_an_authority_needs_its_own_key() -> None:
    with pytest.raises(UsageError, match="not its key's"):
        EnrolmentAuthority(vendor().certificate, ec_key("thief"))


@pytest.mark.parametrize("size", [0, 33])
def test_a_credential_protects_one_to_thirty_two_bytes(size: int) -> None:
    with pytest.raises(VerificationError, match="1 to 32 bytes"):
        make_credential(ec_key("ek").public_key(), bytes(34), bytes(size), entropy=bytes)


def test_the_identity_in_a_certificate_is_read_strictly() -> None:
    identity = AkIdentity(b"\1" * 32, b"\2" * 34)
    encoded = encode_identity(identity)
    assert parse_identity(encoded) == identity
    for end in range(len(encoded)):
        with pytest.raises(EndorsementError):
            parse_identity(encoded[:end])
    with pytest.raises(EndorsementError):
        parse_identity(encoded + b"\0")
    with pytest.raises(EndorsementError, match="32 and a name of 34"):
        encode_identity(AkIdentity(b"", b""))


def test_endorsements_are_bounded_and_strict() -> None:
    for document in (
        {"format": "cloister/endorsements/tpm/v1", "ak_chain": []},
        {"format": "cloister/endorsements/tpm/v1", "ak_chain": ["AAAA"] * 7},
        {"format": "cloister/endorsements/tpm/v1", "ak_chain": ["AAAA"], "crls": ["AAAA"] * 7},
        {"format": "cloister/endorsements/tpm/v2", "ak_chain": ["AAAA"]},
        {"ak_chain": ["AAAA", "AAAA"], "extra": 1},
    ):
        with pytest.raises(EndorsementError):
            claims(endorsements=json.dumps(document).encode())
