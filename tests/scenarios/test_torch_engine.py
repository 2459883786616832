"""The OpenAI SDK on the torch engine over a real socket, and what a hostile folder or client gets from it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from app_server import served
from cloister.errors import CloisterError, UsageError
from cloister.inference.api_keys import ApiKeys
from cloister.inference.app import create_app
from cloister.inference.engines.torch import TorchEngine
from cloister.inference.model_files import ModelFiles
from torch_engines import STORY_TEMPLATE, ask, opened, stories, usage_of

MODEL = "stories"
KEY = "sk-" + "t" * 40
ONCE: list[Any] = [{"role": "user", "content": "Once upon a time"}]
GREEDY = ", there was a little girl named Lily. She"
ENDLESS = {"1": -100, "2": -100}
CANARY = "canary-4711-quokka"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stories(tmp_path_factory.mktemp("torch") / "stories", STORY_TEMPLATE)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TorchEngine]:
    with opened(folder, context_length=512) as made:
        yield made


@pytest.fixture(scope="module")
def client(engine: TorchEngine) -> Iterator[openai.OpenAI]:
    app = create_app(engine, model_name=MODEL, api_keys=ApiKeys([KEY]))
    with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_a_chat_answers_with_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ONCE, max_tokens=12, temperature=0)
    assert answer.choices[0].message.content in (GREEDY, GREEDY.lstrip())
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_a_streamed_chat_says_the_same_chunk_by_chunk(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=ONCE, max_tokens=12, temperature=0)
    with client.chat.completions.create(
        model=MODEL,
        messages=ONCE,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert told == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert len(chunks) > 10


def test_completions_of_several_prompts_have_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["Once upon a time", "Tom"], max_tokens=5, temperature=0, logprobs=2
    )
    assert len(answer.choices) == 2
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert len(choice.logprobs.tokens or []) == 5
        assert all(len(top) == 2 for top in choice.logprobs.top_logprobs or [])


def test_a_response_is_streamed_in_openais_order(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model=MODEL, input="Once upon a time", max_output_tokens=12, temperature=0, stream=True
        )
    )
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text in (GREEDY, GREEDY.lstrip())


def test_an_answer_of_a_schema_is_parsed_by_the_sdk(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=ONCE,
        max_tokens=100,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": schema | {"additionalProperties": False}},
        },
    )
    assert json.loads(answer.choices[0].message.content or "")["ok"] in (True, False)


def test_embeddings_come_as_the_sdk_asks(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input=["Once upon a time", "Tom"])
    assert len(answer.data) == 2
    assert sum(number**2 for number in answer.data[0].embedding) == pytest.approx(1, abs=1e-4)


def test_a_client_that_leaves_frees_its_row(client: openai.OpenAI, engine: TorchEngine) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=ONCE, logit_bias=ENDLESS, stream=True
    ) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 60
    while engine.stats().running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine.stats().running == 0


def test_many_at_once_are_all_answered_and_refusals_harm_nobody(client: openai.OpenAI) -> None:
    def one(number: int) -> str:
        if number % 4 == 3:
            with pytest.raises(openai.BadRequestError):
                client.completions.create(model=MODEL, prompt="a" * 2000)
            return ""
        answer = client.chat.completions.create(model=MODEL, messages=ONCE, max_tokens=12, temperature=0)
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(12) as pool:
        found = set(pool.map(one, range(24)))
    assert len(found) == 2


def test_a_model_in_memory_is_loaded_through_descriptors_that_are_closed_then(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.inference.model_files._SHARED_MEMORY", tmp_path)
    descriptors = {}
    for path in folder.iterdir():
        descriptors[path.name] = os.memfd_create(path.name)
        os.write(descriptors[path.name], path.read_bytes())
    with ModelFiles("huggingface", descriptors) as files:
        from cloister.inference.engines import EngineSettings

        engine = TorchEngine.open(files, EngineSettings(context_length=256, slots=1, threads=1))
    try:
        assert usage_of(ask(engine, prompt="Once", max_tokens=3))["completion_tokens"] == 3
        assert not any(tmp_path.iterdir())
    finally:
        engine.close()


_OPEN = """
import socket, sys
from pathlib import Path
def refused(*_):
    print("NETWORK", file=sys.stderr)
    raise OSError("no network")
socket.socket.connect = refused
socket.getaddrinfo = refused
from cloister.inference.engines import EngineSettings, open_engine
from cloister.inference.model_files import ModelFiles
with ModelFiles.of_path(Path(sys.argv[1])) as files:
    engine = open_engine("torch", files, EngineSettings(context_length=256, slots=2, threads=1))
engine.generate("text", {"prompt": sys.argv[2], "max_tokens": 3}, lambda _: False)
try:
    engine.generate("text", {"prompt": sys.argv[2], "grammar": sys.argv[2]}, lambda _: False)
except Exception:
    pass
print("answered")
"""


def test_opening_asks_no_network_and_says_nothing_of_a_prompt(folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _OPEN, str(folder), f"Once {CANARY}"],
        capture_output=True,
        check=False,
        timeout=100,
        text=True,
    )
    assert run.stdout == "answered\n", run.stderr
    assert "NETWORK" not in run.stderr
    assert CANARY not in run.stderr


def test_code_in_a_models_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    hostile = stories(tmp_path / "model")
    (hostile / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((hostile / "config.json").read_text())
    auto = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")
    changed = config | {"model_type": "evil", "auto_map": auto}
    (hostile / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UsageError), opened(hostile):
        pass
    assert not (tmp_path / "ran").exists()


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_in_place_of_safetensors_is_not_read(folder: Path, tmp_path: Path) -> None:
    hostile = stories(tmp_path / "model")
    (hostile / "model.safetensors").write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    (hostile / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    with pytest.raises(CloisterError), opened(hostile):
        pass
    assert not (tmp_path / "ran").exists()


def test_one_tenant_learns_nothing_of_anothers_prompt_from_the_time_it_takes(folder: Path) -> None:
    mine, other = b"m" * 32, b"o" * 32
    secret = "Once upon a time there was a little girl named Lily. She loved to play. " * 5
    with opened(folder, context_length=512, prefix_cache=True, slots=2) as engine:

        def computed(tenant: bytes) -> int:
            before = engine.stats().prompt_tokens
            ask(engine, prompt=secret, max_tokens=1, tenant=tenant)
            return engine.stats().prompt_tokens - before

        whole = computed(mine)
        assert computed(other) == whole
        assert computed(other) < whole / 4
        assert computed(b"x" * 32) == whole
