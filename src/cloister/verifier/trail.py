"""The numbered checks of one appraisal, as they are made (docs/reference/checks.md).

Verifiers raise at the first check that fails. The trail remembers what passed before, and at which number it
stopped, so that a person can be shown the whole table; nothing is ever decided by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cloister.errors import CloisterError

CHECKS: Final = {
    1: "nonce",
    2: "kind of TEE",
    3: "form",
    4: "debug",
    5: "trust root",
    6: "endorsements' validity",
    7: "chain, revocation and signatures",
    8: "signer's identity",
    9: "TCB",
    10: "firmware and evaluation number",
    11: "platform",
    12: "binding",
    13: "event log",
    14: "measurements",
    15: "events and host data",
    16: "devices",
    17: "freshness",
}
"""The numbers that every kind of evidence shares; docs/reference/checks.md says what each means for each."""


@dataclass(frozen=True, slots=True)
class Check:
    """One numbered step that passed, for people to read. Several may share a number."""

    number: int
    name: str
    """What was checked, in a few words, such as ``certificate chain``."""
    outcome: str
    """What was found, such as ``Intel SGX Root CA``; never ``ok``."""


class Trail:
    """Collects checks. One per appraisal; not for several threads."""

    def __init__(self) -> None:
        self._passed: list[Check] = []
        self.stopped: tuple[int, CloisterError] | None = None
        """The number at which it stopped, and why."""

    @property
    def passed(self) -> tuple[Check, ...]:
        return tuple(self._passed)

    def found(self, number: int, outcome: str, *, name: str = "") -> None:
        """Check ``number`` passed; ``name`` where the vendor has a better one than :data:`CHECKS`."""
        self._passed.append(Check(number, name or CHECKS[number], outcome))

    @contextmanager
    def check(self, number: int, *, name: str = "") -> Iterator[Callable[[str], None]]:
        """``with trail.check(9) as found: …; found("UpToDate")``: whatever raises inside failed check 9."""

        def found(outcome: str) -> None:
            self.found(number, outcome, name=name)

        try:
            yield found
        except CloisterError as error:
            self.stop(number, error)
            raise

    def stop(self, number: int, error: CloisterError) -> None:
        """Remember that ``error`` ended it at ``number``; the innermost word stands."""
        if self.stopped is None:
            self.stopped = (number, error)


def day(seconds: int) -> str:
    """For people: a day of the UTC calendar, or the number where no calendar has it."""
    try:
        return datetime.fromtimestamp(seconds, tz=UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return str(seconds)
