"""Named attacks on attested TLS, over real handshakes: no byte of a request leaves for any of them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import structs

import broker_parts
import ratls_parts as parts
from cloister import merkle
from cloister.attester.simulated import SimulatedPlatform, SimulatedTee
from cloister.broker.protocol import Attestation, TeeEvidence
from cloister.channel.ratls import collect_for_tls
from cloister.channel.ratls_certificate import (
    CMW_OID,
    MAX_CERTIFICATE,
    MEDIA_TYPE,
    make_attested_certificate,
    subject_public_key_info,
    verify_attested_certificate,
)
from cloister.channel.ratls_client import connect_attested
from cloister.encoding import encode_json
from cloister.errors import (
    AppraisalRefused,
    BindingMismatch,
    CloisterError,
    EvidenceError,
    FormatError,
    SessionRefused,
    StaleNonce,
    VerificationError,
)
from cloister.evidence.binding import NO_NONCE, ra_tls_report_data, report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof, encode_bundle
from cloister.evidence.cmw import encode_cmw
from forged_handshake import ForgedServer
from ratls_parts import NOW, Clock, Recorder, certified, honest
from sealed_service import launched, platform

POLICY = honest()[1]
OURS = parts.attested()
"""The honest server: the attacker has seen its certificate, and has not its key."""
MALLORY = parts.new_key()
SPKI = subject_public_key_info(MALLORY)
NONCE = bytes(range(32))


def evidence(tee: SimulatedTee, key: ec.EllipticCurvePrivateKey = MALLORY) -> EvidenceBundle:
    """Genuine evidence of a TEE that the attacker does have."""
    return collect_for_tls(tee, subject_public_key_info(key))


def wrapped(bundle: EvidenceBundle = OURS.bundle) -> bytes:
    return encode_cmw(MEDIA_TYPE, encode_bundle(bundle))


def ours(**changes: object) -> bytes:
    """A certificate of the honest key: what a broken server would make."""
    return certified(OURS.key, OURS.bundle, **changes)  # type: ignore[arg-type]


def swapped() -> bytes:
    """The honest certificate with the attacker's key in the place of the attested one."""
    return OURS.certificate.replace(subject_public_key_info(OURS.key), SPKI)


def over_a_nonce(proof: NonceProof) -> EvidenceBundle:
    """What the honest workload answers anybody who asks for evidence over a nonce; here its keys are the TLS key."""
    spki = subject_public_key_info(OURS.key)
    raw = honest()[0].quote(report_data(merkle.root([NONCE]), spki))
    return structs.replace(OURS.bundle, quote=raw.quote, nonce_proof=proof)


def twice() -> bytes:
    """Two extensions with evidence; a builder makes none, so one identifier is written over."""
    other = "2.23.133.5.4.8"
    der = ours(extra=[(x509.UnrecognizedExtension(x509.ObjectIdentifier(other), wrapped()), False)])
    return parts.resigned(der, OURS.key, bytes.fromhex("0606678105050408"), bytes.fromhex("0606678105050409"))


def not_minimal() -> bytes:
    """The same record with the length of the media type in two bytes more than it takes."""
    record = wrapped()
    assert record[:3] == bytes.fromhex("837826")
    return record[:1] + bytes.fromhex("790026") + record[3:]


def long(size: int) -> bytes:
    """A certificate of about ``size`` bytes: a boot log that nobody asked for."""
    missing = size - len(OURS.certificate)
    bundle = structs.replace(OURS.bundle, firmware_log=bytes(missing * 3 // 4))
    return certified(OURS.key, bundle)


def elsewhere() -> SimulatedTee:
    """The same workload on the attacker's own platform, whose root is the attacker's."""
    tee = honest()[0]
    return SimulatedPlatform.generate(now=NOW).tee("tdx", launch=tee.launch)


def usage(**changes: bool) -> x509.KeyUsage:
    none = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    return x509.KeyUsage(**{**none, **changes})


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
AUTHORITY = x509.BasicConstraints(ca=True, path_length=None)

Attack = tuple[Callable[[], bytes], ec.EllipticCurvePrivateKey, type[CloisterError], str]
ATTACKS: dict[str, Attack] = {
    "a plain TLS server": (lambda: certified(MALLORY, None), MALLORY, EvidenceError, "carries no evidence"),
    "our certificate with another key written into it": (swapped, MALLORY, VerificationError, "does not verify"),
    "the same, signed again by that key": (
        lambda: parts.resigned(OURS.certificate, MALLORY, subject_public_key_info(OURS.key), SPKI),
        MALLORY, BindingMismatch, "of another key",
    ),
    "our extension copied to another key's certificate": (
        lambda: certified(MALLORY, OURS.bundle), MALLORY, BindingMismatch, "of another key",
    ),
    "our evidence, with another key named beside it": (
        lambda: certified(MALLORY, structs.replace(OURS.bundle, key_material=SPKI)),
        MALLORY, BindingMismatch, "report data",
    ),
    "genuine evidence of another workload": (
        lambda: certified(MALLORY, evidence(launched(b"\x66" * 32))), MALLORY, AppraisalRefused, "rtmr3",
    ),
    "genuine evidence of a workload that its host debugs": (
        lambda: certified(MALLORY, evidence(platform().tee("tdx", launch=honest()[0].launch, debug=True))),
        MALLORY, CloisterError, "(?i)debug",
    ),
    "the right workload on a platform of the attacker": (
        lambda: certified(MALLORY, evidence(elsewhere())), MALLORY, CloisterError, "root",
    ),
    "evidence over a nonce": (
        lambda: certified(OURS.key, over_a_nonce(NonceProof(index=0, size=1, path=()))),
        OURS.key, StaleNonce, "answers no nonce",
    ),
    "evidence over a nonce, with the nonce left out": (
        lambda: certified(OURS.key, over_a_nonce(NO_NONCE)), OURS.key, BindingMismatch, "report data",
    ),
    "device evidence slipped in": (
        lambda: certified(OURS.key, structs.replace(OURS.bundle, device_evidence=b"{}")),
        OURS.key, BindingMismatch, "report data",
    ),
    "a certificate that has ended": (lambda: ours(start=NOW - 3660), OURS.key, EvidenceError, "holds from"),
    "a certificate that has not begun": (lambda: ours(start=NOW + 3600), OURS.key, EvidenceError, "holds from"),
    "a certificate for a day": (lambda: ours(life=86_400), OURS.key, EvidenceError, "3600 seconds at most"),
    "two extensions with evidence": (twice, OURS.key, EvidenceError, "twice"),
    "a critical extension that nobody knows": (
        lambda: ours(extra=[(UNKNOWN, True)]), OURS.key, EvidenceError, "not understood",
    ),
    "the evidence marked critical": (lambda: ours(critical=True), OURS.key, EvidenceError, "not understood"),
    "an authority": (lambda: ours(extra=[(AUTHORITY, True)]), OURS.key, EvidenceError, "authority"),
    "a key that is not for signing": (
        lambda: ours(extra=[(usage(key_agreement=True), True)]), OURS.key, EvidenceError, "signing handshakes",
    ),
    "a certificate that another key signed": (
        lambda: ours(signer=MALLORY), OURS.key, VerificationError, "does not verify",
    ),
    "a certificate that names another issuer": (
        lambda: ours(issuer="An Authority"), OURS.key, EvidenceError, "signed by its own key",
    ),
    "a certificate over its bound": (lambda: long(98 * 1024), OURS.key, EvidenceError, "over its bound"),
    "CBOR that is not deterministic": (
        lambda: certified(OURS.key, not_minimal()), OURS.key, FormatError, "deterministic",
    ),
    "bytes behind the CBOR": (
        lambda: certified(OURS.key, wrapped() + b"\0"), OURS.key, FormatError, "CBOR",
    ),
    "another media type": (
        lambda: certified(OURS.key, encode_cmw("application/eat+cwt", encode_bundle(OURS.bundle))),
        OURS.key, FormatError, "is not application/vnd.cloister",
    ),
    "a bundle with a field of its own": (
        lambda: certified(
            OURS.key, encode_cmw(MEDIA_TYPE, encode_bundle(OURS.bundle).replace(b'{"', b'{"a":1,"', 1))
        ),
        OURS.key, FormatError, "evidence bundle",
    ),
    "an empty extension": (lambda: certified(OURS.key, b""), OURS.key, FormatError, "CBOR"),
    "evidence under another identifier": (
        lambda: certified(OURS.key, OURS.bundle, oid="1.2.840.113741.1337.6"),
        OURS.key, EvidenceError, "carries no evidence",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_no_byte_of_a_request_leaves_for(name: str) -> None:
    make, key, error, words = ATTACKS[name]
    certificate = make()
    with (
        Recorder(parts.shows(certificate, key)).running() as peer,
        connect_attested(peer.url, policy=POLICY) as client,
    ):
        with pytest.raises(error, match=words):
            client.post("/v1/chat", content=b"the prompt", headers={"authorization": "Bearer secret"})
        assert client.server is None
    assert peer.handshakes == 1
    assert peer.received == b""


def test_the_same_client_talks_to_the_honest_server() -> None:
    """What every attack changed is what it was refused for."""
    with (
        parts.https(parts.shows(ours(), OURS.key)) as served,
        connect_attested(served.url, policy=POLICY) as client,
    ):
        assert client.post("/v1/chat", content=b"the prompt").status_code == 200
    assert served.asked == [("/v1/chat", b"the prompt")]


def test_a_certificate_that_openssl_does_not_take_ends_the_handshake() -> None:
    with (
        Recorder(parts.shows(long(140 * 1024), OURS.key)).running() as peer,
        connect_attested(peer.url, policy=POLICY) as client,
        pytest.raises(httpx2.ConnectError, match="excessive message size"),
    ):
        client.post("/", content=b"the prompt")
    assert peer.received == b""


def test_the_largest_certificate_that_is_made_passes_a_handshake() -> None:
    certificate = long(MAX_CERTIFICATE - 700)
    assert MAX_CERTIFICATE - 1400 < len(certificate) <= MAX_CERTIFICATE
    with (
        Recorder(parts.shows(certificate, OURS.key)).running() as peer,
        connect_attested(peer.url, policy=POLICY) as client,
        pytest.raises(CloisterError, match="log"),  # the handshake passed; the log that fills it is none
    ):
        client.get("/")
    assert peer.handshakes == 1


def test_a_server_that_speaks_no_tls_gets_no_request() -> None:
    with (
        Recorder(None).running() as peer,
        connect_attested(peer.url, policy=POLICY) as client,
        pytest.raises(httpx2.ConnectError),
    ):
        client.post("/v1/chat", content=b"the prompt")
    assert b"the prompt" not in peer.received


def test_an_older_version_of_tls_gets_no_request() -> None:
    context = parts.shows(OURS.certificate, OURS.key)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        Recorder(context).running() as peer,
        connect_attested(peer.url, policy=POLICY) as client,
        pytest.raises(httpx2.ConnectError),
    ):
        client.post("/v1/chat", content=b"the prompt")
    assert peer.received == b""


@pytest.mark.parametrize("copied", [False, True])
def test_a_proxy_that_ends_tls_is_refused_also_with_our_evidence_in_its_certificate(copied: bool) -> None:
    shown = certified(MALLORY, OURS.bundle if copied else None)
    with (
        parts.https(parts.serving_tls().context) as served,
        parts.terminating(parts.shows(shown, MALLORY), served.port) as (port, seen),
        connect_attested(f"https://127.0.0.1:{port}", policy=POLICY) as client,
    ):
        with pytest.raises(EvidenceError):
            client.post("/", content=b"the prompt")
        assert served.asked == []
        assert seen == []


def test_the_proxy_of_that_test_does_read_a_client_that_does_not_verify() -> None:
    """So what stops it above is the verification."""
    with (
        parts.https(parts.serving_tls().context) as served,
        parts.terminating(parts.shows(certified(MALLORY, None), MALLORY), served.port) as (port, seen),
        httpx2.Client(verify=False) as client,
    ):
        assert client.post(f"https://127.0.0.1:{port}/", content=b"the prompt").text == "hello from the TEE"
        assert any(b"the prompt" in part for part in seen)


def shown_by_hand(key: ec.EllipticCurvePrivateKey) -> tuple[ForgedServer, Exception | None]:
    """What a client does to whom shows our certificate and signs the handshake with ``key``."""
    server = ForgedServer(OURS.certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        connection, _ = listener.accept()
        connection.settimeout(2)
        with contextlib.suppress(OSError), connection:
            server.serve(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    failure = None
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    with listener, connect_attested(url, policy=POLICY, timeout=1) as client:
        try:
            client.post("/", content=b"p" * 5000)
        except (httpx2.TransportError, CloisterError) as error:
            failure = error
    thread.join(10)
    return server, failure


def test_nobody_shows_our_certificate_without_its_key() -> None:
    """The attacker's TLS signs the handshake with a key of its own; nothing but the signature is wrong."""
    server, failure = shown_by_hand(MALLORY)
    assert isinstance(failure, httpx2.ConnectError)
    assert "bad signature" in str(failure)
    assert len(server.answered) < 100  # an alert


def test_with_its_key_the_handshake_by_hand_is_right_and_the_request_is_sent() -> None:
    server, failure = shown_by_hand(OURS.key)
    assert isinstance(failure, httpx2.ReadTimeout)  # it never answers
    assert len(server.answered) > 5000


def test_an_ended_certificate_is_refused_on_the_connection_after_a_renewal() -> None:
    """The attacker got at a key that the server gave up since, and takes over the address."""
    clock = Clock()
    with Recorder(parts.shows(OURS.certificate, OURS.key)).running() as peer:
        with connect_attested(peer.url, policy=POLICY, now=clock, timeout=30) as client:
            clock.now = NOW + 3600
            with pytest.raises(EvidenceError, match="holds from"):
                client.post("/", content=b"the prompt")
        assert peer.received == b""


def test_a_pooled_connection_is_verified_again_when_its_attestation_has_ended() -> None:
    """The honest server goes, and something else answers at its address: the pool does not carry a request over."""
    clock = Clock()
    with parts.https(parts.serving_tls(clock).context) as served:
        client = connect_attested(served.url, policy=POLICY, now=clock)
        assert client.get("/").status_code == 200
        clock.now += 3600
        with pytest.raises(httpx2.ConnectError):  # the server has not renewed, and shows nothing
            client.post("/", content=b"the prompt")
        assert [path for path, _ in served.asked] == ["/"]
        client.close()


def test_openssl_sees_the_certificate_and_no_session_ticket() -> None:
    """A foreign client makes the handshake without a name to ask for, and reads the extension."""
    tls = parts.serving_tls()
    with parts.https(tls.context) as served:
        shown = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{served.port}", "-noservername", "-showcerts"],
            input=b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            capture_output=True, timeout=30, check=False,
        ).stdout.decode()  # fmt: skip
    assert "TLSv1.3" in shown
    assert "Post-Handshake New Session Ticket arrived" not in shown
    pem = shown[shown.index("-----BEGIN") : shown.index("-----END CERTIFICATE-----") + 25]
    assert x509.load_pem_x509_certificate(pem.encode()).public_bytes(parts.Encoding.DER) == tls.certificate
    text = subprocess.run(
        ["openssl", "x509", "-noout", "-text"], input=pem.encode(), capture_output=True, check=True
    ).stdout.decode()
    assert CMW_OID in text or "tcg-dice" in text
    assert verify_attested_certificate(tls.certificate, policy=POLICY, now=NOW)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> broker_parts.Bench:
    return broker_parts.Bench(tmp_path_factory.mktemp("state"))


RELEASES: dict[str, Callable[[broker_parts.Attempt, bytes], EvidenceBundle]] = {
    "the bundle of a certificate": lambda attempt, _runtime: collect_for_tls(attempt.tee, SPKI),
    "runtime data bound as a TLS key": lambda attempt, runtime: collect_for_tls(attempt.tee, runtime),
    "the same with the proof of the broker's nonce": lambda attempt, runtime: structs.replace(
        collect_for_tls(attempt.tee, runtime), nonce_proof=NonceProof(index=0, size=1, path=())
    ),
}


@pytest.mark.parametrize("name", RELEASES)
def test_evidence_of_a_certificate_releases_no_key(name: str, bench: broker_parts.Bench) -> None:
    tee = broker_parts.workload()
    bench.put()
    bench.allow(tee)
    attempt = broker_parts.Attempt(bench, tee)
    attempt.challenge()
    runtime = attempt.runtime()
    shown = RELEASES[name](attempt, encode_json(runtime))
    body = encode_json(Attestation(runtime_data=runtime, tee_evidence=TeeEvidence(primary_evidence=shown)))
    with pytest.raises((SessionRefused, FormatError)):
        attempt.attest(body)
    assert ra_tls_report_data(shown.key_material) in shown.quote


def test_the_workload_of_that_test_gets_its_key_over_a_fresh_nonce(bench: broker_parts.Bench) -> None:
    tee = broker_parts.workload()
    bench.put()
    bench.allow(tee)
    assert broker_parts.attested(bench, tee).get() == broker_parts.SECRET


def test_a_key_of_the_server_certifies_nothing_but_itself() -> None:
    """A second certificate with the same key and evidence, made outside of the hour, is as good as its dates."""
    later = make_attested_certificate(OURS.key, OURS.bundle, now=NOW + 3600)
    with pytest.raises(EvidenceError, match="holds from"):
        verify_attested_certificate(later, policy=POLICY, now=NOW)
