"""From a model's folder to another one that holds what was measured to be best.

Everything that is made on the way lies in a hidden folder beside the new one, on the same disk, and is removed at the end,
whatever the end is. Refused: a new folder that is occupied, a sealed model, and a budget in which nothing could be measured.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from cloister.errors import InferenceError, UsageError
from cloister.inference.machine import Machine, read_machine
from cloister.inference.optimized import (
    Choice,
    ChosenSettings,
    Goal,
    MeasuredMachine,
    MeasuredQuality,
    MeasuredRow,
    MeasuredSpeed,
)
from cloister.inference.optimizer.candidates import list_candidates
from cloister.inference.optimizer.contest import Contest, Progress, Surroundings
from cloister.inference.optimizer.folder import write_folder
from cloister.inference.optimizer.forms import find_given
from cloister.inference.optimizer.pool import Trial
from cloister.inference.optimizer.standing import SHORT, Entrant, Judgement, chosen, refused
from cloister.inference.optimizer.trial_process import TrialProcess
from cloister.sealing.staging import refuse_occupied

MIN_BUDGET: Final = 5.0
MAX_BUDGET: Final = 7 * 24 * 3600.0
_SHOWN: Final = 4
"""Reasons that one line names."""
_PACKAGES: Final = (
    "cloister", "xllamacpp", "openvino", "openvino-genai", "openvino-tokenizers", "torch", "torchao", "transformers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was chosen, and where it lies."""

    out: Path
    choice: Choice
    seconds: float


def optimize_directory(
    model: Path,
    *,
    goal: Goal = "latency",
    budget: float = 600.0,
    out: Path | None = None,
    text: Path | None = None,
    max_loss: float = 0.03,
    progress: Progress | None = None,
    machine: Machine | None = None,
    start: Callable[[], Trial] = TrialProcess,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Choose for ``model`` (a .gguf file or a model's folder, in the clear) and write the new folder ``out``.

    ``budget`` is in seconds, ``max_loss`` by how much (0.03 = 3 %) the perplexity on ``text`` may rise; ``text`` None for
    the one that this package brings. ``out`` None stands for the model's name with ``.optimized``.
    Raises UsageError (arguments, the disk), InferenceError (the model; nothing could be measured).
    """
    if not MIN_BUDGET <= budget <= MAX_BUDGET:
        raise UsageError(f"a budget of {budget:g} s: between {MIN_BUDGET:g} s and a week are searched")
    if not 0 <= max_loss <= 10:
        raise UsageError(f"a bound of {max_loss:g} for the loss of quality: between 0 and 10 is one")
    begun = clock()
    out = out or model.parent / f"{model.resolve().name.removesuffix('.gguf')}.optimized"
    refuse_occupied(out)
    given = find_given(model)
    machine = machine or read_machine()
    candidates, left_out = list_candidates(given.source, machine, goal, short=budget < SHORT)
    with _room_beside(out) as room:
        contest = Contest(
            given, candidates, left_out, goal=goal, budget=budget, max_loss=max_loss, text=_text(text, room),
            room=Path(room),
            surroundings=Surroundings(
                machine=machine, start=start, free_memory=lambda: read_machine().limits.available,
                progress=progress or _silent, clock=clock,
            ),
        )  # fmt: skip
        entrants = contest.run()
        best = chosen(entrants, goal, max_loss)
        if best is None:
            why = _why(contest, entrants, max_loss)
            lacking = (
                "pip install 'cloister[optimize,torch,openvino]', or what of it you want to compare; "
                * ("not installed" in why)
            )
            raise InferenceError(
                f"nothing could be chosen within {budget:g} s: {why}",
                todo=f"{lacking}give a longer --budget, or mend what is said",
            )
        choice = _choice(contest, entrants, best, goal=goal, max_loss=max_loss, machine=machine)
        assert best.path is not None  # noqa: S101 -- it was measured
        write_folder(out, best.path, given, choice)
    return Outcome(out, choice, clock() - begun)


def _room_beside(out: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(
            prefix=f".{out.name[:100]}.", suffix=".candidates", dir=out.parent, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise UsageError(
            f"cannot create a folder in {out.parent}: {error.strerror}", todo="check --out"
        ) from None


def _text(text: Path | None, room: str) -> Path | None:
    """A copy of the user's text, so that all candidates read the same; None for the one that this package brings."""
    if text is None:
        return None
    from cloister.inference.quality import read_text  # noqa: PLC0415 -- numpy

    copy = Path(room) / "text"
    copy.write_text(read_text(text), encoding="utf-8")
    return copy


def _why(contest: Contest, entrants: Sequence[Entrant], max_loss: float) -> str:
    """Of each candidate's fate what was said, each thing once."""
    said: dict[str, str] = {}
    for entrant in entrants:
        reason = refused(entrant, max_loss) if entrant.state == "measured" else entrant.reason
        said.setdefault(reason, contest.name(entrant))
    found = [f"{name}: {reason}" for reason, name in said.items() if reason]
    return " | ".join(found[:_SHOWN]) or "there is no candidate"


def _choice(
    contest: Contest,
    entrants: Sequence[Entrant],
    best: Entrant,
    *,
    goal: Goal,
    max_loss: float,
    machine: Machine,
) -> Choice:
    candidate = best.candidate
    return Choice(
        engine=candidate.engine,
        settings=ChosenSettings(
            precision=candidate.precision, kv_cache=candidate.kv_cache, threads=candidate.threads
        ),
        goal=goal,
        max_loss_ppm=round(max_loss * 1e6),
        machine=MeasuredMachine(fingerprint=machine.fingerprint.hex(), words=machine.words[:400]),
        rows=tuple(_row(contest.name(one), one, one is best, max_loss) for one in entrants),
        packages=_versions(),
    )


def _row(name: str, entrant: Entrant, is_best: bool, max_loss: float) -> MeasuredRow:
    measured = entrant.state == "measured"
    reason = entrant.reason if not measured else "" if is_best else refused(entrant, max_loss)
    state = "left out" if entrant.state == "waiting" else entrant.state
    speed = None
    if measured:
        sample = entrant.sample
        speed = MeasuredSpeed(
            rounds=len(entrant.samples),
            prompt_tokens=sample.prompt_tokens,
            first_token_us=round(sample.first_token * 1e6),
            prefill_per_1000_s=round(sample.prefill * 1000),
            decode_per_1000_s=round(sample.decode * 1000),
            streams=sample.streams,
            streams_per_1000_s=round(sample.streams_together * 1000),
            memory_bytes=entrant.memory,
        )
    return MeasuredRow(
        name=name,
        engine=entrant.candidate.engine,
        state=state,
        reason="".join(char if char.isprintable() else " " for char in reason)[:400],
        disk_bytes=entrant.disk,
        speed=speed,
        quality=None if entrant.judgement is None else _quality(entrant.judgement),
        chosen=is_best,
    )


def _quality(judgement: Judgement) -> MeasuredQuality:
    return MeasuredQuality(
        text_sha256=judgement.text_sha256,
        tokens=judgement.tokens,
        reference=judgement.reference,
        perplexity_millionths=_millionths(judgement.perplexity),
        change_ppm=_millionths(judgement.change),
        change_error_ppm=_millionths(judgement.change_error),
        agreement_ppm=round(judgement.agreement * 1e6),
    )


def _millionths(value: float) -> int:
    return 2**53 - 1 if not value * 1e6 < 2**53 else round(value * 1e6)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _silent(_what: str, _candidate: str, _seconds: float) -> None:
    """Nobody looks on."""
