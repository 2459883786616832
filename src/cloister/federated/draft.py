"""A federation from what a person writes (docs/how-to/federation.md): a TOML file that names policies by their files. Pure.

Version, predecessor and time are not written by hand. Numbers may have fractions, which the document counts in millionths;
one that cannot be counted so is refused, never rounded. Everything else is as in the document, and checked as it is.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Literal

import msgspec

from cloister.encoding import Record, convert, encode_json
from cloister.errors import FormatError, ManifestError, Superseded
from cloister.federated.federation import (
    MILLION,
    Aggregation,
    Federation,
    Method,
    Party,
    Privacy,
    Task,
    read_federation,
)
from cloister.manifest.draft import key_text
from cloister.manifest.signed import MAX_DOCUMENT, Signed

PAGE: Final = "see docs/how-to/federation.md"
THIS: Final = "this"
PPM: Final = "-ppm"
"""Ends the name of a setting that is counted in millionths."""
_LARGEST: Final = 10**9
_SMALLEST: Final = -15
"""Of numbers that may have fractions: where the first digit of a smaller one than that stands."""


class _Task(Record, frozen=True, kw_only=True):
    plugin: str
    code: str
    model: str
    settings: dict[str, Any] = msgspec.field(default_factory=dict)


class _Aggregation(Record, frozen=True, kw_only=True):
    method: Method
    secure: bool
    largest: Any
    tolerated: int = 0
    proximal: Any = 0


class _Privacy(Record, frozen=True, kw_only=True):
    of: Literal["clients", "examples"]
    noise: Any
    clip: Any
    epsilon: Any
    delta: Any


class _Authored(Record, frozen=True, kw_only=True, rename="kebab"):
    """The file: names of policy files where the document has their texts."""

    name: str
    parties: dict[str, Party]
    aggregator: tuple[str, ...]
    everyone: bool
    attest_minutes: int
    task: _Task
    rounds: int
    deadline: int
    minimum: int
    aggregation: _Aggregation
    privacy: Literal["none"] | _Privacy
    metrics: tuple[str, ...]
    receivers: tuple[str, ...]


def draft_federation(
    text: str,
    *,
    name: str,
    read_policy: Callable[[str], str],
    this_code: Callable[[], str],
    model_digest: Callable[[str], str],
    issued: int,
    previous: Signed | None,
) -> Federation:
    """The federation that ``text`` describes, after ``previous``.

    ``read_policy`` gives the text of a file named in it, ``this_code`` the digest of the installed package, ``model_digest``
    that of the model at a path. Raises :class:`~cloister.errors.ManifestError`, and what these raise.
    """
    authored = _read(text, name)
    version, digest = 1, ""
    if previous is not None:
        before = _predecessor(authored, previous, issued)
        version, digest = before.version + 1, previous.digest
    federation = Federation(
        name=authored.name,
        version=version,
        previous=digest,
        issued=issued,
        parties={
            party: Party(
                key=key_text(one.key),
                agent=tuple(map(read_policy, one.agent)),
                workload=tuple(map(read_policy, one.workload)),
            )
            for party, one in authored.parties.items()
        },
        aggregator=tuple(map(read_policy, authored.aggregator)),
        everyone=authored.everyone,
        attest_minutes=authored.attest_minutes,
        task=_task(authored.task, this_code, model_digest),
        rounds=authored.rounds,
        deadline=authored.deadline,
        minimum=authored.minimum,
        aggregation=_aggregation(authored.aggregation),
        privacy=authored.privacy if authored.privacy == "none" else _privacy(authored.privacy),
        metrics=authored.metrics,
        receivers=authored.receivers,
    )
    # As everybody will read it: the bound on its length is part of that.
    return read_federation(encode_json(federation))[0]


def _read(text: str, name: str) -> _Authored:
    if len(text) > MAX_DOCUMENT:
        raise ManifestError(f"{name} is longer than {MAX_DOCUMENT} characters")
    try:
        # As decimals, so that what is written is what is counted.
        return convert(tomllib.loads(text, parse_float=Decimal), _Authored, what=name)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{name} is not TOML: {error}", todo=PAGE) from None
    except (ArithmeticError, RecursionError, ValueError):  # Python refuses numbers of 5000 digits
        raise ManifestError(f"{name} has a number without bound, or tables without end", todo=PAGE) from None
    except FormatError as error:
        raise ManifestError(error.what, todo=PAGE) from None


def _predecessor(authored: _Authored, previous: Signed, issued: int) -> Federation:
    """What can be told now of what would be refused once everybody has signed."""
    before, _ = read_federation(previous.document)
    if before.name != authored.name:
        raise ManifestError(f"the predecessor is of {before.name}, not of {authored.name[:80]!r}")
    if issued < before.issued:
        raise Superseded(
            f"version {before.version} of {before.name} was issued later than now", todo="set the clock"
        )
    for party, one in authored.parties.items():
        if party in before.parties and key_text(one.key) != before.parties[party].key:
            raise ManifestError(
                f"the key of {party} is another one than in version {before.version}",
                todo="who has a new key comes under a new name",
            )
    return before


def _task(task: _Task, this_code: Callable[[], str], model_digest: Callable[[str], str]) -> Task:
    if task.code != THIS and not _is_digest(task.code):
        raise ManifestError(
            "the code of the task is no digest",
            todo=f'write its SHA-256, or "{THIS}" for the package that is installed here',
        )
    return Task(
        plugin=task.plugin,
        code=this_code() if task.code == THIS else task.code,
        model=task.model if _is_digest(task.model) else model_digest(task.model),
        settings=_settings(task.settings),
    )


def _settings(written: Mapping[str, Any]) -> dict[str, int | str | tuple[str, ...]]:
    """A setting with a fraction is the setting of that name and ``-ppm``, in millionths."""
    found: dict[str, int | str | tuple[str, ...]] = {}
    for name, value in written.items():
        if isinstance(value, Decimal):
            counted = f"{name}{PPM}"
            if counted in written:
                raise ManifestError(
                    f"the settings {name[:80]!r} and {counted[:80]!r} are one", todo="write it once"
                )
            found[counted] = _millionths(value, f"the setting {name[:80]!r}")
        elif isinstance(value, list) and all(isinstance(one, str) for one in value):
            found[name] = tuple(value)
        elif isinstance(value, str) or type(value) is int:
            found[name] = value
        else:
            raise ManifestError(
                f"the setting {name[:80]!r} is neither a number nor a text nor a list of texts", todo=PAGE
            )
    return found


def _aggregation(how: _Aggregation) -> Aggregation:
    return Aggregation(
        method=how.method,
        secure=how.secure,
        tolerated=how.tolerated,
        proximal_ppm=_millionths(how.proximal, "aggregation.proximal"),
        largest_ppm=_millionths(how.largest, "aggregation.largest"),
    )


def _privacy(privacy: _Privacy) -> Privacy:
    return Privacy(
        of=privacy.of,
        noise_ppm=_millionths(privacy.noise, "privacy.noise"),
        clip_ppm=_millionths(privacy.clip, "privacy.clip"),
        epsilon_ppm=_millionths(privacy.epsilon, "privacy.epsilon"),
        delta_inverse=_inverse(privacy.delta, "privacy.delta"),
    )


def _exact(value: object, what: str) -> Fraction:
    # Decimals can also be no number, or infinite; a bool is an int.
    if type(value) is not int and not isinstance(value, Decimal):
        raise ManifestError(f"{what} is not a number", todo="write one as 0.5")
    found = Decimal(value)
    if not found.is_finite() or not 0 <= found <= _LARGEST:
        raise ManifestError(f"{what} is not a number from 0 to {_LARGEST}")
    if found and found.adjusted() < _SMALLEST:  # before its digits are written out
        raise ManifestError(f"{what} is too small")
    # Arithmetic with decimals rounds at some digit.
    return Fraction(found) if found else Fraction(0)


def _millionths(value: object, what: str) -> int:
    counted = _exact(value, what) * MILLION
    if counted.denominator != 1:
        raise ManifestError(
            f"{what} has more than six digits behind the point", todo="round it to millionths"
        )
    return counted.numerator


def _inverse(value: object, what: str) -> int:
    found = _exact(value, what)
    if found.numerator != 1:
        raise ManifestError(
            f"{what} is not one over a whole number", todo="write it as 0.00001, for 1/100000"
        )
    return found.denominator


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None
