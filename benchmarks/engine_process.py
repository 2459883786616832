"""A process that opens one engine, or plain transformers, and answers tasks: JSON lines in, JSON lines out.

Its argument is a JSON object: ``engine`` (a name that ``open_engine`` knows; "transformers" for the library alone, as its
own documentation shows it; "xllamacpp" for llama.cpp's server with its own defaults), ``model``, and the engine's settings.
It says when it is ready, then answers each line, a :class:`~benchmarks.samples.Task`, with a sample; it ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.samples import Sample, Stream, Task
from cloister.inference.engines import AUTO, Engine, EngineSettings, open_engine
from cloister.inference.model_files import CHOICE_NAME, ModelFiles
from cloister.inference.optimized import read_choice

Answer = Callable[[Task, str], Stream]
Together = Callable[[Task], tuple[Stream, ...]]


def open_by(spec: dict[str, Any]) -> Engine:
    """The engine that ``spec`` names, "auto" being what its model's ``optimized.json`` says."""
    settings = EngineSettings(**{"context_length": 1024, "slots": 8, **spec.get("settings", {})})
    name = str(spec["engine"])
    with ExitStack() as files:
        model = files.enter_context(ModelFiles.of_path(Path(spec["model"])))
        if spec.get("draft"):
            settings = replace(settings, draft=files.enter_context(ModelFiles.of_path(Path(spec["draft"]))))
        if name == AUTO:
            choice = read_choice(model.read(CHOICE_NAME))
            # It was chosen on this machine, so that its threads hold, too.
            name, settings = choice.engine, replace(settings, **msgspec.structs.asdict(choice.settings))
        return open_engine(name, model, settings)


def open_ours(spec: dict[str, Any]) -> Together:
    """Any engine behind the project's own protocol."""
    engine = open_by(spec)

    def answer(task: Task, prompt: str) -> Stream:
        watch = Watch()
        engine.generate("text", task.body(prompt), watch.sink, tenant=b"\0" * 32)
        return watch.stream()

    return lambda task: in_threads(answer, task)


def open_xllamacpp(spec: dict[str, Any]) -> Together:
    """llama.cpp's server through PyPI's wheel, called directly, with its own defaults for everything but the sizes."""
    import xllamacpp  # noqa: PLC0415 -- heavy, as below

    settings = {"context_length": 1024, "slots": 8, "threads": None, **spec.get("settings", {})}
    params = xllamacpp.CommonParams()
    params.verbosity = -1
    params.model.path = str(spec["model"])
    params.n_ctx = settings["context_length"] * settings["slots"]
    params.n_parallel = settings["slots"]
    params.cache_ram_mib = 0
    params.fit_params = False
    params.ui = False
    params.offline = True
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = settings["threads"] or len(os.sched_getaffinity(0))
    server = xllamacpp.Server(params)

    def answer(task: Task, prompt: str) -> Stream:
        watch = Watch()

        def on_chunk(data: bytes | str) -> bool:
            return watch.sink(json.loads(data))

        body = task.body(prompt) | {
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_prompt": False,
        }
        server.handle_completions(json.dumps(body), on_chunk)
        return watch.stream()

    return lambda task: in_threads(answer, task)


def open_transformers(spec: dict[str, Any]) -> Together:
    """``AutoModelForCausalLM`` and ``generate`` as the library comes; several streams as one padded batch."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    transformers.logging.set_verbosity_error()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[spec["settings"]["precision"]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec["model"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(spec["model"], dtype=dtype).eval()

    def answer(task: Task) -> tuple[Stream, ...]:
        times: list[float] = []

        def step(ids: Any, scores: Any, **_: Any) -> Any:
            times.append(time.monotonic())
            return torch.zeros(ids.shape[0], dtype=torch.bool)

        began = time.monotonic()
        batch = tokenizer(task.prompts(), return_tensors="pt", padding=True)
        model.generate(
            **batch, max_new_tokens=task.tokens, min_new_tokens=task.tokens, do_sample=False,
            stopping_criteria=transformers.StoppingCriteriaList([step]), pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        return tuple(Stream(began, times[0], times[-1], length, len(times)) for length in lengths)

    return answer


class Watch:
    """Takes an engine's chunks and remembers when they came."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._arrivals: list[float] = []
        self._usage: Mapping[str, Any] = {}

    def sink(self, chunk: Mapping[str, Any]) -> bool:
        if "error" in chunk:
            raise RuntimeError(str(chunk["error"]))
        if any(choice.get("text") for choice in chunk.get("choices", ())):
            self._arrivals.append(time.monotonic())
        self._usage = chunk.get("usage") or self._usage
        return False

    def stream(self) -> Stream:
        end = time.monotonic()
        times = self._arrivals or [end]  # a single token may have no text of its own
        return Stream(
            self._began, times[0], times[-1],
            self._usage["prompt_tokens"], self._usage["completion_tokens"], tuple(times),
        )  # fmt: skip


def in_threads(answer: Answer, task: Task) -> tuple[Stream, ...]:
    streams: dict[int, Stream] = {}

    def one(number: int, prompt: str) -> None:
        streams[number] = answer(task, prompt)

    threads = [
        threading.Thread(target=one, args=(number, prompt)) for number, prompt in enumerate(task.prompts())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(streams) != len(threads):
        raise RuntimeError("a stream failed")
    return tuple(streams[number] for number in sorted(streams))


def high_water() -> int:
    """Bytes of memory that this process held at most."""
    status = Path("/proc/self/status").read_text("ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    spec = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes elsewhere
    opens = {"transformers": open_transformers, "xllamacpp": open_xllamacpp}
    began = time.monotonic()
    together = opens.get(spec["engine"], open_ours)(spec)
    replies.write(json.dumps({"ready": time.monotonic() - began, "memory": high_water()}) + "\n")
    for line in sys.stdin:
        task, before = Task(**json.loads(line)), time.process_time()
        streams = together(task)
        sample = Sample(streams, time.process_time() - before, high_water())
        replies.write(json.dumps(sample.as_json()) + "\n")
    os._exit(0)  # the engines' own ends are no matter of speed


if __name__ == "__main__":
    main()
