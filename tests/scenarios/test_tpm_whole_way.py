"""The whole way on a real (software) TPM: vendor's certificate, enrolment, quote, appraisal; and others' tools agree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attester.tpm import TpmAttester, qualifying_data
from cloister.attester.tpm_commands import ENDORSEMENT, Tpm
from cloister.attester.tpm_templates import AK_TEMPLATE, EK_KINDS, EK_P256, EK_P384, EK_RSA2048, EkKind
from cloister.encoding import decode_json, encode_json
from cloister.errors import AttesterError
from cloister.evidence.eventlog import replay
from cloister.evidence.tpm import TpmQuoteWire, parse_quote
from cloister.evidence.tpm_structures import parse_attest, parse_public
from cloister.verifier.credential import make_credential
from cloister.verifier.tpm import verify_signature
from software_tpm import SoftwareTpm, software_tpms
from tpm_machine import EVENTS, NOW, Machine, enrol, judge, policy


@pytest.fixture(scope="module")
def tpm() -> Iterator[SoftwareTpm]:
    with software_tpms() as (only,):
        yield only


@pytest.fixture(scope="module")
def machine(tpm: SoftwareTpm) -> Machine:
    return Machine.enrolled(tpm)


@pytest.fixture(autouse=True)
def _fresh_boot(tpm: SoftwareTpm) -> None:
    tpm.reboot()


def test_from_the_vendors_certificate_to_a_result(machine: Machine) -> None:
    bundle = machine.bundle(launch=EVENTS)
    rules = policy(
        bundle,
        **{
            "pcrs.15": '"any"',
            "events": '{ "cloister.config" = ["%s"], "cloister.program" = "any" }' % ("01" * 32),
        },
    )
    result = judge(bundle, rules)
    assert result.claims.tee == "tpm"
    assert result.claims.events == {event.name: event.payload for event in EVENTS}
    assert result.claims.measurements["pcr15"] == replay(EVENTS, algorithm="sha256")
    assert not result.claims.simulated
    assert {3, 5, 6, 7, 8, 11, 12, 13, 14, 15, 17} <= {check.number for check in result.checks}
    assert NOW < result.expires <= NOW + 300


def test_the_machine_is_known_by_its_endorsement_key(machine: Machine) -> None:
    bundle = machine.bundle()
    with machine.tpm.transport() as transport:
        attester = TpmAttester(transport)
        der = attester.identity().ek_certificate
        attester.close()
    key = x509.load_der_x509_certificate(der).public_key()
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    result = judge(bundle, policy(bundle, hardware=f'[hardware]\nek_sha256 = ["{digest}"]\n'))
    assert result.claims.hardware == {"ek_sha256": digest}


@pytest.mark.parametrize("kind", [EK_RSA2048, EK_P384], ids=lambda kind: kind.name)
def test_every_endorsement_key_with_a_certificate_enrols(tpm: SoftwareTpm, kind: EkKind) -> None:
    names = x509.load_der_x509_certificate(enrol(tpm, kind)).subject.rfc4514_string()
    assert names.startswith("CN=TPM attestation key ")


def test_an_endorsement_key_that_is_not_persistent_is_made_again(tpm: SoftwareTpm) -> None:
    for kind in (EK_RSA2048, EK_P384):
        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{kind.handle:#x}")
        tpm.reboot()
        enrol(tpm, kind)


def test_a_quote_in_the_other_bank(machine: Machine) -> None:
    bundle = machine.bundle(bank="sha384", launch=EVENTS)
    result = judge(bundle, policy(bundle))
    assert result.claims.measurements["pcr15"] == replay(EVENTS, algorithm="sha384")


def test_the_same_key_after_a_reboot(machine: Machine) -> None:
    first = machine.bundle()
    machine.tpm.reboot()
    again = machine.bundle()
    keys = [decode_json(bundle.quote, TpmQuoteWire, what="quote").ak_public for bundle in (first, again)]
    assert keys[0] == keys[1]
    counts = [parse_quote(bundle.quote).reset_count for bundle in (first, again)]
    assert counts[0] < counts[1]
    judge(again, policy(first))


def test_a_workload_that_starts_again_finds_its_events_measured(machine: Machine) -> None:
    first = machine.bundle(launch=EVENTS)
    again = machine.bundle(launch=EVENTS)
    assert parse_quote(first.quote).pcrs == parse_quote(again.quote).pcrs
    with pytest.raises(AttesterError, match="these launch events do not lead to"):
        machine.bundle(launch=EVENTS[:1])


def test_the_attestation_key_stays_loaded_between_quotes(tpm: SoftwareTpm) -> None:
    with tpm.transport() as transport:
        attester = TpmAttester(transport)
        for number in range(8):  # a TPM has room for three transient keys
            attester.quote(bytes([number]) * 64)
        attester.close()


# Others' tools


def test_tpm2_checkquote_accepts_our_quotes(machine: Machine, tmp_path: Path) -> None:
    wire = decode_json(machine.bundle().quote, TpmQuoteWire, what="quote")
    (tmp_path / "attest").write_bytes(wire.attest)
    (tmp_path / "signature").write_bytes(wire.signature)
    key = parse_public(wire.ak_public).key
    (tmp_path / "key.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    machine.tpm.tool(
        "tpm2_checkquote",
        *("-u", str(tmp_path / "key.pem"), "-m", str(tmp_path / "attest"), "-s", str(tmp_path / "signature")),
        *("-q", parse_attest(wire.attest).extra_data.hex(), "-g", "sha256"),
    )


def test_our_parser_reads_the_quotes_of_tpm2_tools(tpm: SoftwareTpm) -> None:
    data = qualifying_data(bytes(64))
    tpm.tool("tpm2_createek", "-c", "ek.ctx", "-G", "rsa", "-u", "ek.pub")
    tpm.tool("tpm2_flushcontext", "-t")
    tpm.tool(
        *("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", "rsa", "-g", "sha256", "-s", "rsassa"),
        *("-u", "ak.pub", "-f", "tss"),
    )
    tpm.tool("tpm2_flushcontext", "-t")
    tpm.tool(
        *(
            "tpm2_quote",
            "-c",
            "ak.ctx",
            "-l",
            "sha256:0,7",
            "-q",
            data.hex(),
            "-m",
            "attest",
            "-s",
            "signature",
        ),
        *("-g", "sha256"),
    )
    files = {name: (tpm.directory / name).read_bytes() for name in ("attest", "signature", "ak.pub")}
    wire = TpmQuoteWire(
        attest=files["attest"],
        signature=files["signature"],
        ak_public=files["ak.pub"][2:],  # a TPM2B_PUBLIC
        pcrs={"0": bytes(32), "7": bytes(32)},
    )
    found = parse_quote(encode_json(wire))
    assert found.extra_data == data
    assert verify_signature(found, found.attestation_key.key) == "rsassa with sha256"


def test_tpm2_activatecredential_opens_our_credentials(tpm: SoftwareTpm) -> None:
    tpm.tool("tpm2_createek", "-c", "ek2.ctx", "-G", "ecc", "-u", "ek2.pub")
    tpm.tool("tpm2_flushcontext", "-t")
    tpm.tool(
        *("tpm2_createak", "-C", "ek2.ctx", "-c", "ak2.ctx", "-G", "ecc", "-g", "sha256", "-s", "ecdsa"),
        *("-u", "ak2.pub"),
    )
    tpm.tool("tpm2_flushcontext", "-t")
    ek = parse_public((tpm.directory / "ek2.pub").read_bytes()[2:])
    ak = parse_public((tpm.directory / "ak2.pub").read_bytes()[2:])
    secret = b"a secret of some thirty bytes..."
    credential = make_credential(ek.key, ak.name, secret, entropy=bytes)
    blob, seed = credential.credential_blob, credential.encrypted_secret
    (tpm.directory / "credential").write_bytes(
        bytes.fromhex("badcc0de00000001")  # tpm2-tools' own header
        + b"".join(len(part).to_bytes(2, "big") + part for part in (blob, seed))
    )
    tpm.tool("tpm2_startauthsession", "--policy-session", "-S", "session.ctx")
    tpm.tool("tpm2_policysecret", "-S", "session.ctx", "-c", "e")
    tpm.tool(
        *("tpm2_activatecredential", "-c", "ak2.ctx", "-C", "ek2.ctx", "-i", "credential", "-o", "opened"),
        *("-P", "session:session.ctx"),
    )
    tpm.tool("tpm2_flushcontext", "session.ctx")
    assert (tpm.directory / "opened").read_bytes() == secret


def test_our_attester_opens_the_credentials_of_tpm2_makecredential(tpm: SoftwareTpm) -> None:
    with tpm.transport() as transport:
        attester = TpmAttester(transport)
        identity = attester.identity(EK_RSA2048)
        attester.close()
    key = x509.load_der_x509_certificate(identity.ek_certificate).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tpm.directory / "ek.pem").write_bytes(pem)
    (tpm.directory / "secret").write_bytes(b"the secret of tpm2-tools")
    name = parse_public(identity.ak_public).name
    tpm.tool(
        *("tpm2_makecredential", "-T", "none", "-u", "ek.pem", "-G", "rsa", "-s", "secret", "-n", name.hex()),
        *("-o", "made"),
    )
    made = (tpm.directory / "made").read_bytes()[8:]
    size = int.from_bytes(made[:2], "big")
    blob, seed = made[2 : 2 + size], made[4 + size :]
    with tpm.transport() as transport:
        attester = TpmAttester(transport)
        assert attester.activate(blob, seed, EK_RSA2048) == b"the secret of tpm2-tools"
        attester.close()


@pytest.mark.parametrize(("kind", "algorithm"), [(EK_RSA2048, "rsa"), (EK_P256, "ecc")], ids=["rsa", "p256"])
def test_our_templates_make_the_keys_of_tpm2_createek(tpm: SoftwareTpm, kind: EkKind, algorithm: str) -> None:
    tpm.tool("tpm2_createek", "-c", "same.ctx", "-G", algorithm, "-u", "same.pub")
    tpm.tool("tpm2_flushcontext", "-t")
    with tpm.transport() as transport:
        raw = Tpm(transport)
        handle, public = raw.create_primary(ENDORSEMENT, kind.template)
        raw.flush(handle)
    assert public == (tpm.directory / "same.pub").read_bytes()[2:]


def test_an_attestation_key_is_what_its_template_says(tpm: SoftwareTpm) -> None:
    with tpm.transport() as transport:
        raw = Tpm(transport)
        handle, public = raw.create_primary(ENDORSEMENT, AK_TEMPLATE)
        raw.flush(handle)
    parse_public(public).require_attestation_key()
    assert len({kind.certificate for kind in EK_KINDS}) == len(EK_KINDS)
