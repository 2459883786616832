"""What a witness co-signs and says, decided without any disk or network."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cloister import merkle
from cloister.broker.tree_head import (
    ForkFound,
    HeadRefused,
    RollbackFound,
    SignedHead,
    cosign,
    log_id,
    parse_head,
)
from cloister.broker.witness import (
    EMPTY,
    MAX_FORGOTTEN,
    CosignRequest,
    Memory,
    MemoryDamaged,
    NewestAnswer,
    NewestRequest,
    ProofNeeded,
    check_newest,
    consider,
    encode_memory,
    forget,
    parse_memory,
    state_newest,
)
from cloister.encoding import decode_json, encode_json
from cloister.errors import CloisterError, FormatError, UsageError
from cloister.manifest.owner_key import parse_public_key
from cloister.manifest.signed import signed_message
from cloister.manifest.signers import Ed25519Signer
from spec_vectors import spec_vectors
from witness_parts import NOW, Log, signer, witness_keys

NONCE = b"n" * 32
KEY = witness_keys("wanda")["wanda"]


def after(log: Log, *sizes: int) -> Memory:
    """A witness that co-signed ``log`` at these sizes."""
    memory = log.memory
    for size in sizes:
        memory = consider(memory, log.request(memory.size, size))
    return memory


def test_each_head_that_grows_out_of_the_last_is_cosigned() -> None:
    log = Log(40)
    memory = after(log, 1, 2, 7, 8, 31, 40)
    assert (memory.size, memory.root) == (40, log.tree.root().hex())
    assert memory.newest is not None
    assert memory.newest.head == log.head().head


def test_the_first_head_may_have_any_size() -> None:
    assert after(Log(9), 9).size == 9


def test_the_same_head_again_changes_nothing() -> None:
    log = Log(9)
    memory = after(log, 9)
    assert consider(memory, log.request(9)) is memory
    assert consider(memory, log.request(0)) is memory  # who asks need not know where the witness stands


def test_the_same_log_signed_again_later_is_cosigned() -> None:
    log = Log(9)
    later = CosignRequest(head=log.head(time=NOW + 500), old_size=9, proof=())
    assert consider(after(log, 9), later).size == 9


def test_cosignatures_that_came_along_are_not_remembered() -> None:
    log = Log(3)
    signed = log.head()
    head = structs.replace(signed, cosignatures=(cosign(signed.head, signer("ben")),))
    memory = consider(log.memory, CosignRequest(head=head, old_size=0, proof=()))
    assert memory.newest == signed


def forked(at: int, size: int) -> Log:
    """The same log key, another history from entry ``at`` on."""
    return Log(at).grow(size - at, mark="fork ")


def state_of(log: Log) -> str:
    return parse_head(log.head().head).state


ATTACKS: dict[str, tuple[Callable[[Log], CosignRequest], type[CloisterError]]] = {
    "a shorter log": (lambda log: log.request(0, 5), RollbackFound),
    "a shorter log, with a proof that it once grew": (
        lambda log: CosignRequest(head=log.head(5), old_size=8, proof=log.tree.consistency(5, 8)),
        RollbackFound,
    ),
    "no entries at all": (
        lambda log: CosignRequest(head=log.head(0), old_size=0, proof=()),
        HeadRefused,
    ),
    "a second history of the same size": (lambda _: forked(7, 8).request(8), ForkFound),
    "a second history of the same size that says it starts from nothing": (
        lambda _: forked(0, 8).request(0),
        ForkFound,
    ),
    "a second history of the same size under the same state": (
        lambda log: CosignRequest(head=forked(7, 8).head(state=state_of(log)), old_size=8, proof=()),
        ForkFound,
    ),
    "a second state under the same log": (
        lambda log: CosignRequest(head=log.head(state="0" * 64), old_size=8, proof=()),
        ForkFound,
    ),
    "a longer second history with its own proof": (lambda _: forked(7, 12).request(8), ForkFound),
    "a longer second history with the proof of the first": (
        lambda log: CosignRequest(
            head=forked(7, 12).head(), old_size=8, proof=log.copy().grow(4).tree.consistency(8)
        ),
        ForkFound,
    ),
    "a longer second history without a proof": (
        lambda _: CosignRequest(head=forked(7, 12).head(), old_size=8, proof=()),
        ForkFound,
    ),
    "a longer second history with random hashes": (
        lambda _: CosignRequest(
            head=forked(7, 12).head(),
            old_size=8,
            proof=tuple(random.Random(1).randbytes(32) for _ in range(3)),
        ),
        ForkFound,
    ),
    "a longer second history that says it starts from nothing": (
        lambda _: forked(7, 12).request(0),
        ProofNeeded,
    ),
    "a proof from where the witness never was": (lambda log: log.copy().grow(4).request(6), ProofNeeded),
    "more hashes than any proof has": (
        lambda log: CosignRequest(head=log.copy().grow(4).head(), old_size=8, proof=(b"h" * 32,) * 65),
        HeadRefused,
    ),
    "a head of another log": (lambda _: Log(12, name="another").request(8), HeadRefused),
    "a head that nobody signed": (
        lambda log: CosignRequest(
            head=structs.replace(log.copy().grow(4).head(), signature=bytes(64)), old_size=8, proof=()
        ),
        HeadRefused,
    ),
    "a clock that went back": (
        lambda log: CosignRequest(
            head=log.copy().grow(4).head(time=NOW), old_size=8, proof=log.copy().grow(4).tree.consistency(8)
        ),
        RollbackFound,
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_witness_does_not_cosign(attack: str) -> None:
    log = Log(8)
    attempt, error = ATTACKS[attack]
    with pytest.raises(error):
        consider(after(log, 3, 8), attempt(log))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12), st.integers(0, 12)), max_size=25))
def test_whatever_is_asked_no_two_histories_are_ever_cosigned(asked: list[tuple[int, int, int]]) -> None:
    histories = [Log(12), forked(4, 12), forked(0, 12)]
    memory, cosigned = histories[0].memory, list[tuple[int, bytes]]()
    for which, size, old in asked:
        log = histories[which]
        try:
            memory = consider(memory, log.request(min(old, size), size))
        except (ForkFound, RollbackFound, ProofNeeded):
            continue
        cosigned.append((size, log.tree.root(size)))
    assert [size for size, _ in cosigned] == sorted(size for size, _ in cosigned)
    # All of them are of one history (the last one's, whose earlier roots are known).
    assert not cosigned or any(
        all(log.tree.root(size) == root for size, root in cosigned) for log in histories
    )


# -- the newest ---------------------------------------------------------------------------------------------------------


def test_the_newest_is_told_to_a_nonce() -> None:
    log = Log(8)
    answer = state_newest(after(log, 3, 8), NewestRequest(log=log.id, nonce=NONCE), signer("wanda"))
    newest = check_newest(answer, log=log.id, nonce=NONCE, key=KEY)
    assert (newest.size, newest.root) == (8, log.tree.root().hex())


def test_a_witness_that_saw_nothing_says_so() -> None:
    log = Log(8)
    answer = state_newest(log.memory, NewestRequest(log=log.id, nonce=NONCE), signer("wanda"))
    newest = check_newest(answer, log=log.id, nonce=NONCE, key=KEY)
    assert (newest.size, newest.root) == (0, EMPTY)


def test_what_is_said_to_another_nonce_is_not_believed() -> None:
    log = Log(8)
    old = state_newest(after(log, 3), NewestRequest(log=log.id, nonce=b"o" * 32), signer("wanda"))
    with pytest.raises(HeadRefused, match="another question"):
        check_newest(old, log=log.id, nonce=NONCE, key=KEY)


@pytest.mark.parametrize("nonce", [b"", b"n" * 31, b"n" * 33])
def test_a_nonce_of_another_length_is_refused(nonce: bytes) -> None:
    with pytest.raises(FormatError, match="32 bytes"):
        state_newest(Log(1).memory, NewestRequest(log=Log(1).id, nonce=nonce), signer("wanda"))


def test_a_stranger_does_not_speak_for_a_witness() -> None:
    log = Log(8)
    answer = state_newest(after(log, 8), NewestRequest(log=log.id, nonce=NONCE), signer("mallory"))
    with pytest.raises(HeadRefused, match="another key"):
        check_newest(answer, log=log.id, nonce=NONCE, key=KEY)
    under_its_name = structs.replace(answer, signature=structs.replace(answer.signature, key=KEY.text))
    with pytest.raises(CloisterError, match="signature"):
        check_newest(under_its_name, log=log.id, nonce=NONCE, key=KEY)


def lying(log: Log, size: int, root: str, **changes: object) -> None:
    """A witness that signs whatever it likes."""
    answer = state_newest(after(log, 8), NewestRequest(log=log.id, nonce=NONCE), signer("wanda"))
    plain = {
        "format": "cloister/witness-newest/v1",
        "log": log.id,
        "nonce": NONCE.hex(),
        "size": size,
        "root": root,
    }
    data = encode_json(plain)
    signature = signer("wanda").sign(signed_message("witness", data))
    changes = {"newest": data, "signature": structs.replace(answer.signature, signature=signature), **changes}
    check_newest(structs.replace(answer, **changes), log=log.id, nonce=NONCE, key=KEY)


def test_a_lying_witness_cannot_make_up_a_longer_log_or_a_fork() -> None:
    log, other = Log(8), Log(9, name="another")
    lying(log, 8, log.tree.root().hex())
    cases: list[tuple[int, str, dict[str, object]]] = [
        (9, "0" * 64, {}),
        (8, "0" * 64, {}),
        (9, "0" * 64, {"head": None}),
        (9, other.tree.root().hex(), {"head": other.head(), "log_key": other.public.hex()}),
        (9, other.tree.root().hex(), {"head": other.head()}),
        (9, "0" * 64, {"head": structs.replace(log.copy().grow().head(), signature=bytes(64))}),
    ]
    for size, root, changes in cases:
        with pytest.raises(HeadRefused):
            lying(log, size, root, **changes)


def test_a_cosignature_is_no_word_on_the_newest() -> None:
    # Both are signed as a witness: the forms keep them apart.
    log = Log(8)
    answer = state_newest(after(log, 8), NewestRequest(log=log.id, nonce=NONCE), signer("wanda"))
    head = log.head()
    swapped = structs.replace(answer, newest=head.head, signature=cosign(head.head, signer("wanda")))
    with pytest.raises(FormatError):
        check_newest(swapped, log=log.id, nonce=NONCE, key=KEY)
    with pytest.raises(HeadRefused):
        parse_head(answer.newest)


# -- going back ---------------------------------------------------------------------------------------------------------


def test_after_a_lawful_restore_only_the_named_history_goes_on() -> None:
    log = Log(8)
    memory = forget(after(log, 8), size=5, root=log.tree.root(5).hex(), now=NOW)
    with pytest.raises(ForkFound):
        consider(memory, forked(4, 9).request(5))
    with pytest.raises(RollbackFound):
        consider(memory, log.request(0, 4))
    with pytest.raises(ForkFound):
        consider(memory, forked(4, 5).request(5))
    other = Log(5).grow(2, mark="after the restore ")
    assert consider(memory, other.request(5)).size == 7
    assert consider(memory, other.request(0, 5)).size == 5  # the restored head itself, as it was


def test_after_going_back_without_a_root_the_next_head_of_that_size_or_more_is_the_truth() -> None:
    memory = forget(after(Log(8), 8), size=5, root="", now=NOW)
    with pytest.raises(RollbackFound):
        consider(memory, Log(8).request(0, 4))
    taken = consider(memory, forked(2, 6).request(0))
    assert taken.root == forked(2, 6).tree.root().hex()
    with pytest.raises(ForkFound):
        consider(taken, Log(8).request(6))


def test_after_going_back_a_witness_names_no_newest() -> None:
    log = Log(8)
    memory = forget(after(log, 8), size=5, root=log.tree.root(5).hex(), now=NOW)
    answer = state_newest(memory, NewestRequest(log=log.id, nonce=NONCE), signer("wanda"))
    assert check_newest(answer, log=log.id, nonce=NONCE, key=KEY).size == 0


def test_going_back_is_remembered() -> None:
    log = Log(8)
    first = after(log, 8)
    memory = consider(forget(first, size=5, root="", now=NOW), log.request(0, 6))
    assert [(one.at, one.from_size, one.from_root, one.to_size) for one in memory.forgotten] == [
        (NOW, 8, first.root, 5)
    ]
    for _ in range(MAX_FORGOTTEN + 5):
        memory = consider(forget(memory, size=0, root="", now=NOW + 1), log.request(0, 6))
    assert len(memory.forgotten) == MAX_FORGOTTEN


@pytest.mark.parametrize(
    ("size", "root"),
    [(8, ""), (9, ""), (-1, ""), (0, "0" * 64)],
    ids=["where it is", "ahead", "-1", "a root of none"],
)
def test_there_is_no_going_back_to(size: int, root: str) -> None:
    with pytest.raises(UsageError):
        forget(after(Log(8), 8), size=size, root=root, now=NOW)


# -- the memory ---------------------------------------------------------------------------------------------------------


def test_a_memory_is_read_back() -> None:
    log = Log(8)
    for memory in (log.memory, after(log, 8), forget(after(log, 8), size=5, root="", now=NOW)):
        assert parse_memory(encode_memory(memory), log=log.id) == memory


@given(st.data())
def test_a_memory_with_any_bit_flipped_or_cut_anywhere_is_damaged(data: st.DataObject) -> None:
    # `forgotten` holds words that nothing else vouches for, so none is in this one.
    log = Log(8)
    whole = encode_memory(after(log, 8))
    cut = data.draw(st.integers(0, len(whole) - 1))
    altered = bytearray(whole)
    altered[cut] ^= 1 << data.draw(st.integers(0, 7))
    for attempt in (whole[:cut], bytes(altered), whole + b"\n"):
        with pytest.raises(MemoryDamaged):
            parse_memory(attempt, log=log.id)


def test_a_memory_of_another_log_is_not_taken_for_it() -> None:
    with pytest.raises(MemoryDamaged, match="another log"):
        parse_memory(encode_memory(after(Log(8), 8)), log=Log(1, name="another").id)


def test_a_memory_that_stands_elsewhere_than_its_head_is_damaged() -> None:
    log = Log(8)
    memory = after(log, 8)
    for moved in (
        structs.replace(memory, size=7),
        structs.replace(memory, root="0" * 64),
        structs.replace(memory, size=0, root=merkle.EMPTY_ROOT.hex()),
        structs.replace(memory, size=0),
        structs.replace(memory, size=-1, newest=None),
    ):
        with pytest.raises(MemoryDamaged):
            parse_memory(encode_memory(moved), log=log.id)


def test_the_page_and_the_code_agree() -> None:
    vector, head = spec_vectors("witness.md"), spec_vectors("tree-head.md")
    key, witness = bytes.fromhex(head["log_key"]), Ed25519Signer(bytes.fromhex(vector["witness_seed"]))
    signed = SignedHead(head=head["head"].encode(), signature=bytes.fromhex(head["signature"]))
    memory = consider(Memory(log_key=key.hex()), CosignRequest(head=signed, old_size=0, proof=()))
    assert encode_memory(memory).decode() == vector["memory"]
    nonce = bytes.fromhex(vector["nonce"])
    answer = state_newest(memory, NewestRequest(log=log_id(key), nonce=nonce), witness)
    assert answer.newest.decode() == vector["newest"]
    assert answer.signature.signature.hex() == vector["signature"]
    assert encode_json(answer).decode() == vector["answer"]
    read = decode_json(vector["answer"], NewestAnswer, what="answer")
    assert check_newest(read, log=log_id(key), nonce=nonce, key=parse_public_key(witness.key)).size == 3
