"""Asking witnesses, several at once, for a bounded time (docs/spec/witness.md). Only signatures count.

A co-signature is verified under the witness's key, a refusal is believed only with a head that the log itself signed: so
neither the network nor a lying witness can make up a fork. It can stay silent; that is what the threshold is for.
"""

from __future__ import annotations

import functools
import queue
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeVar

import httpx2

from cloister import merkle
from cloister.broker.tree_head import (
    Cosignature,
    ForkFound,
    RollbackFound,
    SignedHead,
    TreeHead,
    parse_head,
    verify_cosignature,
    with_cosignatures,
)
from cloister.broker.witness import (
    MAX_ANSWER,
    PREFIX,
    Conflict,
    CosignRequest,
    Newest,
    NewestAnswer,
    NewestRequest,
    check_newest,
    proven_head,
)
from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import CloisterError, FormatError, NetworkError
from cloister.manifest.owner_key import PublicKey

ROUNDS: Final = 4
"""Requests for one co-signature: one learns where the witness stands, others meet one that moved meanwhile."""
GRACE: Final = 0.5
"""Seconds that slower witnesses get, once enough have co-signed, to show a fork that these did not see."""
MAX_REASONS: Final = 600

T = TypeVar("T", bound=Record)
R = TypeVar("R")
Proof = Callable[[int, int], Sequence[bytes]]
"""``(old, new)`` -> the log's consistency proof; called from other threads."""


@dataclass(frozen=True, slots=True)
class WitnessClient:
    """One witness: its name in the manifest, its address and its key."""

    name: str
    url: str
    key: PublicKey

    def newest(self, *, log: str, nonce: bytes, timeout: float) -> Newest:
        """The newest head that it co-signed, told to a fresh nonce. Raises :class:`NetworkError`, or that it lies."""
        answer = self._ask("newest", NewestRequest(log=log, nonce=nonce), time.monotonic() + timeout)
        return check_newest(self._decoded(answer, NewestAnswer), log=log, nonce=nonce, key=self.key)

    def cosign(self, signed: SignedHead, *, known: int, proof: Proof, timeout: float) -> Cosignature:
        """Its co-signature. ``known`` is where it probably stands.

        Raises :class:`ForkFound` or :class:`RollbackFound` when it proves another history or a longer one,
        :class:`NetworkError` when it does not answer or does not co-sign.
        """
        deadline = time.monotonic() + timeout
        head = parse_head(signed.head)
        bare = SignedHead(head=signed.head, signature=signed.signature)
        for _ in range(ROUNDS):
            path = tuple(proof(known, head.size)) if 0 < known < head.size else ()
            answer = self._ask("cosign", CosignRequest(head=bare, old_size=known, proof=path), deadline)
            if not isinstance(answer, Conflict):
                cosignature = self._decoded(answer, Cosignature)
                verify_cosignature(signed.head, cosignature, self.key)
                return cosignature
            if answer.newest is not None:
                seen = proven_head(answer.newest, log_key=answer.log_key, log=head.log)
                self._require_ours(seen, head, proof)
            if not 0 <= answer.size < head.size or answer.size == known:
                raise NetworkError(
                    f"the witness {self.name} does not co-sign: its owner set it to {answer.size} entries of "
                    "another history, or it lies"
                )
            known = answer.size
        raise NetworkError(f"the witness {self.name} does not settle on what it has seen", todo="ask again")

    def _require_ours(self, seen: TreeHead, ours: TreeHead, proof: Proof) -> None:
        """Raise unless ``ours`` is, or grows out of, a head that the log signed and the witness has seen."""
        facts = (
            f"{seen.size} entries with root {seen.root}, this broker has {ours.size} with root {ours.root}"
        )
        if seen.size > ours.size:
            raise RollbackFound(
                f"the witness {self.name} has seen {facts}",
                todo="an older copy of the state was put in place of the newest: put the newest back",
            )
        if seen.time > ours.time:
            raise RollbackFound(
                f"the witness {self.name} has seen a tree head of this log from {seen.time}, and this is of {ours.time}",
                todo="set the broker's clock right",
            )
        if seen.size == ours.size:
            if (seen.root, seen.state) == (ours.root, ours.state):
                return
        else:
            old, new = bytes.fromhex(seen.root), bytes.fromhex(ours.root)
            try:
                merkle.verify_consistency(seen.size, ours.size, old, new, proof(seen.size, ours.size))
            except FormatError:
                pass
            else:
                return
        raise ForkFound(
            f"two histories of one log: the witness {self.name} has seen {facts}",
            todo="two brokers run on copies of one state, or somebody rewrote the log: stop both",
        )

    def _ask(self, what: str, body: Record, deadline: float) -> bytes | Conflict:
        status, answer = self._post(f"{self.url.rstrip('/')}{PREFIX}/{what}", encode_json(body), deadline)
        if status == HTTPStatus.OK:
            return answer
        if status == HTTPStatus.CONFLICT:
            return self._decoded(answer, Conflict)
        raise NetworkError(
            f"the witness {self.name} answered with status {status}",
            todo="it may not serve this log: `cloister witness serve --log` with the log's key",
        )

    def _post(self, url: str, body: bytes, deadline: float) -> tuple[int, bytes]:
        left = deadline - time.monotonic()
        found = bytearray()
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        try:
            with (
                httpx2.Client(timeout=max(left, 0.001), verify=_certificates(), trust_env=False) as client,
                client.stream("POST", url, content=body, headers=headers) as response,
            ):
                for chunk in response.iter_raw():
                    found += chunk
                    if len(found) > MAX_ANSWER or time.monotonic() > deadline:
                        raise NetworkError(f"the witness {self.name} answers too long, or too slowly")
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise NetworkError(
                f"the witness {self.name} does not answer ({type(error).__name__})", todo=f"check {self.url}"
            ) from None
        return response.status_code, bytes(found)

    def _decoded(self, data: bytes | Conflict, kind: type[T]) -> T:
        if isinstance(data, Conflict):
            raise NetworkError(f"the witness {self.name} refuses to answer")
        return decode_json(data, kind, what=f"the answer of the witness {self.name}", limit=MAX_ANSWER)


def ask_newest(
    clients: Sequence[WitnessClient], *, log: str, nonce: bytes, threshold: int, timeout: float
) -> Mapping[str, Newest]:
    """The newest heads that witnesses co-signed, by name; all of them are waited for, for ``timeout`` seconds.

    Raises :class:`NetworkError` if fewer than ``threshold`` answer as they must.
    """
    found: dict[str, Newest] = {}
    failed: dict[str, str] = {}
    asked = _ask_all(clients, lambda one: one.newest(log=log, nonce=nonce, timeout=timeout), timeout)
    for name, answer in asked:
        if isinstance(answer, Newest):
            found[name] = answer
        else:
            failed[name] = answer.what
    if len(found) < threshold:
        raise _too_few(clients, found, failed, threshold)
    return found


def gather(
    clients: Sequence[WitnessClient],
    signed: SignedHead,
    *,
    consistency: Proof,
    known: int = 0,
    threshold: int,
    timeout: float,
) -> SignedHead:
    """``signed`` with at least ``threshold`` co-signatures, within ``timeout`` seconds.

    ``known`` is the size at which the witnesses probably stand. Raises :class:`ForkFound` or :class:`RollbackFound` as soon
    as one proves another or a longer history, :class:`NetworkError` naming who did not co-sign.
    """
    found: dict[str, Cosignature] = {}
    failed: dict[str, str] = {}
    asked = _ask_all(
        clients,
        lambda one: one.cosign(signed, known=known, proof=consistency, timeout=timeout),
        timeout,
        enough=lambda: len(found) >= threshold,
    )
    for name, answer in asked:
        if isinstance(answer, Cosignature):
            found[name] = answer
        elif isinstance(answer, (ForkFound, RollbackFound)):
            raise answer
        else:
            failed[name] = answer.what
    if len(found) < threshold:
        raise _too_few(clients, found, failed, threshold)
    return with_cosignatures(signed, tuple(found[name] for name in sorted(found)))


def _ask_all(
    clients: Sequence[WitnessClient],
    ask: Callable[[WitnessClient], R],
    timeout: float,
    *,
    enough: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, R | CloisterError]]:
    """Answers in the order in which they come, until everybody answered, time is over, or enough is enough."""
    answers: queue.SimpleQueue[tuple[str, R | CloisterError]] = queue.SimpleQueue()

    def one(client: WitnessClient) -> None:
        try:
            answers.put((client.name, ask(client)))
        except CloisterError as error:
            answers.put((client.name, error))

    for client in clients:
        # A daemon: whoever drips its answer must not keep this process from ending.
        threading.Thread(target=one, args=(client,), name=f"witness {client.name}", daemon=True).start()
    deadline = time.monotonic() + timeout
    graced = False
    for _ in clients:
        if enough() and not graced:
            deadline, graced = min(deadline, time.monotonic() + GRACE), True
        try:
            yield answers.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            return


def _too_few(
    clients: Sequence[WitnessClient], found: Mapping[str, object], failed: Mapping[str, str], threshold: int
) -> NetworkError:
    silent = {client.name for client in clients} - set(found) - set(failed)
    reasons = [failed[name] for name in sorted(failed)]
    reasons += [f"the witness {name} did not answer in time" for name in sorted(silent)]
    return NetworkError(
        f"{len(found)} witnesses answered, and {threshold} must: {'; '.join(reasons)}"[:MAX_REASONS],
        todo="bring them back; nothing is released without them",
    )


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once: an httpx client of its own for each question would read them each time."""
    return ssl.create_default_context()
