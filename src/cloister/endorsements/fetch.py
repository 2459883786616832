"""Fetches endorsements: drives the vendors' questions over HTTP and the cache. With cache.py the room's only I/O.

Every request is bounded: tries, bytes, and seconds in all, name resolution and waiting included. Refused are
redirects, compressed or mistyped answers, and what is longer or shorter than announced. Environment variables choose
no proxy. A service that is down or busy does no harm while the cache holds something that is still valid.
:class:`~cloister.errors.NetworkError` is the service's absence, :class:`~cloister.errors.EndorsementError` a wrong
answer; each is one line.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Self, TypeVar

import httpx2

from cloister.endorsements.answers import (
    BUSY,
    UNKNOWN,
    check_head,
    day,
    failed,
    host,
    offline_error,
    reason_of,
)
from cloister.endorsements.asking import Asking, Entry, Part, Reply
from cloister.endorsements.backoff import retry_after, wait_before
from cloister.endorsements.cache import Cache
from cloister.endorsements.parallel import outcome_of, run_all
from cloister.endorsements.plans import ask, ask_devices, part_ends
from cloister.endorsements.services import Services
from cloister.errors import CloisterError, EndorsementError, NetworkError, UsageError
from cloister.evidence.bundle import TeeKind

T = TypeVar("T")

MARGIN: Final = 3600
"""Seconds before its end at which an entry is asked for again."""
SKEW: Final = 300
"""Seconds that an entry may seem to come from the future; further off the clock went back, and its age is unknown."""
_AT_ONCE: Final = 4
_LAST_WORDS: Final = 2.0

_log = logging.getLogger("cloister.endorsements")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds and tries. All seconds of one document together never exceed ``total``."""

    total: float = 60.0
    attempt: float = 20.0
    connect: float = 5.0
    read: float = 10.0
    attempts: int = 4


@dataclass(frozen=True, slots=True)
class Fetched:
    """One document with the parts that it was made of."""

    document: bytes
    entries: tuple[Entry, ...]


class _Again(Exception):
    """This try failed; another may not. ``error`` is what to raise if there is none."""

    def __init__(self, error: CloisterError, asked: float | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.asked = asked


class Fetcher:
    """Endorsements for evidence, from the vendors' services or from the cache. For several threads."""

    def __init__(
        self,
        *,
        cache: Cache | None = None,
        services: Services | None = None,
        transport: httpx2.BaseTransport | None = None,
        offline: bool = False,
        refresh: bool = False,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        """``offline`` answers from the cache alone; ``refresh`` asks for everything again.

        ``transport`` carries every request (httpx2's own by default). ``clock`` gives Unix seconds. ``progress`` is
        called with how many parts are there, how many are known to be needed, and the last one's name.
        """
        if offline and refresh:
            raise UsageError("offline and refresh exclude each other", todo="leave one of them out")
        self._cache = cache
        self._services = services or Services()
        self._offline = offline
        self._refresh = refresh
        self._limits = limits or Limits()
        self._clock = clock
        self._sleep = sleep
        self._monotonic = monotonic
        self._jitter = jitter
        self._progress = progress
        self._idle = threading.Condition()
        self._running = 0
        limit = self._limits
        self._client = httpx2.Client(
            transport=transport,
            timeout=httpx2.Timeout(limit.read, connect=limit.connect),
            follow_redirects=False,
            trust_env=False,
            headers={"user-agent": "cloister", "accept": "*/*", "accept-encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, once the last questions are answered or a short time is over."""
        with self._idle:
            self._idle.wait_for(lambda: not self._running, timeout=min(_LAST_WORDS, self._limits.attempt))
        self._client.close()

    def endorsements(self, tee: TeeKind, evidence: bytes) -> bytes:
        """The document that a bundle carries as ``endorsements`` for the quote or report ``evidence``.

        Raises :class:`~cloister.errors.NetworkError`, :class:`~cloister.errors.EndorsementError`, or
        :class:`~cloister.errors.EvidenceError` for evidence that cannot be read.
        """
        return self.collect(tee, evidence).document

    def device_endorsements(self, device_evidence: bytes) -> bytes:
        """The same for a bundle's ``device_endorsements``."""
        return self.collect_devices(device_evidence).document

    def collect(self, tee: TeeKind, evidence: bytes) -> Fetched:
        """:meth:`endorsements` with its parts, for an export."""
        return self._drive(ask(tee, evidence, self._services))

    def collect_devices(self, device_evidence: bytes) -> Fetched:
        """:meth:`device_endorsements` with its parts."""
        return self._drive(ask_devices(device_evidence, self._services))

    def _drive(self, asking: Asking) -> Fetched:
        deadline = self._monotonic() + self._limits.total
        entries: list[Entry] = []
        lacking: list[str] = []
        needed = 0
        answers: tuple[bytes | None, ...] | None = None
        while True:
            try:
                parts = next(asking) if answers is None else asking.send(answers)
            except StopIteration as done:
                return Fetched(done.value, tuple(entries))
            except EndorsementError:
                if lacking:  # every optional part is absent, perhaps only from here
                    raise offline_error(lacking) from None
                raise
            needed += len(parts)
            found = self._offline_parts(parts, lacking) if self._offline else None
            if found is None:
                found = self._online_parts(parts, deadline, len(entries), needed)
            entries += [entry for entry in found if entry is not None]
            answers = tuple(None if entry is None else entry.content for entry in found)

    def _offline_parts(self, parts: tuple[Part, ...], lacking: list[str]) -> tuple[Entry | None, ...]:
        found: list[Entry | None] = []
        now = self._clock()
        for part in parts:
            entry, ends = self._cached(part)
            if entry is None:
                lacking.append(part.what)
            elif ends <= now:
                entry = None
                lacking.append(f"{part.what} (what is there ended on {day(ends)})")
            found.append(entry)
        if any(entry is None and not part.optional for entry, part in zip(found, parts, strict=True)):
            raise offline_error(lacking)
        return tuple(found)

    def _online_parts(
        self, parts: tuple[Part, ...], deadline: float, done: int, needed: int
    ) -> tuple[Entry | None, ...]:
        stop = threading.Event()
        calls = [partial(self._part, part, deadline, stop) for part in parts]

        def finished(number: int, count: int) -> None:
            if self._progress is not None:
                self._progress(done + count, needed, parts[number].what)

        return tuple(run_all(calls, at_once=_AT_ONCE, stop=stop, finished=finished))

    def _part(self, part: Part, deadline: float, stop: threading.Event) -> Entry | None:
        entry, ends = self._cached(part)
        now = self._clock()
        if entry is not None and not self._refresh and _is_fresh(entry, ends, part.max_age, now):
            return entry
        try:
            content = self._ask(part, deadline, stop)
        except (NetworkError, EndorsementError) as error:
            if entry is None or ends <= now:
                raise
            _log.warning("%s; the one in the cache holds until %s", error, day(ends))
            return entry
        if content is None:
            if part.optional:
                return None
            raise EndorsementError(part.unknown, todo=f"{host(part)} was asked; is it the right service?")
        fetched = Entry(part.vendor, part.key, int(now), content)
        self._keep(fetched)
        return fetched

    def _cached(self, part: Part) -> tuple[Entry | None, int]:
        entry = None if self._cache is None else self._cache.read(part.vendor, part.key)
        if entry is None:
            return None, 0
        try:
            return entry, part_ends(entry.vendor, entry.key, entry.content)
        except EndorsementError:  # sound on disk, but not what it should be
            return None, 0

    def _keep(self, entry: Entry) -> None:
        if self._cache is None or part_ends(entry.vendor, entry.key, entry.content) <= entry.fetched_at:
            return
        try:
            self._cache.write(entry)
        except UsageError as error:  # a full disk is no reason to do without what was fetched
            _log.warning("%s", error)

    def _ask(self, part: Part, deadline: float, stop: threading.Event) -> bytes | None:
        """The content; None where the service does not know it."""
        for attempt in range(1, self._limits.attempts + 1):
            left = min(deadline - self._monotonic(), self._limits.attempt)
            if left <= 0 or stop.is_set():
                break
            exchange = partial(self._exchange, part, self._monotonic() + left)
            try:
                reply = self._bounded(exchange, left, part)
                return None if reply is None else part.read(reply)
            except EndorsementError as error:
                raise EndorsementError(f"{error.what} ({host(part)})", todo=error.todo) from None
            except _Again as again:
                wait = wait_before(attempt, asked=again.asked, jitter=self._jitter())
                if attempt == self._limits.attempts:
                    raise again.error from None
                if wait > deadline - self._monotonic():
                    raise _too_late(again, wait) from None
                if self._sleep is None:
                    stop.wait(wait)  # and no longer, when another part has failed
                else:
                    self._sleep(wait)
        raise NetworkError(f"{part.what}: {self._limits.total:g} s were not enough", todo="try again later")

    def _bounded(self, call: Callable[[], T], seconds: float, part: Part) -> T:
        """``call`` in a thread that is left behind after ``seconds``: resolving a name, or headers that come one
        byte at a time, have no timeout of their own."""
        box: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

        def run() -> None:
            box.put(outcome_of(call))
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

        with self._idle:
            self._running += 1
        threading.Thread(target=run, name="cloister-endorsements", daemon=True).start()
        try:
            outcome = box.get(timeout=max(seconds, 0.001))
        except queue.Empty:
            raise _Again(failed(part, "it did not answer in time")) from None
        return outcome()

    def _exchange(self, part: Part, deadline: float) -> Reply | None:
        headers = {"content-type": part.post_type} if part.post is not None else {}
        method = "GET" if part.post is None else "POST"
        began = False
        try:
            with self._client.stream(method, part.url, content=part.post, headers=headers) as response:
                began = True
                if response.status_code in UNKNOWN:
                    return None
                self._refuse_busy(part, response)
                check_head(part, response.status_code, response.headers)
                body = bytearray()
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > part.limit:
                        raise EndorsementError(f"{part.what} is over its bound of {part.limit} bytes")
                    if self._monotonic() > deadline:
                        raise _Again(failed(part, "it answers too slowly"))
                return Reply(bytes(body), {name.lower(): value for name, value in response.headers.items()})
        except httpx2.TimeoutException:
            raise _Again(failed(part, "it did not answer in time")) from None
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError) as error:
            if began:
                cut = EndorsementError(
                    f"the answer with {part.what} ended too early ({host(part)})", todo="try again later"
                )
                raise _Again(cut) from None
            raise _Again(failed(part, reason_of(error))) from None

    def _refuse_busy(self, part: Part, response: httpx2.Response) -> None:
        if response.status_code in BUSY:
            asked = retry_after(response.headers.get("retry-after"), now=self._clock())
            raise _Again(failed(part, f"it answered with status {response.status_code}"), asked)


def _is_fresh(entry: Entry, ends: int, max_age: int, now: float) -> bool:
    return entry.fetched_at - SKEW <= now < min(entry.fetched_at + max_age, ends - MARGIN)


def _too_late(again: _Again, wait: float) -> CloisterError:
    if again.asked is None or not isinstance(again.error, NetworkError):
        return again.error
    return NetworkError(f"{again.error.what} and asks to wait {wait:.0f} s", todo="try again then")
