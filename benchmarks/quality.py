"""How far a configuration's answers are from those of the same weights in fp32: stated beside every speed.

Each configuration looks at the same pieces of the text that comes with the package, in a process of its own, and is compared
with torch in fp32: the cosine of the logits (each less its mean) where the engine tells all of them, and at how many places
the likeliest next token is the same. Perplexity says nothing of random weights and is not shown. What was measured is kept
beside the models.

    python -m benchmarks.quality MODELS NAME      (the process; it says what it found as JSON)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.configurations import ALL, SHAPE, Configuration, weights
from benchmarks.random_models import SHAPES, hugging_face
from benchmarks.sides import ROOT, SideFailedError
from cloister.inference.engines import AUTO, EngineSettings, open_engine
from cloister.inference.model_files import CHOICE_NAME, ModelFiles
from cloister.inference.next_tokens import (
    EngineNext,
    LlamaCppNext,
    TransformersNext,
    text_tokens,
    token_bytes,
    tokenizer_of,
)
from cloister.inference.optimized import read_choice
from cloister.inference.quality import NextTokens, Observations, compare, default_text, observe, windows_of

REFERENCE: Final = "torch fp32"
WINDOWS: Final = 4
"""Of 64 tokens; the second half of each is looked at."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Beside fp32."""

    cosine: float | None
    agreement: float
    places: int

    @property
    def words(self) -> str:
        same = f"{100 * self.agreement:.0f} % same tokens"
        return same if self.cosine is None else f"cosine {self.cosine:.4f}, {same}"


def qualities(models: Path, configurations: Iterable[Configuration]) -> dict[str, Quality]:
    """By the configuration's name; what could not be measured is left out."""
    found: dict[str, Quality] = {}
    reference = next(one for one in ALL if one.name == REFERENCE)
    for one in (reference, *(one for one in configurations if one.engine != "transformers")):
        kept = models / "quality" / f"{one.file_name}.json"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.quality", str(models), one.name],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                continue
            kept.write_text(done.stdout, "ascii")
        found[one.name] = Quality(**json.loads(kept.read_text("ascii")))
    return found


def look(models: Path, one: Configuration) -> Quality:
    """In this process. The reference leaves what it saw beside the models."""
    with ModelFiles.of_path(hugging_face(models, SHAPE)) as given:
        tokenizer = tokenizer_of(given)
    tokens, first = text_tokens(tokenizer, default_text().decode())
    windows = windows_of(tokens, count=WINDOWS, first=first)
    with opened(weights(models, one), one, tokenizer) as model:
        seen = observe(model, windows)
    kept = models / "quality" / "reference.npz"
    if one.name == REFERENCE:
        kept.unlink(missing_ok=True)
        seen.save(kept)
    found = compare(Observations.load(kept, windows), seen)
    return Quality(found.cosine, found.agreement, found.places)


@contextmanager
def opened(path: Path, one: Configuration, tokenizer: object) -> Iterator[NextTokens]:
    settings = EngineSettings(**{"context_length": 512, "slots": 1, **one.settings})  # type: ignore[arg-type]
    name = one.engine
    with ModelFiles.of_path(path) as model:
        if name == AUTO:
            choice = read_choice(model.read(CHOICE_NAME))
            name, settings = choice.engine, replace(settings, **msgspec.structs.asdict(choice.settings))
        if name == "llamacpp":
            threads = len(os.sched_getaffinity(0))
            size = SHAPES[SHAPE].vocabulary
            with LlamaCppNext.open(
                model, vocabulary=size, threads=threads, kv_cache=settings.kv_cache, top=size
            ) as found:
                yield found
            return
        if name == "torch":
            with TransformersNext.as_it_decodes(model, precision=settings.precision) as loaded:
                yield loaded
            return
        from cloister.inference.engines.answer_text import Texts  # noqa: PLC0415 -- tokenizers

        engine = open_engine(name, model, settings)
    try:
        yield EngineNext(engine, token_bytes(tokenizer, Texts(tokenizer).piece), tenant=bytes(32))
    finally:
        engine.close()


def main() -> None:
    models, name = Path(sys.argv[1]), sys.argv[2]
    try:
        found = look(models, next(one for one in ALL if one.name == name))
    except SideFailedError as error:
        sys.exit(str(error))
    print(json.dumps({"cosine": found.cosine, "agreement": found.agreement, "places": found.places}))


if __name__ == "__main__":
    main()
