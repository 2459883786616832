"""LLaMA-7B and ChatGLM-6B shapes in Q4_0, random weights: first token, tokens per second, how near to memory's speed.

Every token of an answer needs every weight once, so bandwidth ÷ bytes of weights bounds what one stream can have. Ours is
the engine as `cloister serve` opens it; beside it, in turn, llama.cpp's server through the same wheel with its own defaults
and as many threads as there are cores. Both are called directly. ChatGLM's is that of ChatGLM2-6B and ChatGLM3-6B, with its
architecture and its chat template from the GGUF. The text that repeats is a passage that the model says again and again;
guessing it from what was said before (n-gram) is compared with not guessing, through our engine.
"""

from __future__ import annotations

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
        try:
            with_guesses, without = guessing(path, repeating(path), options.rounds(2))
        except SideFailedError as error:
            repeated.append((name, "–", "–", str(error)))
            aims.append(Aim(f"{name}, repetitive text with n-gram lookup", 1.5, "at least", None))
            continue
        gain = ratio(with_guesses, without)
        repeated.append((name, shown(estimate(without)), shown(estimate(with_guesses)), shown(gain, "×")))
        aims.append(Aim(f"{name}, repetitive text with n-gram lookup", 1.5, "at least", gain.median))
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
                "Text that repeats", ("shape", "no guesses, tok/s", "n-gram, tok/s", "gain"), tuple(repeated)
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


def guessing(path: Path, text: str, rounds: int) -> tuple[list[float], list[float]]:
    """Tokens per second with n-gram lookup, and without."""
    settings: dict[str, Any] = {"context_length": 512, "slots": 1}
    with (
        Child("llamacpp", path, speculation="ngram", **settings) as guesses,
        Child("llamacpp", path, **settings) as plain,
        Progress(transient=True) as progress,
    ):
        task = progress.add_task(f"{path.stem}, repeating", total=2 * (rounds + 1))
        asked = Task(72, 72, 1, 0, text)
        found = interleaved(
            {"guesses": lambda: guesses.ask(asked).decode, "plain": lambda: plain.ask(asked).decode},
            rounds,
            done=lambda: progress.advance(task),
        )
    return found["guesses"], found["plain"]
