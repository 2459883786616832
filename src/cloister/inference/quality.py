"""How far a model as it is computed is from the model as it was made: on text that neither was fitted to.

A :class:`NextTokens` says, place by place, how likely every next token is. What one says is kept as :class:`Observations`,
so that the reference need not be in memory beside the candidate, and two of them are compared: perplexity of both, how
often the likeliest next token is the same, the mean divergence of the probabilities, the cosine of the logits. An engine
that tells its likeliest few tokens only is compared on those: the divergence is a lower bound then, and perplexity covers
the places whose next token is among them. Refused: observations of different texts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Protocol, Self, TypeAlias
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from cloister.errors import FormatError, InferenceError, UsageError

Floats: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.int64]

MAX_TEXT: Final = 4 << 20
MAX_TOKENS: Final = 1 << 20
_REST: Final = 1e-9
"""The least probability that is taken for all tokens that were not told."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is thought of one place: natural logarithms of probabilities, for ``tokens``. None told: nothing known."""

    tokens: Integers
    logprobs: Floats
    complete: bool
    """Whether they are all tokens of the vocabulary, in order of their numbers."""

    def of(self, token: int) -> float | None:
        """Of one token; None if it was not told."""
        if self.complete:
            return float(self.logprobs[token])
        found = np.flatnonzero(self.tokens == token)
        return float(self.logprobs[found[0]]) if found.size else None

    @property
    def likeliest(self) -> int:
        return int(self.tokens[int(self.logprobs.argmax())])


class NextTokens(Protocol):
    """A model that says how likely each next token is."""

    def predictions(self, tokens: Sequence[int], start: int) -> Iterator[Prediction]:
        """For each place from ``start`` to the end of ``tokens``, given all tokens before it; in order."""
        ...


@dataclass(frozen=True, slots=True)
class Windows:
    """Pieces of a text as tokens. In each, places from ``start`` on are looked at."""

    tokens: tuple[tuple[int, ...], ...]
    start: int

    @property
    def places(self) -> int:
        return sum(len(window) - self.start for window in self.tokens)

    @property
    def digest(self) -> str:
        data = repr((self.tokens, self.start)).encode()
        return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Observations:
    """What a model says of every place of some windows."""

    windows: Windows
    predictions: tuple[Prediction, ...]

    def save(self, target: Path) -> None:
        """Write a file that :meth:`load` reads: numbers only, for a process with another model. Whole or not at all."""
        with target.open("xb") as file:
            try:
                np.savez(
                    file,
                    digest=np.frombuffer(bytes.fromhex(self.windows.digest), np.uint8),
                    lengths=np.array([one.tokens.size for one in self.predictions], np.int64),
                    complete=np.array([one.complete for one in self.predictions], np.bool_),
                    tokens=np.concatenate([one.tokens for one in self.predictions]),
                    logprobs=np.concatenate([one.logprobs for one in self.predictions]),
                )
            except BaseException:
                target.unlink()  # on a disk that is full it would take the last room
                raise

    @classmethod
    def load(cls, source: Path, windows: Windows) -> Self:
        """Read what was seen of ``windows``. Raises :class:`FormatError` where the file is of other ones."""
        try:
            # A file of our own: numpy leaves one open that is no archive.
            with source.open("rb") as file, np.load(file, allow_pickle=False) as found:
                digest, lengths, complete = found["digest"].tobytes(), found["lengths"], found["complete"]
                ends = np.cumsum(lengths)[:-1]
                tokens, logprobs = np.split(found["tokens"], ends), np.split(found["logprobs"], ends)
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile):
            raise FormatError(f"{source} holds no observations") from None
        if digest.hex() != windows.digest or len(lengths) != windows.places:
            raise FormatError(f"{source} is of another text")
        return cls(
            windows,
            tuple(
                Prediction(which.astype(np.int64), what.astype(np.float32), bool(whole))
                for which, what, whole in zip(tokens, logprobs, complete, strict=True)
            ),
        )


@dataclass(frozen=True, slots=True)
class Quality:
    """A candidate beside its reference."""

    places: int
    """At which both told anything."""
    covered: int
    """Places whose next token both told a probability for; perplexities are of these."""
    perplexity: float
    reference_perplexity: float
    change: float
    """Of the perplexity, relative to the reference's; more is worse."""
    change_error: float
    """Standard error of ``change``, from the spread over the places."""
    agreement: float
    """Share of places at which the likeliest next token is the reference's."""
    divergence: float
    """Mean Kullback–Leibler divergence from the reference, in nats."""
    cosine: float | None
    """Mean cosine of the logits, each less its mean; None where not all were told."""


def windows_of(
    tokens: Sequence[int], *, count: int = 4, length: int = 64, first: Sequence[int] = ()
) -> Windows:
    """``count`` pieces of ``length`` tokens, spread evenly over a text; the second half of each is looked at.

    ``first`` (a beginning token, say) is set before each piece. Raises :class:`UsageError` where the text is too short.
    """
    if not 1 <= count <= 4096 or not 4 <= length <= 4096:
        raise UsageError(f"{count} windows of {length} tokens cannot be looked at")
    if not count * length <= len(tokens) <= MAX_TOKENS:
        raise UsageError(
            f"the text has {len(tokens)} tokens, and between {count * length} and {MAX_TOKENS} are needed",
            todo="name another text",
        )
    step = (len(tokens) - length) // max(1, count - 1)
    found = (tokens[place * step : place * step + length] for place in range(count))
    return Windows(tuple((*first, *piece) for piece in found), len(first) + length // 2)


def default_text() -> bytes:
    """The text that comes with the package, UTF-8: English prose, a little code, Chinese; written for this purpose."""
    return (files("cloister.inference") / "texts" / "held_out.txt").read_bytes()


def read_text(path: Path) -> str:
    """A text of the user's. Raises :class:`UsageError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path} cannot be read as text", todo="name a file in UTF-8") from None
    if len(data) > MAX_TEXT:
        raise UsageError(f"{path} is over {MAX_TEXT} bytes")
    return text


def observe(model: NextTokens, windows: Windows) -> Observations:
    """Ask ``model`` about every place. Raises what the model raises, and :class:`FormatError` where it leaves places out."""
    found: list[Prediction] = []
    for window in windows.tokens:
        before = len(found)
        found.extend(model.predictions(window, windows.start))
        if len(found) - before != len(window) - windows.start:
            raise FormatError("a model did not say something of each place")
    return Observations(windows, tuple(found))


def compare(reference: Observations, candidate: Observations) -> Quality:
    """How far ``candidate`` is from ``reference``. Raises :class:`FormatError` where they saw different windows."""
    windows = reference.windows
    if candidate.windows != windows or not reference.predictions:
        raise FormatError("observations of different texts cannot be compared")
    actual = [token for window in windows.tokens for token in window[windows.start :]]
    both_told = [
        (one, other, token)
        for one, other, token in zip(reference.predictions, candidate.predictions, actual, strict=True)
        if one.tokens.size and other.tokens.size
    ]
    if not both_told:
        raise InferenceError("the two models tell probabilities of no place in common")
    pairs = [(one, other) for one, other, _ in both_told]
    told = [(one.of(token), other.of(token)) for one, other, token in both_told]
    both = np.array([pair for pair in told if None not in pair], np.float64).reshape(-1, 2)
    losses = -both.mean(axis=0) if len(both) else np.array([math.inf, math.inf])
    ratio = math.exp(losses[1] - losses[0]) if len(both) else math.inf
    spread = (
        float(np.std(both[:, 0] - both[:, 1], ddof=1)) / math.sqrt(len(both)) if len(both) > 1 else math.inf
    )
    cosines = [_cosine(one, other) for one, other in pairs if one.complete and other.complete]
    return Quality(
        places=len(pairs),
        covered=len(both),
        perplexity=math.exp(losses[1]),
        reference_perplexity=math.exp(losses[0]),
        change=ratio - 1,
        change_error=ratio * spread,
        agreement=sum(one.likeliest == other.likeliest for one, other in pairs) / len(pairs),
        divergence=sum(_divergence(one, other) for one, other in pairs) / len(pairs),
        cosine=sum(cosines) / len(cosines) if len(cosines) == len(pairs) else None,
    )


def _divergence(reference: Prediction, candidate: Prediction) -> float:
    """Of the probabilities of the tokens that both told, and of all others together: at most that of all."""
    if reference.complete and candidate.complete:
        first, second = _normal(reference.logprobs), _normal(candidate.logprobs)
        return float(max(0.0, (np.exp(first) * (first - second)).sum()))
    _, ours, theirs = np.intersect1d(reference.tokens, candidate.tokens, return_indices=True)
    first = reference.logprobs[ours].astype(np.float64)
    second = candidate.logprobs[theirs].astype(np.float64)
    rest = [math.log(max(_REST, 1 - float(np.exp(part).sum()))) for part in (first, second)]
    shared = float((np.exp(first) * (first - second)).sum())
    return max(0.0, shared + math.exp(rest[0]) * (rest[0] - rest[1]))


def _cosine(reference: Prediction, candidate: Prediction) -> float:
    first, second = (
        part.logprobs.astype(np.float64) - part.logprobs.mean() for part in (reference, candidate)
    )
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / size if size else 1.0


def _normal(logprobs: Floats) -> npt.NDArray[np.float64]:
    wide = logprobs.astype(np.float64)
    largest = wide.max()
    normal: npt.NDArray[np.float64] = wide - (largest + np.log(np.exp(wide - largest).sum()))
    return normal


def all_tokens(logits: Any) -> Prediction:
    """A prediction of logits over the whole vocabulary, (tokens,)."""
    normal = _normal(np.asarray(logits, np.float32)).astype(np.float32)
    return Prediction(np.arange(normal.size, dtype=np.int64), normal, complete=True)
