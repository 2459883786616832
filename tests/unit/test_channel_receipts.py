"""Receipts: what they commit to, whose signature holds, and what the file of one is good for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

import cloister
from cloister.channel.keyring import KeyRing
from cloister.channel.receipt_check import check_content, check_file, check_passages
from cloister.channel.receipt_file import ReceiptFile, parse_file
from cloister.channel.receipts import (
    Draft,
    Receipt,
    SignedReceipt,
    check_receipt,
    commit_request,
    commit_response,
    parse_receipt,
    parse_trailer,
)
from cloister.encoding import encode_json
from cloister.errors import ChannelError, CloisterError, FormatError
from cloister.evidence.key_material import KeyMaterial, parse_key_material
from sealed_service import MODEL, Service, launched, policy_for, running

SALT, OTHER = b"s" * 32, b"t" * 32
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
MATERIAL = KeyMaterial(
    ohttp_keys=b"x", not_after=2000, replica="r", receipt_public_key=KEY.public_key().public_bytes_raw().hex()
)
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True}


def draft(salt: bytes = SALT) -> Draft:
    return Draft(salt, KEY.sign, "ab" * 16, commit_request(salt, b"POST", b"/v1", b"question"), 1000)


def signed(**changed: object) -> SignedReceipt:
    made = draft()
    made.passage(b"clinic", b"lungs.md", b"1", b"text")
    found = parse_trailer(made.trailer(200, hashlib.sha256(b"answer").digest(), manifest=b"m", ended=1001))
    if not changed:
        return found
    content = encode_json(msgspec.structs.replace(found.receipt, **changed))
    return SignedReceipt(found.receipt, content, found.signature)


def test_a_receipt_commits_to_request_answer_passages_and_manifest() -> None:
    receipt = check_receipt(signed(), MATERIAL)
    assert receipt.request == commit_request(SALT, b"POST", b"/v1", b"question")
    assert receipt.response == commit_response(SALT, 200, hashlib.sha256(b"answer").digest())
    assert receipt.manifest_sha256 == hashlib.sha256(b"m").hexdigest()
    assert len(receipt.passages) == 1
    assert (receipt.began, receipt.ended) == (1000, 1001)


def test_the_specification_s_vector_is_what_is_signed() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "spec" / "receipt.md").read_text()
    vector = text.rsplit("```\n", 2)[1].strip().encode()
    assert parse_trailer(vector) == signed()


def test_without_the_salt_the_same_words_have_another_commitment_each_time() -> None:
    assert draft(SALT).request != draft(OTHER).request
    assert commit_response(SALT, 200, bytes(32)) != commit_response(SALT, 201, bytes(32))
    assert commit_request(SALT, b"GET", b"/a", b"b") != commit_request(SALT, b"GET", b"/", b"ab")


@pytest.mark.parametrize(
    "changed",
    [
        {"request": "00" * 32},
        {"response": "00" * 32},
        {"passages": ()},
        {"ended": 1002},
        {"request_id": "00" * 16},
    ],
)
def test_a_receipt_that_was_changed_is_not_signed(changed: dict[str, Any]) -> None:
    with pytest.raises(ChannelError, match="not signed by the key in the evidence"):
        check_receipt(signed(**changed), MATERIAL)


def test_a_receipt_of_another_key_or_of_a_workload_without_one_is_refused() -> None:
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    for material in (
        msgspec.structs.replace(MATERIAL, receipt_public_key=other),
        msgspec.structs.replace(MATERIAL, receipt_public_key=None),
    ):
        with pytest.raises(ChannelError):
            check_receipt(signed(), material)


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1}, {"request": "zz"}, {"request": "AA" * 32}, {"request_id": ""}, {"ended": 999},
        {"format": "cloister/receipt/v2"},
        {"passages": ["00" * 32] * 65}, {"manifest_sha256": "00"},
    ],
)  # fmt: skip
def test_malformed_receipts_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        parse_receipt(json.dumps(json.loads(signed().content) | change).encode(), bytes(64))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_receipt_or_a_named_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_trailer(data)


def test_a_ring_signs_with_the_key_that_it_shows_until_that_is_gone() -> None:
    ring = KeyRing(receipts=True, now=lambda: 1000, ticks=lambda: 0.0)
    material = parse_key_material(ring.material())
    key_id = next(number for number in range(256) if ring.signer(number))
    sign = ring.signer(key_id)
    assert sign is not None
    made = Draft(SALT, sign, "ab" * 16, "00" * 32, 1000).trailer(200, bytes(32), manifest=None, ended=1000)
    assert isinstance(check_receipt(parse_trailer(made), material), Receipt)
    ring.rotate(revoke=True)
    assert ring.signer(key_id) is None
    assert parse_key_material(KeyRing().material()).receipt_public_key is None


def kept(service: Service, ask: Callable[[cloister.SealedClient], None]) -> list[ReceiptFile]:
    found: list[ReceiptFile] = []
    with cloister.connect(service.url, policy=service.policy, receipts=found.append) as client:
        ask(client)
    return found


@pytest.fixture(scope="module")
def exchanged() -> tuple[ReceiptFile, bytes, bytes, Service]:
    """A receipt, the request's body and the answer's."""
    with running(keyring=KeyRing(replica="r", receipts=True)) as service:
        body = json.dumps(CHAT).encode()
        answers: list[bytes] = []

        def ask(client: cloister.SealedClient) -> None:
            answers.append(client.post("/v1/chat/completions", content=body).content)

        (file,) = kept(service, ask)
        return file, body, answers[0], service


def test_a_receipt_is_checked_with_nothing_but_its_file_and_a_policy(
    exchanged: tuple[ReceiptFile, bytes, bytes, Service],
) -> None:
    file, body, answer, service = exchanged
    again = parse_file(file.encode())
    assert again == file
    checked = check_file(again, [service.policy])
    assert checked.result.claims.simulated
    check_content(again, checked.receipt, request=body, response=answer)
    check_passages(again, checked.receipt, [])


def test_other_bytes_than_were_said_are_refused(exchanged: tuple[ReceiptFile, bytes, bytes, Service]) -> None:
    file, body, answer, service = exchanged
    receipt = check_file(file, [service.policy]).receipt
    with pytest.raises(ChannelError, match="the request is not the one"):
        check_content(file, receipt, request=body + b" ", response=None)
    with pytest.raises(ChannelError, match="the answer is not the one"):
        check_content(file, receipt, request=body, response=answer[:-1])


def test_a_shared_receipt_still_holds_and_opens_nothing(
    exchanged: tuple[ReceiptFile, bytes, bytes, Service],
) -> None:
    file, body, _, service = exchanged
    shared = parse_file(file.shared().encode())
    assert file.opening is not None
    assert file.opening.salt not in file.shared().encode()
    receipt = check_file(shared, [service.policy]).receipt
    with pytest.raises(FormatError, match="shared without its salt"):
        check_content(shared, receipt, request=body, response=None)


def test_a_receipt_s_file_whose_evidence_key_or_time_was_exchanged_is_refused(
    exchanged: tuple[ReceiptFile, bytes, bytes, Service],
) -> None:
    file, _, _, service = exchanged
    with running(keyring=KeyRing(replica="r", receipts=True)) as other:
        (foreign,) = kept(other, lambda client: client.get("/v1/models") and None)
    changes: list[dict[str, Any]] = [
        {"evidence": foreign.evidence, "nonce": foreign.nonce},
        {"nonce": bytes(32)},
        {"evidence": file.evidence[:-20] + b'"}'},
        {"signature": foreign.signature},
        {"receipt": foreign.receipt},
        {"verified_at": file.verified_at + 86_400 * 400},
        {"verified_at": file.verified_at + 1800, "evidence": file.evidence},
    ]
    for change in changes:
        with pytest.raises(CloisterError):
            check_file(msgspec.structs.replace(file, **change), [service.policy])
    with pytest.raises(CloisterError):
        check_file(file, [policy_for(launched(b"\x07" * 32))])


@pytest.mark.parametrize("status", [0, 99, 600, 70000, -1])
def test_a_file_with_a_status_that_cannot_be_is_refused(
    exchanged: tuple[ReceiptFile, bytes, bytes, Service], status: int
) -> None:
    document = json.loads(exchanged[0].encode())
    document["opening"]["status"] = status
    with pytest.raises(FormatError):
        parse_file(json.dumps(document).encode())


def test_a_workload_that_gives_no_receipts_is_an_error_to_who_asked_for_them() -> None:
    with (
        running(keyring=KeyRing(replica="r")) as service,
        pytest.raises(ChannelError, match="without a receipt"),
    ):
        kept(service, lambda client: client.get("/v1/models") and None)


def test_who_asks_for_no_receipt_gets_none_and_sends_no_salt() -> None:
    with running(keyring=KeyRing(replica="r", receipts=True)) as service:
        with cloister.connect(service.url, policy=service.policy) as client:
            assert client.get("/v1/models").status_code == 200
        assert all("cloister-receipt" not in one.headers for one in service.asked)


def test_the_salt_never_reaches_the_application(exchanged: tuple[ReceiptFile, bytes, bytes, Service]) -> None:
    _, _, _, service = exchanged
    assert service.asked
    assert all("cloister-receipt" not in one.headers for one in service.asked)


def test_a_salt_of_another_length_is_refused() -> None:
    with running(keyring=KeyRing(replica="r", receipts=True)) as service:
        from cloister.channel import exchange

        original = exchange.encode_salt
        exchange.encode_salt = lambda _: b"short"  # type: ignore[assignment]
        try:
            with cloister.connect(service.url, policy=service.policy, receipts=lambda _: None) as client:
                assert client.get("/v1/models").status_code == 400
        finally:
            exchange.encode_salt = original


def test_every_answer_of_an_asynchronous_client_has_its_receipt() -> None:
    import asyncio

    async def main(service: Service) -> list[ReceiptFile]:
        found: list[ReceiptFile] = []
        async with cloister.connect_async(
            service.url, policy=service.policy, receipts=found.append
        ) as client:
            answers = await asyncio.gather(
                *(client.post("/v1/chat/completions", json=CHAT) for _ in range(8))
            )
            assert {answer.status_code for answer in answers} == {200}
        return found

    with running(keyring=KeyRing(replica="r", receipts=True)) as service:
        found = asyncio.run(main(service))
    assert len({file.receipt for file in found}) == 8
