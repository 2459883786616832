"""Evidence that carries its endorsements: an attester around another one, and the same for devices.

A workload that carries fresh endorsements spares every client a question to the vendor. They are asked for by a
:class:`EndorsementSource` (endorsements/fetch.py is one), again before they end, and in the background: a quote waits
for the vendor a short, bounded time, and only while there is nothing to carry. While the vendor is down the last
ones stay as long as they are valid; after that the evidence goes out as the inner attester made it, and the log
says so. Nothing is verified here: whoever appraises the evidence does that.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from cloister.attester import Attester, DeviceAttester, RawDeviceEvidence, RawEvidence
from cloister.endorsements.plans import device_document_ends, device_subject, document_ends, subject
from cloister.errors import CloisterError, EndorsementError
from cloister.evidence.bundle import TeeKind

PATIENCE: Final = 2.0
"""Seconds that one quote waits while there is nothing to carry."""
MAX_AGE: Final = 6 * 3600
"""Seconds after which they are asked for again, though they still hold."""
RETRY: Final = 60
"""Seconds between two tries while the vendor does not answer."""
_LEAD: Final = 86_400
_SKEW: Final = 300
_SUBJECTS: Final = 16

_log = logging.getLogger("cloister.endorsements")


class EndorsementSource(Protocol):
    """One method. Raises :class:`~cloister.errors.CloisterError`; may be called from any thread."""

    def endorsements(self, tee: TeeKind, evidence: bytes) -> bytes: ...


class DeviceEndorsementSource(Protocol):
    """The same for devices."""

    def device_endorsements(self, device_evidence: bytes) -> bytes: ...


class EndorsedAttester:
    """An :class:`~cloister.attester.Attester` whose evidence carries endorsements from ``source``.

    ``clock`` gives Unix seconds. For several threads.
    """

    def __init__(
        self,
        attester: Attester,
        source: EndorsementSource,
        clock: Callable[[], float],
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._attester = attester
        self._source = source
        self._shelf = _Shelf(clock, patience)

    def quote(self, report_data: bytes) -> RawEvidence:
        """A quote over ``report_data``; its own endorsements are replaced where the source has some."""
        raw = self._attester.quote(report_data)
        try:
            about = subject(raw.tee, raw.quote)
        except CloisterError as error:
            _log.warning("the evidence goes out without fetched endorsements: %s", error)
            return raw
        document = self._shelf.document(
            about,
            lambda: self._source.endorsements(raw.tee, raw.quote),
            lambda found: document_ends(raw.tee, found),
        )
        return replace(raw, endorsements=document) if document else raw


class EndorsedDeviceAttester:
    """A :class:`~cloister.attester.DeviceAttester` whose evidence carries endorsements from ``source``."""

    def __init__(
        self,
        attester: DeviceAttester,
        source: DeviceEndorsementSource,
        clock: Callable[[], float],
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._attester = attester
        self._source = source
        self._shelf = _Shelf(clock, patience)

    def collect(self, nonce: bytes) -> RawDeviceEvidence:
        """Every device's report over ``nonce``; its own endorsements are replaced where the source has some."""
        raw = self._attester.collect(nonce)
        try:
            about = device_subject(raw.evidence)
        except CloisterError as error:
            _log.warning("the device evidence goes out without fetched endorsements: %s", error)
            return raw
        document = self._shelf.document(
            about, lambda: self._source.device_endorsements(raw.evidence), device_document_ends
        )
        return replace(raw, endorsements=document) if document else raw


@dataclass(slots=True)
class _Held:
    """What is known for one subject. Times are Unix seconds."""

    document: bytes = b""
    ends: int = 0
    fetched_at: float = 0.0
    refresh_at: float = 0.0
    failed_at: float | None = None
    busy: bool = False


class _Shelf:
    """The last good document of each subject, and at most one question at a time about each."""

    def __init__(self, clock: Callable[[], float], patience: float) -> None:
        self._clock = clock
        self._patience = patience
        self._changed = threading.Condition()
        self._held: OrderedDict[str, _Held] = OrderedDict()

    def document(self, about: str, ask: Callable[[], bytes], ends: Callable[[bytes], int]) -> bytes:
        """A document that still holds, or nothing."""
        with self._changed:
            held = self._held.setdefault(about, _Held())
            self._held.move_to_end(about)
            while len(self._held) > _SUBJECTS:
                self._held.popitem(last=False)
            now = self._clock()
            fresh = held.fetched_at - _SKEW <= now < held.refresh_at
            # By distance, so that a clock that was set back does not put off the next try for long.
            rests = held.failed_at is not None and abs(now - held.failed_at) < RETRY
            if not fresh and not held.busy and not rests:
                held.busy = True
                threading.Thread(
                    target=self._refresh, args=(held, ask, ends), name="cloister-endorsed", daemon=True
                ).start()
            if now < held.ends:
                return held.document
            self._changed.wait_for(lambda: not held.busy, timeout=self._patience)
            return held.document if self._clock() < held.ends else b""

    def _refresh(self, held: _Held, ask: Callable[[], bytes], ends: Callable[[bytes], int]) -> None:
        document, end, failure = b"", 0, ""
        try:
            document = ask()
            end = ends(document)
            if end <= self._clock():
                raise EndorsementError(
                    f"what was fetched ended already, at {end}", todo="is the clock right?"
                )
        except CloisterError as error:
            failure = str(error)
        except Exception as error:  # a source of someone else: its fault must not end the refreshing
            failure = f"{type(error).__name__} in the source of endorsements"
        with self._changed:
            now = self._clock()
            held.busy = False
            if failure:
                held.failed_at = now
                state = f"the last ones hold until {held.ends}" if now < held.ends else "there are none"
                _log.warning("endorsements were not refreshed (%s): %s", state, failure)
            else:
                held.document, held.ends, held.failed_at = document, end, None
                held.fetched_at = now
                held.refresh_at = min(now + MAX_AGE, end - min(_LEAD, (end - now) / 2))
            self._changed.notify_all()
