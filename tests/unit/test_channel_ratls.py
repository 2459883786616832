"""Attested certificates and the server that shows them: the specification's vectors, renewal, what is never made."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import structs

import ratls_parts as parts
import simulated_nvidia as gpus
from cloister.appraisal.appraise import appraise
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.result import AttestationResult
from cloister.attester import RawDeviceEvidence, RawEvidence
from cloister.channel import ratls_certificate
from cloister.channel.ratls import AttestedTls, collect_for_tls
from cloister.channel.ratls_certificate import (
    MAX_CERTIFICATE,
    AttestedServer,
    make_attested_certificate,
    subject_public_key_info,
    verify_attested_certificate,
)
from cloister.channel.tls_context import client_side, load_chain, server_side
from cloister.encoding import decode_cbor
from cloister.endorsements.x509 import read_certificate
from cloister.errors import (
    AttesterError,
    BindingMismatch,
    ChannelError,
    EvidenceError,
    FormatError,
    ResultExpired,
    StaleNonce,
)
from cloister.evidence.binding import (
    NO_NONCE,
    RaTlsBinding,
    device_nonce,
    ra_tls_device_nonce,
    ra_tls_report_data,
    report_data,
)
from cloister.evidence.cmw import encode_cmw, parse_cmw
from left_behind import left_open, open_descriptors
from ratls_parts import NOW, Clock, honest
from sealed_service import platform
from simulated_evidence import LAUNCH
from simulated_evidence import NOW as THEN
from simulated_evidence import platform as then_platform
from spec_vectors import spec_vectors

EVIDENCE = "application/vnd.cloister.evidence+json"


def verify(der: bytes, *, now: int = NOW, policy: Policy | None = None) -> AttestedServer:
    return verify_attested_certificate(der, policy=policy or honest()[1], now=now)


def test_the_binding_is_the_specified_one() -> None:
    vectors = spec_vectors("ra-tls.md")
    spki, devices = bytes.fromhex(vectors["spki"]), bytes.fromhex(vectors["device_evidence"])
    assert ra_tls_report_data(spki).hex() == vectors["report_data"]
    assert ra_tls_report_data(spki, devices).hex() == vectors["report_data_with_devices"]
    assert ra_tls_device_nonce(spki).hex() == vectors["device_nonce"]


def test_the_wrapper_is_the_specified_one() -> None:
    vectors = spec_vectors("ra-tls.md")
    record = bytes.fromhex(vectors["wrapped"])
    assert encode_cmw(EVIDENCE, b"{}") == record
    assert parse_cmw(record, media_type=EVIDENCE, limit=100) == b"{}"
    assert decode_cbor(record, what="record") == [EVIDENCE, b"{}", 4]


WRAPPERS = {
    "of another media type": "83 60 42 7b7d 04",
    "without indicator": "82 61 74 42 7b7d",
    "that says it is a result": "83 61 74 42 7b7d 08",
    "that says it is several things": "83 61 74 42 7b7d 06",
    "whose indicator is true": "83 61 74 42 7b7d f5",
    "whose value is text": "83 61 74 62 7b7d 04",
    "with a CoAP content format": "83 18 3c 42 7b7d 04",
    "with a fourth item": "84 61 74 42 7b7d 04 00",
    "that is a collection": "a1 61 74 42 7b7d",
    "that is a tag": "d9 7530 42 7b7d",
    "with a length that is not minimal": "83 61 74 58 02 7b7d 04",
    "of indefinite length": "9f 61 74 42 7b7d 04 ff",
    "with bytes behind it": "83 61 74 42 7b7d 04 00",
    "that is empty": "",
    "that is over its bound": "83 61 74 58 60" + "00" * 0x60 + "04",
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_is_refused(name: str) -> None:
    with pytest.raises(FormatError):
        parse_cmw(bytes.fromhex(WRAPPERS[name]), media_type="t", limit=64)


def test_the_wrapper_of_that_table_is_read_when_it_is_right() -> None:
    assert parse_cmw(bytes.fromhex("83 61 74 42 7b7d 04"), media_type="t", limit=64) == b"{}"


def test_an_honest_certificate_says_whose_key_it_is() -> None:
    server = parts.attested()
    found = verify(server.certificate)
    spki = subject_public_key_info(server.key)
    assert found.identity.spki == spki
    assert found.identity.spki_sha256 == hashlib.sha256(spki).hexdigest()
    assert found.claims.simulated
    assert {check.number for check in found.checks} >= {1, 12}
    assert found.policy_digest == honest()[1].digest
    assert found.verified_at == NOW


def living(seconds: int) -> Policy:
    """The honest policy with this maximum age."""
    tee = honest()[0]
    text = draft_policy(
        tee="tdx",
        measurements=tee.measurements,
        events=tee.launch,
        min_tcb_evaluation_number=1,
        simulated_root=platform().root_sha256,
        max_age_seconds=seconds,
    )
    return load_policy(text, name="p")


def test_it_stands_until_the_first_of_certificate_and_policy_ends() -> None:
    certificate = parts.attested().certificate
    assert verify(certificate, policy=living(86_400)).expires == NOW + 3600
    hasty = verify(certificate, policy=living(60))
    assert hasty.expires == NOW + 60
    hasty.require_fresh(NOW + 59)
    with pytest.raises(ResultExpired):
        hasty.require_fresh(NOW + 60)


def test_an_attested_server_is_no_result_whose_keys_could_release_anything() -> None:
    found = verify(parts.attested().certificate)
    assert not isinstance(found, AttestationResult)
    assert not hasattr(found, "keys")
    assert not hasattr(found, "key_material")


def test_an_attested_server_is_not_made_by_hand_nor_of_another_result() -> None:
    server = parts.attested()
    other = appraise(
        server.bundle,
        nonce=b"",
        policy=honest()[1],
        now=NOW,
        decode=bytes,
        not_after=lambda _: None,
        binding=RaTlsBinding(),
    )
    for wrong in (other, None, "a server"):
        with pytest.raises(TypeError):
            AttestedServer(wrong)  # type: ignore[arg-type]


def test_a_caller_with_a_nonce_gets_no_certificates_evidence() -> None:
    bundle = parts.attested().bundle
    with pytest.raises(StaleNonce):
        RaTlsBinding().bind(bundle, b"\0" * 32)


def test_the_devices_of_a_server_are_bound_to_its_key() -> None:
    """Real evidence of two simulated GPUs, asked with the nonce of this key and quoted with it."""
    key = parts.new_key()
    spki = subject_public_key_info(key)
    tee = then_platform().tee("tdx", launch=LAUNCH, clock=lambda: THEN)
    machine = gpus.machine()
    bundle = collect_for_tls(tee, spki, devices=machine)
    bound = RaTlsBinding().bind(bundle, b"")
    assert bundle.device_evidence
    assert bound.device_nonce == ra_tls_device_nonce(spki)
    assert bound.quoted == ra_tls_report_data(spki, bundle.device_evidence)
    assert bound.quoted != ra_tls_report_data(spki)
    assert bound.device_nonce != device_nonce(hashlib.sha256(b"").digest(), spki)
    assert bound.quoted != report_data(hashlib.sha256(b"").digest(), spki, bundle.device_evidence)


def test_a_certificate_is_an_ordinary_one_for_everybody_else() -> None:
    certificate = read_certificate(parts.attested().certificate, limit=MAX_CERTIFICATE)
    assert not certificate.is_authority
    assert not certificate.extensions[ratls_certificate.CMW_OID].critical
    assert certificate.not_after - certificate.not_before == 3660


class TooTalkative:
    """The honest TEE on a machine whose boot log is long."""

    def quote(self, report_data: bytes) -> RawEvidence:
        return replace(honest()[0].quote(report_data), firmware_log=os.urandom(80_000))


class ManyManifests:
    """The simulated GPUs with so many reference manifests that they fit in no certificate."""

    def collect(self, nonce: bytes) -> RawDeviceEvidence:
        return replace(gpus.machine().collect(nonce), endorsements=os.urandom(70_000))


def test_evidence_that_does_not_fit_is_said_so_instead_of_cut() -> None:
    with pytest.raises(AttesterError, match="over its bound"):
        AttestedTls(TooTalkative(), now=Clock())


def test_device_endorsements_stay_at_home_where_they_do_not_fit() -> None:
    tls = AttestedTls(honest()[0], devices=ManyManifests(), now=Clock())
    assert 20_000 < len(tls.certificate) <= MAX_CERTIFICATE


@pytest.mark.parametrize("lifetime", [0, -1, 3601])
def test_no_certificate_lives_over_an_hour(lifetime: int) -> None:
    server = parts.attested()
    with pytest.raises(AttesterError):
        make_attested_certificate(server.key, server.bundle, now=NOW, lifetime=lifetime)


def handshake(port: int) -> bytes:
    """The certificate (DER) that a foreign client sees."""
    context = client_side()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), 5) as tcp,
        context.wrap_socket(tcp) as secured,
    ):
        assert secured.version() == "TLSv1.3"
        return secured.getpeercert(binary_form=True) or b""


def test_a_renewed_certificate_has_another_key_and_the_running_server_shows_it() -> None:
    clock = Clock()
    tls = parts.serving_tls(clock)
    with parts.https(tls.context) as served:
        first = handshake(served.port)
        assert first == tls.certificate
        clock.now += 1799
        assert not tls.due()
        clock.now += 1
        assert tls.due()
        tls.renew()
        assert not tls.due()
        second = handshake(served.port)
    assert second == tls.certificate != first
    assert verify(second, now=clock.now).identity.spki != verify(first).identity.spki


def test_a_clock_that_was_set_back_makes_renewal_due() -> None:
    clock = Clock()
    tls = parts.serving_tls(clock)
    clock.now -= 10
    assert tls.due()


def test_a_certificate_that_has_ended_is_not_shown() -> None:
    clock = Clock()
    tls = parts.serving_tls(clock)
    with parts.https(tls.context) as served:
        clock.now += 3600
        with pytest.raises(ssl.SSLError):
            handshake(served.port)


def test_another_process_does_not_show_the_certificate_of_its_parent() -> None:
    tls = parts.serving_tls()
    child = os.fork()
    if child == 0:
        try:
            tls._current()
        except ChannelError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_older_version_of_tls_is_not_spoken() -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        parts.https(parts.serving_tls().context) as served,
        socket.create_connection(("127.0.0.1", served.port), 5) as tcp,
        pytest.raises(ssl.SSLError),
    ):
        old.wrap_socket(tcp)


class Flaky:
    """The honest TEE behind a quoting service that fails twice after the start."""

    def __init__(self) -> None:
        self.calls = 0

    def quote(self, report_data: bytes) -> RawEvidence:
        self.calls += 1
        if self.calls in (2, 3):
            raise AttesterError("the quoting service is down")
        return honest()[0].quote(report_data)


def test_renewal_goes_on_trying_while_the_quoting_service_is_down(caplog: pytest.LogCaptureFixture) -> None:
    clock, attester = Clock(), Flaky()
    tls = AttestedTls(attester, now=clock)
    first = tls.certificate
    clock.now += 2000

    async def run() -> None:
        task = asyncio.create_task(tls.keep_renewed(pause=0.01))
        while tls.due():  # noqa: ASYNC110 -- the product sets no event for tests
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert attester.calls == 4
    assert tls.certificate != first
    assert sum("was not renewed" in record.message for record in caplog.records) == 2


def test_keys_for_tls_pass_through_memory_that_only_their_owner_may_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, int]] = []
    context = server_side()

    def noted(self: ssl.SSLContext, path: str) -> None:
        mode = Path(path).stat().st_mode
        seen.append((str(Path(path).readlink()), stat.S_IMODE(mode)))

    before = open_descriptors()
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", noted)
    server = parts.attested()
    load_chain(context, (server.certificate,), server.key)
    assert seen == [("/memfd:cloister-tls (deleted)", 0o600)]
    assert not left_open(before)


def test_a_certificate_of_another_key_is_refused_before_it_is_shown() -> None:
    with pytest.raises(ChannelError, match="cannot be used"):
        load_chain(server_side(), (parts.attested().certificate,), parts.new_key())
    with pytest.raises(ChannelError, match="malformed"):
        load_chain(server_side(), (b"no certificate",), parts.new_key())


def test_another_curve_is_taken_when_it_is_attested() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    bundle = collect_for_tls(honest()[0], subject_public_key_info(key))
    assert bundle.nonce_proof == NO_NONCE
    assert verify(parts.certified(key, bundle)).identity.spki == subject_public_key_info(key)


def test_a_curve_outside_of_tls_is_not() -> None:
    key = ec.generate_private_key(ec.SECP256K1())
    bundle = collect_for_tls(honest()[0], subject_public_key_info(key))
    with pytest.raises(EvidenceError, match="P-256"):
        verify(parts.certified(key, bundle))


def test_evidence_of_one_binding_is_none_of_the_other() -> None:
    server = parts.attested()
    tee = honest()[0]
    raw = tee.quote(report_data(hashlib.sha256(b"").digest(), subject_public_key_info(server.key)))
    with pytest.raises(BindingMismatch):
        verify(parts.certified(server.key, structs.replace(server.bundle, quote=raw.quote)))
