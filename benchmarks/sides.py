"""The sides of a comparison: processes that are given the same tasks and timed the same way.

:class:`Child` is an engine in a process of its own; :class:`Server` is one behind HTTP, in the clear or sealed, asked by
this process; :class:`Service` is `cloister serve` itself with a sealed model. All end when their block does.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol, Self

import httpx2

import cloister
from benchmarks.samples import Sample, Stream, Task, sample_of

ROOT: Final = Path(__file__).resolve().parent.parent
CLOISTER: Final = str(Path(sys.executable).parent / "cloister")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class SideFailedError(Exception):
    """A side ended by itself; the text is the last that it said."""


class Side(Protocol):
    """Who answers tasks."""

    def ask(self, task: Task) -> Sample: ...


class _Process:
    """A command as a process that says a line when it is ready; its errors are kept for whom it fails."""

    def __init__(self, command: Sequence[str], *, ends_with_input: bool = True) -> None:
        self._ends_with_input = ends_with_input
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the process
        environment = os.environ | {"PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        try:
            self.told = self.read()
        except BaseException:
            self.close()
            raise

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(30)
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()
            raise SideFailedError(said[-1] if said else f"exit code {self.process.returncode}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        if not self._ends_with_input:
            self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._errors.close()


def _module(name: str, spec: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-m", name, json.dumps(spec)]


class Child:
    """An engine in a process of its own, called directly: no HTTP, no channel."""

    def __init__(self, engine: str, model: Path, *, draft: Path | None = None, **settings: Any) -> None:
        spec = {"engine": engine, "model": str(model), "draft": draft and str(draft), "settings": settings}
        self._process = _Process(_module("benchmarks.engine_process", spec))
        self.loaded = float(self._process.told["ready"])
        """Seconds until it could compute."""

    def ask(self, task: Task) -> Sample:
        pipe = self._process.process.stdin
        assert pipe is not None
        pipe.write(json.dumps(asdict(task)) + "\n")
        pipe.flush()
        return sample_of(self._process.read())

    def close(self) -> None:
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Asked:
    """A service that is asked over HTTP, and the process that answers."""

    _stack: ExitStack
    _asker: Asker
    pid: int
    asking: tuple[str, Path | None, str, str]
    """URL, policy (None in the clear), API key, the model's name."""

    def ask(self, task: Task) -> Sample:
        before = cpu_of(self.pid)
        streams = self._asker.ask(task)
        return Sample(streams, cpu_of(self.pid) - before, high_water_of(self.pid))

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Server(_Asked):
    """An engine behind the project's server in a process of its own, asked over HTTP, sealed or in the clear."""

    def __init__(
        self,
        engine: str,
        model: Path,
        *,
        sealed: bool,
        draft: Path | None = None,
        **settings: Any,
    ) -> None:
        self._stack = ExitStack()
        try:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            key = secrets.token_urlsafe(24)
            spec = {
                "engine": engine, "model": str(model), "draft": draft and str(draft), "settings": settings,
                "sealed": sealed, "folder": str(folder), "api_key": key,
            }  # fmt: skip
            process = _Process(_module("benchmarks.server_process", spec))
            self._stack.callback(process.close)
            self.pid = process.process.pid
            policy = folder / "policy.toml" if sealed else None
            self.asking = (process.told["listening"], policy, key, "bench")
            self._asker = self._stack.enter_context(Asker(*self.asking))
        except BaseException:
            self._stack.close()
            raise

    @classmethod
    def another(cls, server: Self) -> Self:
        """A second client of the same server, for a thread of its own."""
        found = cls.__new__(cls)
        found._stack = ExitStack()
        found.pid, found.asking = server.pid, server.asking
        found._asker = found._stack.enter_context(Asker(*server.asking))
        return found


class Service(_Asked):
    """`cloister serve` of a sealed model, as an operator starts it, asked through the sealed channel."""

    def __init__(
        self, engine: str, model: Path, folder: Path, *, precision: str | None = None, context: int = 1024
    ) -> None:
        """``folder`` keeps the sealed model, its keys and the simulated platform from one time to the next."""
        sealed, owner, tee = folder / "sealed", folder / "owner", folder / "tee"
        if not (sealed / "index.sig").exists():
            _seal(model, folder)
        signer = json.loads(_cloister("keys", "show", owner / "index.key", "--json"))["public_key"]
        words: list[object] = [
            sealed, "--model-name", "bench", "--engine", engine, "--context", context, "--slots", 8,
            "--index-signer", signer, "--api-keys", owner / "api-keys",
            *(("--precision", precision) if precision else ()),
        ]  # fmt: skip
        self._stack = ExitStack()
        try:
            policy = Path(self._stack.enter_context(tempfile.TemporaryDirectory())) / "policy.toml"
            _cloister("measure", "serve", *words, "--simulated-tee", tee, "--out", policy)
            process = _Process(
                [CLOISTER, "serve", *map(str, words), "--simulated-tee", str(tee), "--port", "0", "--json",
                 "--key-file", str(owner / "model.key")],
                ends_with_input=False,
            )  # fmt: skip
            self._stack.callback(process.close)
            self.pid = process.process.pid
            key = (owner / "api-keys").read_text("ascii").strip()
            self.asking = (process.told["listening"], policy, key, "bench")
            self._asker = self._stack.enter_context(Asker(*self.asking))
        except BaseException:
            self._stack.close()
            raise


def _seal(model: Path, folder: Path) -> None:
    """Platform, keys and sealed model, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    owner, plain = folder / "owner", folder / "plain"
    owner.mkdir(parents=True, mode=0o700)
    plain.mkdir()
    for file in model.iterdir() if model.is_dir() else (model,):
        os.link(file.resolve(), plain / file.name)
    _cloister("simulate", "init", folder / "tee")
    _cloister("keys", "new", owner / "model.key")
    _cloister("keys", "new", "--signing", owner / "index.key")
    (owner / "api-keys").touch(mode=0o600)
    (owner / "api-keys").write_text(secrets.token_urlsafe(24) + "\n", "ascii")
    _cloister(
        "seal", plain, "--key", "kbs:///bench/key/model", "--key-file", owner / "model.key",
        "--sign-key", owner / "index.key", "--out", folder / "sealed",
    )  # fmt: skip
    shutil.rmtree(plain)


def _cloister(*words: object) -> str:
    done = subprocess.run([CLOISTER, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise SideFailedError(f"cloister {words[0]}: {said[-1] if said else done.returncode}")
    return done.stdout


class Asker:
    """A client of an OpenAI-shaped service; its connections and its session stay open between tasks."""

    def __init__(self, url: str, policy: Path | None, key: str, model: str) -> None:
        self._url = url
        self._policy = policy
        self._model = model
        self._headers = {"authorization": f"Bearer {key}"}
        self._loop = asyncio.new_event_loop()
        self._client: httpx2.AsyncClient | None = None

    def __enter__(self) -> Self:
        self._client = self._loop.run_until_complete(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._loop.run_until_complete(self._client.aclose())
        self._loop.close()

    async def _open(self) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=256, max_keepalive_connections=256)
        if self._policy is None:
            return httpx2.AsyncClient(timeout=600, limits=limits, base_url=self._url)
        outer = httpx2.AsyncHTTPTransport(limits=limits)
        client = cloister.connect_async(self._url, policy=self._policy, transport=outer)
        await client.verify()
        return client

    def ask(self, task: Task) -> tuple[Stream, ...]:
        return self._loop.run_until_complete(self._ask_all(task))

    async def _ask_all(self, task: Task) -> tuple[Stream, ...]:
        return tuple(await asyncio.gather(*(self._ask(task, prompt) for prompt in task.prompts())))

    async def _ask(self, task: Task, prompt: str) -> Stream:
        assert self._client is not None
        body = task.body(prompt) | {
            "model": self._model, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        began = time.monotonic()
        arrivals: list[float] = []
        usage: dict[str, int] = {}
        async with self._client.stream(
            "POST", f"{self._url}/v1/completions", json=body, headers=self._headers
        ) as answer:
            if answer.status_code != 200:
                raise SideFailedError(f"status {answer.status_code}: {(await answer.aread())[:300]!r}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise SideFailedError(str(chunk["error"]))
                if any(choice.get("text") for choice in chunk["choices"]):
                    arrivals.append(time.monotonic())
                usage = chunk.get("usage") or usage
        times = arrivals or [time.monotonic()]
        return Stream(
            began, times[0], times[-1], usage["prompt_tokens"], usage["completion_tokens"], tuple(times)
        )


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has taken, its ended children not counted."""
    words = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS


def high_water_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
