"""What a witness decides: which tree heads it co-signs, and what it says is the newest (docs/spec/witness.md). Pure.

It co-signs only what the log signed and what grows out of the head that it co-signed before: never two roots for one
size, never a smaller log. It says, signed with the asker's own nonce, what the newest head is; that, or a refusal,
carries the head with the log's own signature, so a witness cannot invent a log that is longer or forked.
"""

from __future__ import annotations

from typing import Final, Literal

from cloister import merkle
from cloister.broker.tree_head import (
    Cosignature,
    ForkFound,
    HeadRefused,
    RollbackFound,
    SignedHead,
    TreeHead,
    log_id,
    parse_head,
    verify_head,
)
from cloister.encoding import Record, decode_json, encode_json, from_hex
from cloister.errors import EXIT_VERIFICATION, BrokerError, FormatError, UsageError
from cloister.manifest.owner_key import PublicKey
from cloister.manifest.signed import signed_message
from cloister.manifest.signers import Signer

PREFIX: Final = "/cloister/v1/witness"
NEWEST_FORMAT: Final = "cloister/witness-newest/v1"
MEMORY_FORMAT: Final = "cloister/witness-memory/v1"
NONCE_SIZE: Final = 32
MAX_PROOF: Final = 64
MAX_REQUEST: Final = 128 * 1024
"""Bytes of a request; a signed head may carry co-signatures."""
MAX_ANSWER: Final = 128 * 1024
MAX_STATEMENT: Final = 1024
MAX_MEMORY: Final = 256 * 1024
MAX_FORGOTTEN: Final = 100
EMPTY: Final = merkle.EMPTY_ROOT.hex()


class UnknownLog(BrokerError):
    """A log that this witness does not serve."""


class ProofNeeded(BrokerError):
    """The consistency proof starts elsewhere than where this witness stands: nothing is wrong yet, ask again."""


class MemoryDamaged(BrokerError):
    """What a witness remembers cannot be read: it must not sign."""

    exit_code = EXIT_VERIFICATION


class CosignRequest(Record, frozen=True, kw_only=True):
    """``POST …/cosign``: a signed head, and the proof that it extends the log of ``old_size`` entries."""

    head: SignedHead
    old_size: int
    proof: tuple[bytes, ...]


class Conflict(Record, frozen=True, kw_only=True):
    """Its refusal, an RFC 9457 problem: where the witness stands, and the newest head that it co-signed."""

    type: str
    title: str
    status: int
    detail: str
    size: int
    root: str
    log_key: str
    newest: SignedHead | None


class NewestRequest(Record, frozen=True, kw_only=True):
    """``POST …/newest``. ``nonce`` is 32 fresh bytes."""

    log: str
    nonce: bytes


class Newest(Record, frozen=True, kw_only=True):
    """What a witness signs: size and root of the newest head that it co-signed, or 0 and the root of nothing."""

    format: Literal["cloister/witness-newest/v1"] = NEWEST_FORMAT
    log: str
    nonce: str
    size: int
    root: str


class NewestAnswer(Record, frozen=True, kw_only=True):
    """The exact bytes of a :class:`Newest`, the witness's signature, and the head as the log signed it."""

    newest: bytes
    signature: Cosignature
    log_key: str
    head: SignedHead | None


class Forgotten(Record, frozen=True, kw_only=True):
    """One decision of the witness's owner to go back."""

    at: int
    from_size: int
    from_root: str
    to_size: int
    to_root: str


class Memory(Record, frozen=True, kw_only=True):
    """What a witness remembers of one log.

    ``newest`` is the last head that it co-signed and that still counts, ``size`` and ``root`` are what the next must
    extend. ``root`` is empty where the owner went back to a size without naming the history.
    """

    format: Literal["cloister/witness-memory/v1"] = MEMORY_FORMAT
    log_key: str
    size: int = 0
    root: str = EMPTY
    newest: SignedHead | None = None
    forgotten: tuple[Forgotten, ...] = ()


def consider(memory: Memory, request: CosignRequest) -> Memory:
    """What to remember before the head of ``request`` is co-signed; raising, it is not to be.

    Raises :class:`HeadRefused` (not this log's), :class:`RollbackFound` (older), :class:`ForkFound` (another history) or
    :class:`ProofNeeded`.
    """
    head = verify_head(request.head, log_key=bytes.fromhex(memory.log_key))
    if head.size == 0 or len(request.proof) > MAX_PROOF:
        raise HeadRefused("a witness co-signs heads of at least one entry, with a proof of at most 64 hashes")
    before = None if memory.newest is None else parse_head(memory.newest.head)
    if head.size < memory.size:
        raise RollbackFound(
            f"this log had {memory.size} entries, and is now said to have {head.size}",
            todo="an older copy of the broker's state is running: put the newest back",
        )
    if before is not None and head.time < before.time:
        raise RollbackFound(
            "a tree head is older than the one before it", todo="set the broker's clock right"
        )
    if head.size == memory.size:
        if memory.root not in ("", head.root) or (before is not None and head.state != before.state):
            raise _fork(memory, head)
    elif memory.root:
        _require_extends(memory, head, request)
    if memory.newest is not None and memory.newest.head == request.head.head:
        return memory
    kept = SignedHead(head=request.head.head, signature=request.head.signature)
    return Memory(
        log_key=memory.log_key,
        size=head.size,
        root=head.root,
        newest=kept,
        forgotten=memory.forgotten,
    )


def state_newest(memory: Memory, request: NewestRequest, signer: Signer) -> NewestAnswer:
    """The newest head, signed with the asker's nonce."""
    if len(request.nonce) != NONCE_SIZE:
        raise FormatError(f"a nonce is {NONCE_SIZE} bytes long")
    head = None if memory.newest is None else parse_head(memory.newest.head)
    newest = Newest(
        log=request.log,
        nonce=request.nonce.hex(),
        size=0 if head is None else head.size,
        root=EMPTY if head is None else head.root,
    )
    data = encode_json(newest)
    signature = signer.sign(signed_message("witness", data))
    return NewestAnswer(
        newest=data,
        signature=Cosignature(key=signer.key, signature=signature),
        log_key=memory.log_key,
        head=memory.newest,
    )


def check_newest(answer: NewestAnswer, *, log: str, nonce: bytes, key: PublicKey) -> Newest:
    """What a witness says, if it says so of this log and to this nonce.

    Raises :class:`HeadRefused`, :class:`~cloister.errors.FormatError` or :class:`~cloister.errors.SignatureRefused`.
    """
    if answer.signature.key != key.text:
        raise HeadRefused("the answer is signed by another key than the witness's")
    key.verify(signed_message("witness", answer.newest), answer.signature.signature)
    newest = decode_json(answer.newest, Newest, what="a witness's answer", limit=MAX_STATEMENT)
    if newest.log != log or newest.nonce != nonce.hex():
        raise HeadRefused("the answer is of another log, or to another question")
    if answer.head is None:
        said: tuple[int, str] = (0, EMPTY)
    else:
        head = proven_head(answer.head, log_key=answer.log_key, log=log)
        said = (head.size, head.root)
    if (newest.size, newest.root) != said:
        raise HeadRefused("the witness names a head that the log did not sign")
    return newest


def proven_head(signed: SignedHead, *, log_key: str, log: str) -> TreeHead:
    """A head that the log named ``log`` signed with this key (hexadecimal), which its name vouches for."""
    key = from_hex(log_key, 32, what="a log key")
    if log_id(key) != log:
        raise HeadRefused("the log key is not that of the log")
    return verify_head(signed, log_key=key)


def forget(memory: Memory, *, size: int, root: str, now: int) -> Memory:
    """Go back to ``size`` entries: the witness's owner decided so after a lawful restore.

    With ``root`` (hexadecimal) the next head must extend that history; empty, the next of at least ``size`` entries is
    taken as the truth. Raises :class:`~cloister.errors.UsageError`.
    """
    if not 0 <= size < memory.size:
        raise UsageError(f"{memory.size} entries are remembered: there is nothing to forget down to {size}")
    if size == 0 and root not in ("", EMPTY):
        raise UsageError("no entries have no root to name", todo="leave --root away with --to-size 0")
    if root:
        from_hex(root, 32, what="the root")
    to_root = EMPTY if size == 0 else root
    note = Forgotten(at=now, from_size=memory.size, from_root=memory.root, to_size=size, to_root=to_root)
    return Memory(
        log_key=memory.log_key,
        size=size,
        root=to_root,
        newest=None,
        forgotten=(*memory.forgotten, note)[-MAX_FORGOTTEN:],
    )


def encode_memory(memory: Memory) -> bytes:
    """The bytes that :func:`parse_memory` reads."""
    return encode_json(memory)


def parse_memory(data: bytes, *, log: str) -> Memory:
    """What is remembered of the log with this id. Raises :class:`MemoryDamaged`."""
    try:
        memory = decode_json(data, Memory, what="a witness's memory", limit=MAX_MEMORY)
        if log_id(from_hex(memory.log_key, 32, what="a log key")) != log:
            raise FormatError("it is of another log")
        if encode_json(memory) != data or memory.size < 0 or (memory.size == 0) != (memory.root == EMPTY):
            raise FormatError("it is not in its one form")
        if memory.root:
            from_hex(memory.root, 32, what="root")
        if memory.newest is not None:
            head = verify_head(memory.newest, log_key=bytes.fromhex(memory.log_key))
            if (head.size, head.root) != (memory.size, memory.root):
                raise FormatError("its head is not where it stands")
    except (FormatError, HeadRefused) as error:
        raise MemoryDamaged(
            f"what the witness remembers of the log {log} is damaged: {error.what}",
            todo="restore the newest copy; a witness that forgot must not sign",
        ) from None
    return memory


def _require_extends(memory: Memory, head: TreeHead, request: CosignRequest) -> None:
    if memory.size and request.old_size != memory.size:
        raise ProofNeeded(
            f"this witness stands at {memory.size} entries, and the proof starts at {request.old_size}",
            todo="prove from there",
        )
    proof = request.proof if memory.size else ()
    try:
        merkle.verify_consistency(
            memory.size, head.size, bytes.fromhex(memory.root), bytes.fromhex(head.root), proof
        )
    except FormatError:
        raise _fork(memory, head) from None


def _fork(memory: Memory, head: TreeHead) -> ForkFound:
    return ForkFound(
        f"two histories of one log: {memory.size} entries with root {memory.root} were seen, and the "
        f"{head.size} entries with root {head.root} do not grow out of them",
        todo="two brokers run on copies of one state, or somebody rewrote the log: stop both",
    )
