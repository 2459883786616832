"""The OpenVINO engine in a process of its own and behind the API: what it says, holds, lets go and tells nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from app_server import served
from cloister.errors import InferenceError, UsageError
from cloister.inference.api_errors import RequestRefused
from cloister.inference.api_keys import ApiKeys
from cloister.inference.app import create_app
from cloister.inference.conversion.gguf import convert
from cloister.inference.demo_model import demo_model
from cloister.inference.engines import EngineSettings
from cloister.inference.engines.llamacpp import LlamaCppEngine
from cloister.inference.engines.openvino import OpenVinoEngine
from cloister.inference.engines.openvino_export import save_ir
from cloister.inference.model_files import ModelFiles
from llama_models import write_llama
from openvino_engines import ask, opened, text_of
from tinyllamas_gguf import expected_text, write_gguf

MODEL = "stories"
KEY = "sk-" + "s" * 40
ONCE: list[Any] = [{"role": "user", "content": "Once upon a time"}]
GREEDY = ", there was a little girl named Lily. She"
LONG = {"prompt": "Once upon a time", "max_tokens": 480, "temperature": 0}
CANARY = "canary-4711-quokka"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("tinyllamas") / "stories260K.gguf")


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[OpenVinoEngine]:
    with opened(model) as made:
        yield made


@pytest.fixture(scope="module")
def client(engine: OpenVinoEngine) -> Iterator[openai.OpenAI]:
    with (
        served(create_app(engine, model_name=MODEL, api_keys=ApiKeys([KEY]))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as made,
    ):
        yield made


def beside(*works: Any) -> list[Any]:
    """What each returns or raises, computed at the same time."""
    found: list[Any] = [None] * len(works)

    def run(place: int) -> None:
        try:
            found[place] = works[place]()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_it_tells_the_checkpoints_own_story_to_the_end(engine: OpenVinoEngine) -> None:
    told = "Once upon a time" + text_of(ask(engine, **LONG))
    expected = expected_text()
    assert told[: len(expected)] == expected[: len(told)]
    assert len(told) > 500


def test_every_kind_of_file_says_the_same(model: Path, tmp_path: Path) -> None:
    with ModelFiles.of_path(model) as files:
        save_ir(files, tmp_path / "ir")
    for folder in (tmp_path / "ir", write_llama(tmp_path / "hf")):
        with opened(folder) as other:
            chunks = ask(other, prompt="Once upon a time", max_tokens=60, temperature=0)
            assert "Once upon a time" + text_of(chunks) == expected_text()[: 16 + len(text_of(chunks))]
            assert chunks[-1]["usage"]["prompt_tokens"] == 5


@pytest.mark.parametrize(("precision", "least"), [("int8", 0.999), ("int4", 0.97)])
def test_fewer_bits_stay_near_transformers(tmp_path: Path, precision: str, least: float) -> None:
    folder = write_llama(tmp_path / "hf")
    reference = AutoModelForCausalLM.from_pretrained(folder)
    text = expected_text()[:200]
    with opened(folder, precision=precision) as other:
        tokens = other._asks._model.tokens(text)
        probable = [
            ask(other, prompt=tokens[:cut], max_tokens=1, temperature=0, n_probs=1)[0]["choices"][0][
                "logprobs"
            ]
            for cut in range(8, len(tokens), 8)
        ]
    with torch.no_grad():
        logits = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)
    expected = [float(logits[cut - 1].max()) for cut in range(8, len(tokens), 8)]
    found = [entry["content"][0]["logprob"] for entry in probable]
    cosine = torch.nn.functional.cosine_similarity(torch.tensor(expected), torch.tensor(found), dim=0)
    assert cosine > least


@pytest.mark.parametrize("quantisation", ["q8_0", "q4_0"])
def test_the_same_quantised_file_is_understood_as_llama_cpp_understands_it(
    tmp_path: Path, quantisation: Any
) -> None:
    path = tmp_path / "model.gguf"
    with ModelFiles.of_path(write_llama(tmp_path / "hf")) as files:
        convert(files, path, quantisation=quantisation)
    body = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
    with opened(path) as one:
        said = text_of(ask(one, **body))
    with ModelFiles.of_path(path) as files:
        other = LlamaCppEngine.open(files, EngineSettings(context_length=256, slots=1))
    try:
        chunks: list[Any] = []
        other.generate("text", body, lambda chunk: bool(chunk and chunks.append(chunk)))
    finally:
        other.close()
    assert said == text_of(chunks)


def test_the_openai_client_gets_chats_streams_completions_and_responses(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ONCE, max_tokens=12, temperature=0)
    assert answer.choices[0].message.content == GREEDY
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 12)
    with client.chat.completions.create(
        model=MODEL,
        messages=ONCE,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == GREEDY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert len(chunks) > 10
    stopped = client.chat.completions.create(
        model=MODEL, messages=ONCE, max_tokens=60, temperature=0, stop=[" named"]
    )
    assert stopped.choices[0].message.content == ", there was a little girl"
    assert stopped.choices[0].finish_reason == "stop"
    two = client.completions.create(model=MODEL, prompt=["Once upon", "The"], max_tokens=2, temperature=0)
    assert [(choice.index, bool(choice.text)) for choice in two.choices] == [(0, True), (1, True)]
    whole = client.responses.create(
        model=MODEL, input="Once upon a time", max_output_tokens=12, temperature=0
    )
    assert whole.output_text == GREEDY
    assert whole.status == "incomplete"


def test_several_choices_and_log_probabilities_have_openais_shape(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ONCE, max_tokens=5, temperature=0, n=3, logprobs=True, top_logprobs=1
    )
    assert [choice.message.content for choice in answer.choices] == [", there was a little"] * 3
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    assert [entry.token for entry in entries] == [",", " there", " was", " a", " little"]
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 1 for entry in entries)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 15)


def test_an_answer_follows_a_schema(client: openai.OpenAI) -> None:
    shape: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["red", "green"]}}}
    answer = client.chat.completions.create(
        model=MODEL, messages=ONCE, max_tokens=20, temperature=0, response_format=shape
    )
    assert answer.choices[0].message.content in ('"red"', '"green"')
    assert answer.choices[0].finish_reason == "stop"


def test_characters_of_several_tokens_are_told_whole(engine: OpenVinoEngine) -> None:
    schema = {"enum": ["日本🦙é"]}
    body = {"messages": ONCE, "max_tokens": 40, "temperature": 0}
    shape = {"type": "json_schema", "json_schema": {"schema": schema}}
    chunks = ask(engine, "chat", response_format=shape, **body)
    assert text_of(chunks) == '"日本🦙é"'
    pieces = [part["delta"].get("content") or "" for chunk in chunks for part in chunk["choices"]]
    assert not any("�" in piece for piece in pieces)


def test_many_answers_beside_each_other_are_each_what_they_are_alone(engine: OpenVinoEngine) -> None:
    prompts = ("Once upon a time", "Tom", "The sun was hot. " * 20, "Lily")
    bodies = [{"prompt": prompt, "max_tokens": 40, "temperature": 0} for prompt in prompts]
    alone = [text_of(ask(engine, **body)) for body in bodies]
    for _ in range(5):
        found = beside(*(lambda body=body: text_of(ask(engine, **body)) for body in bodies * 2))
        assert found == alone * 2


def test_guessed_tokens_change_no_answer(engine: OpenVinoEngine, model: Path) -> None:
    shape = {"type": "json_schema", "json_schema": {"schema": {"enum": ["red, red, red, blue", "green"]}}}
    repeated = {
        "prompt": "Tom had a red ball. Tom had a red",
        "max_tokens": 100,
        "temperature": 0,
        "n_probs": 1,
    }
    chat = {"messages": ONCE, "max_tokens": 40, "temperature": 0, "response_format": shape}
    with opened(model, speculation="ngram") as guessing:
        for kind, body in (("text", LONG), ("text", repeated), ("chat", chat)):
            expected = ask(engine, kind, **body)
            for found in beside(*[lambda kind=kind, body=body: ask(guessing, kind, **body)] * 3):
                assert text_of(found) == text_of(expected)
                assert found[-1]["usage"] == expected[-1]["usage"]


def test_requests_that_come_and_go_lose_no_slot(engine: OpenVinoEngine) -> None:
    expected = text_of(ask(engine, prompt="Once upon a time", max_tokens=8, temperature=0))

    def work(place: int) -> None:
        for turn in range(15):
            count = [0]

            def leave(chunk: Any, count: list[int] = count, stop: int = 1 + (place + turn) % 4) -> bool:
                count[0] += bool(chunk)
                return count[0] >= stop

            engine.generate("text", LONG | {"prompt": "The cat " * (1 + place * turn)}, leave)
            body = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
            assert text_of(ask(engine, **body)) == expected

    assert beside(*(lambda place=place: work(place) for place in range(4))) == [None] * 4
    assert engine.stats().running == 0


def test_a_request_that_is_left_frees_its_place_at_once(engine: OpenVinoEngine) -> None:
    def attempt() -> float:
        engine.generate("text", LONG, bool)
        started = time.monotonic()
        ask(engine, prompt="a", max_tokens=1)
        return time.monotonic() - started

    assert any(attempt() < 1 for _ in range(3))
    assert engine.stats().running == 0


def longest_pause(engine: OpenVinoEngine) -> tuple[float, float]:
    """Of Python while long prompts are read, and how long that took."""
    longest, stop = [0.0], threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not stop.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest[0], last = max(longest[0], now - last), now

    thread = threading.Thread(target=watch)
    thread.start()
    started = time.perf_counter()
    for _ in range(4):
        ask(engine, prompt="What is asthma? " * 90, max_tokens=1)
    spent = time.perf_counter() - started
    stop.set()
    thread.join()
    return longest[0], spent


def test_python_goes_on_while_a_long_prompt_is_read() -> None:
    with opened(demo_model(), slots=1) as engine:
        # Of the eight forward passes, each of hundreds of tokens, none held the interpreter's lock. One that did would in
        # each attempt; a machine that stands still does it now and then.
        assert any(
            longest < max(0.03, spent / 10) for longest, spent in (longest_pause(engine) for _ in range(5))
        )


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"type": "nonsense"}, id="no type"),
        pytest.param({"$ref": "#/nothing"}, id="a reference to nothing"),
        pytest.param({"type": "array", "items": {"type": "poem", "title": CANARY}}, id="with a canary"),
    ],
)
def test_a_schema_that_cannot_be_ends_nobody_elses_answer(
    engine: OpenVinoEngine, schema: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    shape = {"type": "json_schema", "json_schema": {"schema": schema}}
    begun = threading.Event()
    chunks: list[Any] = []

    def other() -> str:
        engine.generate("text", LONG, lambda chunk: bool(begun.set() or (chunk and chunks.append(chunk))))
        return text_of(chunks)

    def attack() -> None:
        assert begun.wait(30)
        ask(engine, "chat", messages=ONCE, max_tokens=4, response_format=shape)

    told, refused = beside(other, attack)
    assert len(told) > 500
    assert isinstance(refused, RequestRefused)
    assert refused.status == 400
    assert CANARY not in str(refused)
    assert capfd.readouterr() == ("", "")


def test_one_clients_prompt_is_not_kept_for_the_next(engine: OpenVinoEngine, model: Path) -> None:
    before = engine.stats()
    for _ in range(2):
        chunks = ask(engine, prompt="The same prompt, word for word", max_tokens=1)
        assert chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    after = engine.stats()
    assert after.cached_tokens == 0
    assert after.prompt_tokens - before.prompt_tokens == 2 * chunks[-1]["usage"]["prompt_tokens"]
    with pytest.raises(UsageError, match="prefix cache"), opened(model, prefix_cache=True):
        pass


def test_closing_ends_what_runs_and_every_thread(model: Path) -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    with opened(model) as first:
        ask(first, prompt="a", max_tokens=1)  # what the library keeps once
    before = threads()
    with opened(model) as engine:
        begun = threading.Event()

        def run() -> None:
            engine.generate("text", LONG, lambda chunk: bool(begun.set()))

        def end() -> None:
            assert begun.wait(30)
            engine.close()
            engine.close()

        ended, closed = beside(run, end)
        assert closed is None
        assert isinstance(ended, RequestRefused)
        assert ended.status == 503
        with pytest.raises(RequestRefused):
            ask(engine, prompt="a", max_tokens=1)
    deadline = time.monotonic() + 10
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threads() <= before


@pytest.mark.parametrize("part", [0.001, 0.3, 0.9, 0.99999])
def test_a_truncated_model_is_one_clear_line(model: Path, tmp_path: Path, part: float) -> None:
    whole = model.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InferenceError, match="truncated") as refused, opened(tmp_path / "cut.gguf"):
        pass
    assert "\n" not in str(refused.value)


def test_a_damaged_ir_is_one_clear_line(model: Path, tmp_path: Path) -> None:
    with ModelFiles.of_path(model) as files:
        save_ir(files, tmp_path / "ir")
    (tmp_path / "ir" / "openvino_model.xml").write_text("<net>")
    with pytest.raises(InferenceError) as refused, opened(tmp_path / "ir"):
        pass
    assert "\n" not in str(refused.value)


PROGRAM = """
import os, sys, time
from pathlib import Path
attempts = []
def watch(event, given):
    if event.startswith("socket.") and event != "socket.__new__" or event in ("subprocess.Popen", "os.posix_spawn"):
        attempts.append(event)
        raise OSError("no network here")
sys.addaudithook(watch)
{body}
time.sleep(0.5)
print(len(attempts), [str(path) for path in Path(os.environ["HOME"]).rglob("*")])
"""
OURS = """
from cloister.inference.engines import EngineSettings, open_engine
from cloister.inference.model_files import ModelFiles
with ModelFiles.of_path(Path(sys.argv[1])) as files:
    engine = open_engine("openvino", files, EngineSettings(context_length=64, slots=1, threads=1))
engine.generate("text", {"prompt": "a", "max_tokens": 2}, lambda chunk: False)
engine.close()
"""


@pytest.mark.parametrize(
    ("body", "silent"),
    [pytest.param(OURS, True, id="ours"), pytest.param("import openvino", False, id="bare")],
)
def test_nothing_is_reported_to_the_vendor(tmp_path: Path, model: Path, body: str, silent: bool) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kept = {
        name: os.environ[name] for name in ("PATH", "PYTHONPATH", "CLOISTER_SHARED") if name in os.environ
    }
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{body}", body), str(model)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=kept | {"HOME": str(home)},
    )
    # The library alone does report: so the watch sees what it is there for.
    assert (ended.stdout.strip() == "0 []") is silent, ended.stdout
    if silent:
        assert ended.stderr == ""


def test_no_file_of_the_model_is_written_and_no_place_of_it_stays_open(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("model_files", "engines.openvino_vocabulary"):
        monkeypatch.setattr(f"cloister.inference.{module}._SHARED_MEMORY", tmp_path)

    def held() -> set[str]:
        found = set()
        for entry in Path("/proc/self/fd").iterdir():
            try:
                found.add(str(entry.readlink()))
            except OSError:
                continue
        return {path for path in found if "cloister-" in path or path.endswith((".gguf", ".bin", ".xml"))}

    before = held()
    with opened(model) as engine:
        ask(engine, prompt="a", max_tokens=1)
        assert held() == before
        assert not any(tmp_path.iterdir())
