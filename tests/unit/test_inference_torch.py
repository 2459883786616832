"""The torch engine: the words of ``transformers``, whoever else is answered beside; and everybody's own."""

from __future__ import annotations

import base64
import shutil
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cloister.errors import UsageError
from cloister.inference import AutoModelForCausalLM as LowBit
from cloister.inference import save_low_bit
from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines import EngineSettings
from cloister.inference.engines.llamacpp import LlamaCppEngine
from cloister.inference.engines.torch import TorchEngine
from cloister.inference.lora import parse_adapter
from cloister.inference.model_files import ModelFiles
from llama_models import greedy, strong_adapter
from tinyllamas_gguf import write_gguf
from torch_engines import ask, beside, finish_of, opened, stories, text_of, usage_of

ENDLESS = {"1": -100, "2": -100}
PROMPTS = (
    "Once upon a time",
    "Lily wanted to play with the big red ball in the park, but her mom said that it was late",
    "Tom",
    "One day, a cat and a dog",
    "The sun was hot. " * 8,
    "Ben had a toy car. He liked",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stories(tmp_path_factory.mktemp("torch") / "stories")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TorchEngine]:
    with opened(folder) as made:
        yield made


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_greedy_answers_are_those_of_transformers_for_rows_that_join_and_leave(
    engine: TorchEngine, reference: Any, tokenizer: Any
) -> None:
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    counts = [40, 12, 25, 7, 30, 18]

    def told(place: int) -> str:
        time.sleep(0.01 * place)
        return text_of(ask(engine, prompt=prompts[place], max_tokens=counts[place], temperature=0))

    found = beside(*(lambda place=place: told(place) for place in range(len(prompts))))
    for place, prompt in enumerate(prompts):
        tokens = greedy(reference, prompt, counts[place])
        whole = tokenizer.decode(prompt + tokens, skip_special_tokens=True)
        assert found[place] == whole[len(tokenizer.decode(prompt, skip_special_tokens=True)) :]


def test_a_prompt_that_is_read_in_pieces_beside_a_running_answer_is_read_the_same(
    folder: Path, reference: Any, tokenizer: Any
) -> None:
    with opened(folder, prefill_chunk=32, slots=2) as small:
        long = tokenizer("Once upon a time there was a dog. " * 8).input_ids
        first = threading.Event()

        def running() -> None:
            small.generate(
                "text",
                {"prompt": "Tom", "max_tokens": 200, "temperature": 0, "logit_bias": ENDLESS},
                lambda _: bool(first.set()),
            )

        thread = threading.Thread(target=running)
        thread.start()
        assert first.wait(30)
        found = text_of(ask(small, prompt=long, max_tokens=12, temperature=0))
        thread.join(60)
    tokens = greedy(reference, long, 12)
    assert found == tokenizer.decode(long + tokens)[len(tokenizer.decode(long)) :]


def test_a_chat_is_told_in_openais_shape(engine: TorchEngine) -> None:
    chunks = ask(engine, "chat", messages=[{"role": "user", "content": "Hi"}], max_tokens=5, temperature=0)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert finish_of(chunks) == "length"
    assert usage_of(chunks)["completion_tokens"] == 5


def test_choices_of_one_prompt_read_it_once_and_differ(engine: TorchEngine) -> None:
    before = engine.stats()
    chunks = ask(engine, prompt="Once upon a time there was", n=3, max_tokens=12, seed=7)
    after = engine.stats()
    texts = {text_of(chunks, index) for index in range(3)}
    assert len(texts) == 3
    prompt = usage_of(chunks)["prompt_tokens"]
    # The followers compute the prompt's last token for themselves: its logits are where they begin.
    assert after.prompt_tokens - before.prompt_tokens == prompt + 2
    assert usage_of(chunks)["completion_tokens"] == 36


def test_an_answer_with_a_seed_comes_again(engine: TorchEngine) -> None:
    request = {"prompt": "Once upon a time", "max_tokens": 20, "seed": 11, "temperature": 0.9, "top_p": 0.95}
    first = text_of(ask(engine, **request))
    assert text_of(ask(engine, **request)) == first
    assert text_of(ask(engine, **request | {"seed": 12})) != first


def test_log_probabilities_are_those_of_the_model(
    engine: TorchEngine, reference: Any, tokenizer: Any
) -> None:
    chunks = ask(engine, "text", prompt="Once upon a time", max_tokens=1, temperature=0, n_probs=3)
    entries = [
        entry
        for chunk in chunks
        for part in chunk["choices"]
        for entry in (part["logprobs"] or {"content": []})["content"]
    ]
    with torch.no_grad():
        logits = reference(input_ids=torch.tensor([tokenizer("Once upon a time").input_ids])).logits[0, -1]
    expected, _ = torch.log_softmax(logits, dim=0).topk(3)
    assert len(entries) == 1
    assert entries[0]["logprob"] == pytest.approx(float(expected[0]), abs=1e-4)
    assert [top["logprob"] for top in entries[0]["top_logprobs"]] == pytest.approx(
        expected.tolist(), abs=1e-4
    )


def test_an_answer_ends_before_its_stop_word(engine: TorchEngine) -> None:
    whole = text_of(ask(engine, prompt="Once upon a time", max_tokens=30, temperature=0))
    chunks = ask(engine, prompt="Once upon a time", max_tokens=30, temperature=0, stop=["xyz", " Lily"])
    assert text_of(chunks) == whole[: whole.index(" Lily")]
    assert finish_of(chunks) == "stop"


def test_an_answer_ends_where_the_context_does(engine: TorchEngine) -> None:
    chunks = ask(engine, prompt=[5] * 250, temperature=0, logit_bias=ENDLESS)
    assert finish_of(chunks) == "length"
    assert usage_of(chunks)["total_tokens"] == 256


def test_a_stopped_request_frees_its_row(folder: Path) -> None:
    with opened(folder, slots=1) as small:
        count = 0

        def stop(chunk: Mapping[str, Any]) -> bool:
            nonlocal count
            count += bool(chunk)
            return count >= 3

        small.generate("text", {"prompt": "Once", "logit_bias": ENDLESS}, stop)
        assert count == 3
        assert finish_of(ask(small, prompt="Tom", max_tokens=2)) == "length"
        assert small.stats().running == 0


def test_a_request_is_stopped_while_it_waits(folder: Path) -> None:
    with opened(folder, slots=1) as small:
        first, done = threading.Event(), threading.Event()

        def hold(_: Mapping[str, Any]) -> bool:
            first.set()
            return done.is_set()

        busy = {"prompt": "Once", "logit_bias": ENDLESS}
        thread = threading.Thread(target=lambda: [small.generate("text", busy, hold) for _ in range(3)])
        thread.start()
        assert first.wait(30)
        asked: list[Mapping[str, Any]] = []

        def refuse(chunk: Mapping[str, Any]) -> bool:
            asked.append(chunk)
            return True

        small.generate("text", {"prompt": "Tom"}, refuse)
        done.set()
        thread.join(60)
        assert len(asked) == 1
        assert finish_of(ask(small, prompt="Tom", max_tokens=1)) == "length"


def test_a_prompt_is_remembered_for_its_tenant_alone(folder: Path) -> None:
    mine, other = b"m" * 32, b"o" * 32
    with opened(folder, prefix_cache=True) as engine:

        def cached(tenant: bytes | None, text: str) -> int:
            chunks = ask(engine, prompt=text, max_tokens=4, temperature=0, tenant=tenant)
            return int(usage_of(chunks)["prompt_tokens_details"]["cached_tokens"])

        text = "Once upon a time there was a little girl named Lily. She loved"
        plain = text_of(ask(engine, prompt=text, max_tokens=12, temperature=0))
        assert cached(mine, text) == 0
        assert cached(mine, text) > 10
        assert cached(mine, text + " to play") > 10
        assert cached(other, text) == 0
        assert cached(None, text) == 0
        assert text_of(ask(engine, prompt=text, max_tokens=12, temperature=0, tenant=mine)) == plain


def test_a_row_is_cleared_before_another_request_has_it(folder: Path) -> None:
    with opened(folder, slots=1) as engine:
        ask(engine, tenant=b"a" * 32, prompt=list(range(10, 90)), max_tokens=2)
        before = {layer: keys[:60].clone() for layer, (keys, _) in engine._batch._memory._layers.items()}
        ask(engine, tenant=b"b" * 32, prompt=list(range(10, 20)), max_tokens=2)
        for layer, (keys, values) in engine._batch._memory._layers.items():
            assert before[layer][20:].abs().sum() > 0
            assert keys[20:].abs().sum() == 0 == values[20:].abs().sum()


def test_nothing_is_remembered_unless_it_is_asked_for(engine: TorchEngine) -> None:
    request = {"prompt": "Once upon a time there was a little girl named Lily. She", "max_tokens": 2}
    for _ in range(2):
        chunks = ask(engine, tenant=b"m" * 32, **request)
        assert usage_of(chunks)["prompt_tokens_details"]["cached_tokens"] == 0


def test_embeddings_are_the_mean_of_the_last_states_and_of_length_one(
    engine: TorchEngine, reference: Any, tokenizer: Any
) -> None:
    texts = ["Once upon a time", "Lily has a cat. " * 10]
    answer = engine.embed({"input": texts})
    for text, item in zip(texts, answer["data"], strict=True):
        with torch.no_grad():
            states = reference.base_model(input_ids=torch.tensor([tokenizer(text).input_ids]))
        mean = states.last_hidden_state[0].mean(dim=0)
        assert item["embedding"] == pytest.approx((mean / mean.norm()).tolist(), abs=1e-4)
    packed = engine.embed({"input": texts[:1], "encoding_format": "base64"})["data"][0]["embedding"]
    numbers = struct.unpack(f"<{engine.embedding_length}f", base64.b64decode(packed))
    assert numbers == pytest.approx(answer["data"][0]["embedding"], abs=1e-6)


def test_embeddings_are_those_of_llama_cpp(engine: TorchEngine, tmp_path: Path) -> None:
    with ModelFiles.of_path(write_gguf(tmp_path / "stories.gguf")) as files:
        other = LlamaCppEngine.open(files, EngineSettings(context_length=256, slots=1))
    try:
        expected = other.embed({"input": ["Once upon a time"]})["data"][0]["embedding"]
    finally:
        other.close()
    found = engine.embed({"input": ["Once upon a time"]})["data"][0]["embedding"]
    assert float(np.dot(found, expected)) > 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_every_precision_tells_the_story(folder: Path, precision: Any) -> None:
    with opened(folder, precision=precision) as engine:
        told = text_of(ask(engine, prompt="Once upon a time", max_tokens=12, temperature=0))
    assert told.startswith(", there was a")


def test_a_folder_that_was_saved_in_few_bits_is_served_as_it_is(folder: Path, tmp_path: Path) -> None:
    model = LowBit.from_pretrained(folder, load_in_low_bit="int8")
    low = save_low_bit(model, tmp_path / "low")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, low)
    question = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
    with opened(folder, precision="int8") as asked, opened(low) as stored:
        assert text_of(ask(stored, **question)) == text_of(ask(asked, **question))
    with pytest.raises(UsageError, match="stored in int8"), opened(low, precision="int4"):
        pass


# peft asks transformers by a name that is to leave it.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_answers_as_peft_does(folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    strong_adapter(folder, tmp_path / "adapter", lora_alpha=64)
    config = (tmp_path / "adapter/adapter_config.json").read_bytes()
    weights = memoryview((tmp_path / "adapter/adapter_model.safetensors").read_bytes())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    prompt = tokenizer("Once upon a time").input_ids
    tokens = greedy(model, prompt, 40)
    with opened(folder, adapter=parse_adapter(config, weights)) as engine:
        found = text_of(ask(engine, prompt=prompt, max_tokens=40, temperature=0))
    assert found == tokenizer.decode(prompt + tokens)[len(tokenizer.decode(prompt)) :]
    assert tokens != greedy(AutoModelForCausalLM.from_pretrained(folder), prompt, 40)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"slots": 0}, id="no slots"),
        pytest.param({"slots": 65}, id="too many slots"),
        pytest.param({"context_length": 8}, id="a tiny context"),
        pytest.param({"threads": 0}, id="no threads"),
        pytest.param({"kv_cache": "q8_0"}, id="a quantised KV cache"),
        pytest.param({"speculation": "ngram"}, id="speculation"),
        pytest.param({"upstream": "unix:/x"}, id="an upstream"),
    ],
)
def test_a_setting_that_the_engine_lacks_is_refused(folder: Path, settings: dict[str, Any]) -> None:
    with ModelFiles.of_path(folder) as files, pytest.raises(UsageError):
        TorchEngine.open(files, EngineSettings(**{"context_length": 256, "slots": 1} | settings))


def test_models_of_other_kinds_are_refused(tmp_path: Path) -> None:
    settings = EngineSettings(context_length=256, slots=1)
    with ModelFiles.of_path(write_gguf(tmp_path / "m.gguf")) as files, pytest.raises(UsageError):
        TorchEngine.open(files, settings)
    with pytest.raises(UsageError):
        TorchEngine.open(None, settings)


def test_closing_ends_what_runs_and_refuses_what_comes(folder: Path) -> None:
    before = threading.active_count()
    with opened(folder) as engine:
        first = threading.Event()
        ended: list[int] = []

        def run() -> None:
            try:
                engine.generate("text", {"prompt": "a", "logit_bias": ENDLESS}, lambda _: bool(first.set()))
                ended.append(200)
            except RequestRefused as refused:
                ended.append(refused.status)

        thread = threading.Thread(target=run)
        thread.start()
        assert first.wait(30)
        engine.close()
        thread.join(30)
        assert ended in ([503], [200])
        with pytest.raises(RequestRefused) as refused:
            ask(engine, prompt="a")
        assert refused.value.status == 503
        assert threading.active_count() <= before
