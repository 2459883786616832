"""LLaMA-7B and ChatGLM-6B shapes in Q4_0, random weights: first token, tokens per second, how near to memory's speed.

Every token of an answer needs every weight once, so bandwidth ÷ bytes of weights bounds what one stream can have. Ours is
the engine as `cloister serve` opens it; beside it, in turn, llama.cpp's server through the same wheel with its own defaults
and as many threads as there are cores. Both are called directly. ChatGLM's is that of ChatGLM2-6B and ChatGLM3-6B, with its
architecture and its chat template from the GGUF. The text that repeats is a passage that the model says again and again;
guessing it from what was said before (n-gram) or by a draft model of four small layers is compared with not guessing,
through our engine; the draft model, too, was drawn so that it knows the passage, so that nearly every guess holds.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import gguf
from rich.progress import Progress

from benchmarks.machine import bandwidth
from benchmarks.measurement import estimate, interleaved, ratio
from benchmarks.random_models import CYCLE, SHAPES, q4_0
from benchmarks.report import Aim, Result, Table, shown
from benchmarks.samples import Sample, Task
from benchmarks.sections import Options, about
from benchmarks.sides import Child, SideFailedError

NAMES = ("llama-7b", "chatglm-6b")
PROMPT, ANSWER = 64, 24
PLAINLY = "no guesses"
DRAFTS = {"llama-1b": "llama-draft", "llama-7b": "llama-draft"}
"""Shapes that have a smaller one of the same vocabulary beside them."""


def run(options: Options) -> Result:
    speed = bandwidth()
    rows: list[tuple[str, ...]] = []
    repeated: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for name in ("llama-1b",) if options.quick else NAMES:
        path = q4_0(options.models, name)
        size = bytes_per_token(path)
        try:
            ours, theirs = beside(path, options.rounds(3))
        except SideFailedError as error:
            rows.append((name, *("–",) * 6, str(error)))
            continue
        rates = [one.decode for one in ours]
        bound = estimate([rate * size / speed for rate in rates])
        direct = ratio(rates, [one.decode for one in theirs])
        first = ratio([one.first(50) for one in ours], [one.first(50) for one in theirs])
        rows.append(
            (
                name, shown(size / 1e9, "GB"), shown(estimate([one.first(50) for one in ours]), "s"), shown(first),
                shown(estimate(rates)), shown(direct), shown(bound), shown(max(one.memory for one in ours) / 1e9, "GB"),
            )
        )  # fmt: skip
        aims += [
            Aim(f"{name}, of bandwidth ÷ weight bytes", 0.5, "at least", bound.median, ""),
            Aim(f"{name}, over llama.cpp alone", 1.0, "at least", direct.median),
        ]
        small = DRAFTS.get(name)
        draft = q4_0(options.models, small) if small else None
        try:
            found = guessing(path, repeating(path), options.rounds(2), draft)
        except SideFailedError as error:
            repeated.append((name, "–", "–", "–", str(error)))
            aims.append(Aim(f"{name}, repetitive text with guesses", 1.5, "at least", None))
            continue
        without = found.pop(PLAINLY)
        for how, rates in found.items():
            gain = ratio(rates, without)
            repeated.append((name, how, shown(estimate(without)), shown(estimate(rates)), shown(gain, "×")))
            aims.append(Aim(f"{name}, repetitive text with {how}", 1.5, "at least", gain.median))
    head = (
        "shape", "weights read a token", f"first token of {PROMPT}", "× llama.cpp alone", "decode, tok/s",
        "× llama.cpp alone", "of bandwidth ÷ weights", "memory",
    )  # fmt: skip
    note = f"Memory is read at {speed / 1e9:.1f} GB/s here. Median (95 % interval)."
    return Result(
        title="LLaMA-7B and ChatGLM-6B",
        text=about(__doc__),
        tables=(
            Table("One stream", head, tuple(rows), note),
            Table(
                "Text that repeats",
                ("shape", "guesses", "without, tok/s", "with, tok/s", "gain"),
                tuple(repeated),
            ),
        ),
        aims=tuple(aims),
        figures={"read_bytes_per_s": speed, "shapes": {name: vars_of(name) for name in NAMES}},
    )


def vars_of(name: str) -> dict[str, object]:
    shape = SHAPES[name]
    return {field: getattr(shape, field) for field in shape.__slots__}


def bytes_per_token(path: Path) -> int:
    """Of all weights but the embeddings, of which one row is read."""
    return sum(int(one.n_bytes) for one in gguf.GGUFReader(path).tensors if one.name != "token_embd.weight")


def repeating(path: Path) -> str:
    """A text that ends where the model's passage begins again."""
    field = gguf.GGUFReader(path).get_field("tokenizer.ggml.tokens")
    if field is None:
        raise SideFailedError("the model has no tokens")
    words = [str(field.contents(number)) for number in CYCLE]
    return "".join(words * 3).replace("Ġ", " ").replace("Ċ", "\n")


def beside(path: Path, rounds: int) -> tuple[list[Sample], list[Sample]]:
    """Ours and llama.cpp alone; both hold the file's pages, which are the same memory."""
    seeds = count()
    settings: dict[str, Any] = {"context_length": 512, "slots": 1}
    with (
        Child("llamacpp", path, **settings) as ours,
        Child("xllamacpp", path, **settings) as theirs,
        Progress(transient=True) as progress,
    ):
        task = progress.add_task(path.stem, total=2 * (rounds + 1))
        found = interleaved(
            {
                "ours": lambda: ours.ask(Task(PROMPT, ANSWER, 1, next(seeds))),
                "theirs": lambda: theirs.ask(Task(PROMPT, ANSWER, 1, next(seeds))),
            },
            rounds,
            done=lambda: progress.advance(task),
        )
    return found["ours"], found["theirs"]


def guessing(path: Path, text: str, rounds: int, draft: Path | None) -> dict[str, list[float]]:
    """Tokens per second without guesses, with n-gram lookup and, where there is one, with a draft model."""
    settings: dict[str, Any] = {"context_length": 512, "slots": 1}
    asked = Task(72, 72, 1, 0, text)
    with ExitStack() as opened:
        sides = {
            "n-gram lookup": opened.enter_context(Child("llamacpp", path, speculation="ngram", **settings)),
            PLAINLY: opened.enter_context(Child("llamacpp", path, **settings)),
        }
        if draft is not None:
            drafted = Child("llamacpp", path, draft=draft, speculation="draft", **settings)
            sides["a draft model"] = opened.enter_context(drafted)
        progress = opened.enter_context(Progress(transient=True))
        task = progress.add_task(f"{path.stem}, repeating", total=len(sides) * (rounds + 1))
        asks = {name: partial(decoded, side, asked) for name, side in sides.items()}
        return interleaved(asks, rounds, done=lambda: progress.advance(task))


def decoded(side: Child, asked: Task) -> float:
    return side.ask(asked).decode
