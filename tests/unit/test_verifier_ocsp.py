"""OCSP answers: who may give them, for how long they count, and that a revocation is never overlooked."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from cloister.attester.simulation.chain import DAY, Signer, Window
from cloister.attester.simulation.nvidia_chain import answer_ocsp, issue, issue_responder
from cloister.errors import CloisterError, EndorsementError, VerificationError
from cloister.verifier.ocsp import DEFAULT_LIFE, MAX_RESPONSE, check_revocation
from simulated_evidence import NOW, seeded
from simulated_nvidia import ISSUED, TODAY, authority, machine, neighbour, other_rims

DEVICE, PROVISIONER, FAMILY, ROOT = machine().devices[0].chain[1:]
OTHER = machine().devices[1].chain[1]
PAIR = (DEVICE.der, PROVISIONER.der)
NAME = ocsp.OCSPResponderEncoding.NAME
RESPONDER = issue_responder(seeded("responder"), PROVISIONER, ISSUED)


def answer(
    subject: Signer = DEVICE,
    issuer: Signer = PROVISIONER,
    window: Window = TODAY,
    *,
    responder: Signer | None = None,
    revoked: bool = False,
) -> bytes:
    return answer_ocsp(subject.certificate, issuer, window, responder=responder, revoked=revoked)


def built(
    *,
    signer: Signer = PROVISIONER,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    next_update: int | None = TODAY.next_update,
    algorithm: hashes.HashAlgorithm | None = None,
    encoding: ocsp.OCSPResponderEncoding = ocsp.OCSPResponderEncoding.HASH,
    certificates: tuple[Signer, ...] = (),
) -> bytes:
    def utc(seconds: int) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)

    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=DEVICE.certificate,
            issuer=PROVISIONER.certificate,
            algorithm=algorithm or hashes.SHA1(),  # noqa: S303 -- as NVIDIA's SDK asks
            cert_status=status,
            this_update=utc(TODAY.issued),
            next_update=None if next_update is None else utc(next_update),
            revocation_time=None,
            revocation_reason=None,
        )
        .responder_id(encoding, signer.certificate)
    )
    if certificates:
        builder = builder.certificates([one.certificate for one in certificates])
    return builder.sign(signer.key, hashes.SHA384()).public_bytes(Encoding.DER)


GOOD = {
    "by the issuer itself": answer(),
    "by the issuer's responder": answer(responder=RESPONDER),
    "by name": built(encoding=NAME),
    "with SHA-1 to find the certificate": built(),
    "with SHA-384 to find the certificate": built(algorithm=hashes.SHA384()),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_answer_counts(name: str) -> None:
    found = check_revocation([PAIR], [GOOD[name]], now=NOW, required=True)
    assert (found.status, found.issued_at, found.expires) == ("checked", TODAY.issued, TODAY.next_update)


def test_an_answer_without_an_end_counts_for_an_hour() -> None:
    data = built(next_update=None)
    soon = TODAY.issued + 60
    assert check_revocation([PAIR], [data], now=soon, required=True).expires == TODAY.issued + DEFAULT_LIFE
    with pytest.raises(EndorsementError, match="holds from"):
        check_revocation([PAIR], [data], now=TODAY.issued + DEFAULT_LIFE, required=True)


def test_every_certificate_needs_an_answer() -> None:
    pairs = [PAIR, (PROVISIONER.der, FAMILY.der), (FAMILY.der, ROOT.der)]
    whole = [answer(), answer(PROVISIONER, FAMILY), answer(FAMILY, ROOT)]
    assert check_revocation(pairs, whole, now=NOW, required=True).status == "checked"
    for missing in range(3):
        rest = whole[:missing] + whole[missing + 1 :]
        with pytest.raises(EndorsementError, match="no OCSP answer says whether"):
            check_revocation(pairs, rest, now=NOW, required=True)
        assert check_revocation(pairs, rest, now=NOW, required=False).status == "not checked"
    assert check_revocation(pairs, [], now=NOW, required=False).expires is None


def _unknown_extension() -> Signer:
    purpose = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.OCSP_SIGNING])
    strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")
    return issue(
        seeded("strange"),
        "strange",
        PROVISIONER,
        ISSUED,
        authority=False,
        extensions={purpose: False, strange: True},
    )


def _for_another_purpose() -> Signer:
    purpose = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
    return issue(
        seeded("server"), "server", PROVISIONER, ISSUED, authority=False, extensions={purpose: False}
    )


def _namesake(signer: Signer) -> Signer:
    return issue(seeded("namesake"), "", other_rims().root, ISSUED, name=signer.certificate.subject)


FOREIGN = issue_responder(seeded("foreign"), other_rims().root, ISSUED)
UPSTAIRS = issue_responder(seeded("upstairs"), FAMILY, ISSUED)

REFUSED: dict[str, tuple[bytes, type[CloisterError], str]] = {
    "revoked": (answer(revoked=True), VerificationError, "is revoked by its issuer's responder"),
    "revoked, by the responder": (
        answer(revoked=True, responder=RESPONDER), VerificationError, "is revoked by its issuer's responder"
    ),
    "revoked, long ago": (
        answer(revoked=True, window=Window(ISSUED - 90 * DAY, ISSUED - 80 * DAY)), VerificationError, "is revoked"
    ),
    "revoked, in the future": (
        answer(revoked=True, window=Window(ISSUED + 90 * DAY, ISSUED + 99 * DAY)), VerificationError, "is revoked"
    ),
    "unknown": (built(status=ocsp.OCSPCertStatus.UNKNOWN), VerificationError, "is unknown by"),
    "old": (answer(window=Window(ISSUED - 8 * DAY, ISSUED - DAY)), EndorsementError, "holds from"),
    "not yet": (answer(window=Window(ISSUED + 2 * DAY, ISSUED + 9 * DAY)), EndorsementError, "holds from"),
    "for another certificate": (answer(OTHER), EndorsementError, "no OCSP answer"),
    "for another vendor's": (
        answer_ocsp(neighbour().chain[1].certificate, authority("stranger").provisioner, TODAY),
        EndorsementError, "no OCSP answer"),
    "by the certificate itself": (
        built(signer=DEVICE, certificates=(DEVICE,)), VerificationError, "not for OCSP"
    ),
    "by a device of the same issuer": (
        built(signer=OTHER, certificates=(OTHER,)), VerificationError, "not for OCSP"
    ),
    "by a responder for another purpose": (
        built(signer=_for_another_purpose(), certificates=(_for_another_purpose(),)), VerificationError, "not for OCSP"
    ),
    "by a responder with an extension that nobody knows": (
        built(signer=_unknown_extension(), certificates=(_unknown_extension(),)), VerificationError, "not for OCSP"
    ),
    "by another vendor's responder": (
        built(signer=FOREIGN, certificates=(FOREIGN,)), VerificationError, "was not issued by"
    ),
    "by the responder of an issuer above": (
        built(signer=UPSTAIRS, certificates=(UPSTAIRS,)), VerificationError, "was not issued by"
    ),
    "by a responder who is not shown": (built(signer=RESPONDER), VerificationError, "neither by the issuer nor"),
    "in the issuer's name, by another key": (
        built(signer=_namesake(PROVISIONER), encoding=NAME), VerificationError, "does not verify"
    ),
    "in the responder's name, by another key": (
        built(signer=_namesake(RESPONDER), encoding=NAME, certificates=(RESPONDER,)), VerificationError, "does not verify"
    ),
    "by a responder whose certificate ended": (
        answer(responder=issue_responder(seeded("ended"), PROVISIONER, ISSUED - 40 * 365 * DAY)),
        EndorsementError, "holds from"),
    "try later": (
        ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER).public_bytes(Encoding.DER),
        EndorsementError, "no OCSP answer"),
    "not an answer": (b"0\x00", EndorsementError, "malformed"),
    "nothing": (b"", EndorsementError, "malformed"),
    "too long": (bytes(MAX_RESPONSE + 1), EndorsementError, "over its bound"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_answer_that_does_not_count_is_refused(name: str) -> None:
    data, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        check_revocation([PAIR], [data], now=NOW, required=True)


@pytest.mark.parametrize("name", [name for name in REFUSED if name.startswith(("revoked", "unknown"))])
def test_a_revocation_is_refused_whatever_the_rules_and_the_other_answers_say(name: str) -> None:
    data = REFUSED[name][0]
    for responses in ([data], [answer(), data], [data, answer()]):
        with pytest.raises(VerificationError, match=r"is (revoked|unknown) by"):
            check_revocation([PAIR], responses, now=NOW, required=False)


def test_an_old_answer_does_not_hide_a_fresh_one() -> None:
    old = REFUSED["old"][0]
    for responses in ([old, answer()], [answer(), old]):
        assert check_revocation([PAIR], responses, now=NOW, required=True).status == "checked"
    assert check_revocation([PAIR], [old], now=NOW, required=False).status == "not checked"


def test_an_altered_answer_is_refused() -> None:
    data = bytearray(answer())
    for offset in range(0, len(data), 7):
        data[offset] ^= 1
        with pytest.raises(CloisterError):
            check_revocation([PAIR], [bytes(data)], now=NOW, required=True)
        data[offset] ^= 1
