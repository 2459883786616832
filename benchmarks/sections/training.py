"""Training: a LoRA step at 1.1 B before and after the one-call set-up, `prepare_training(model)`.

The model in fp32 with adapters of rank 8 on queries and values, as `peft` makes them; one step is forward, backward and
optimiser over 2 × 256 tokens. Each way has a process of its own, and their steps are interleaved. The loss of both is shown:
what is quicker must learn the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

from rich.progress import Progress

from benchmarks.measurement import estimate, interleaved, ratio
from benchmarks.random_models import SHAPES, hugging_face
from benchmarks.report import Aim, Result, Table, shown
from benchmarks.sections import Options, about

BEFORE, AFTER = "as it comes", "prepared"
BATCH, LENGTH, RANK = 2, 256, 8


def run(options: Options) -> Result:
    model = hugging_face(options.models, "llama-1b")
    layers = 4 if options.quick else SHAPES["llama-1b"].layers
    with ExitStack() as stack, Progress(transient=True) as progress:
        ways = {way: stack.enter_context(_process(model, way, layers)) for way in (BEFORE, AFTER)}
        rounds = options.rounds(4, 2)
        task = progress.add_task("steps", total=2 * (rounds + 1))

        def step(way: str) -> Callable[[], dict[str, float]]:
            return lambda: _step(ways[way])

        found = interleaved({way: step(way) for way in ways}, rounds, done=lambda: progress.advance(task))
    seconds = {way: [one["seconds"] for one in steps] for way, steps in found.items()}
    gain = ratio(seconds[BEFORE], seconds[AFTER])
    rows = tuple(
        (
            way,
            shown(estimate(seconds[way]), "s"),
            shown(BATCH * LENGTH / estimate(seconds[way]).median, "tok/s"),
            f"{found[way][-1]['loss']:.4f}",
            shown(found[way][-1]["memory"] / 1e9, "GB"),
        )
        for way in found
    )
    head = ("", "a step", "trained", "loss of the last step", "memory")
    note = f"{layers} layers, {BATCH} × {LENGTH} tokens, rank {RANK}; prepared: {shown(gain, '×')} as many steps."
    return Result(
        title="Training: a LoRA step",
        text=about(__doc__),
        tables=(Table("One step", head, rows, note),),
        aims=(Aim("steps a second after prepare_training, over before", 1.0, "at least", gain.median),),
        figures={"seconds": seconds, "layers": layers},
    )


def _process(model: Path, way: str, layers: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", __name__, str(model), way, str(layers)]
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def _step(process: subprocess.Popen[str]) -> dict[str, float]:
    asked, told = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
    asked.write("step\n")
    asked.flush()
    line = told.readline()
    if not line:
        raise RuntimeError(f"training ended with exit code {process.wait(30)}")
    return cast(dict[str, float], json.loads(line))


def main() -> None:
    """One way, in this process: a step for each line."""
    import peft  # noqa: PLC0415 -- heavy, and for the process alone
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    from benchmarks.engine_process import high_water  # noqa: PLC0415

    path, way, layers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.manual_seed(7)
    config = transformers.AutoConfig.from_pretrained(path, num_hidden_layers=layers)
    base = transformers.AutoModelForCausalLM.from_pretrained(path, config=config, dtype=torch.float32)
    adapters = peft.LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, adapters)
    if way == AFTER:
        from cloister.inference.lowbit.training import prepare_training  # noqa: PLC0415

        model = prepare_training(model)
    model.train()
    learned = [one for one in model.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=1e-4)
    tokens = torch.randint(0, config.vocab_size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(7))
    for _ in sys.stdin:
        began = time.monotonic()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds = time.monotonic() - began
        print(json.dumps({"seconds": seconds, "loss": float(loss), "memory": high_water()}), flush=True)


if __name__ == "__main__":
    main()
