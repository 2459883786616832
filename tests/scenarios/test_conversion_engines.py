"""A converted model in llama.cpp against the model it was made from in ``transformers``, both real.

Next-token probabilities within the error of the format, greedy text the same, texts cut into the same tokens.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.inference.conversion.gguf import ConvertedModel, convert
from cloister.inference.conversion.quantisation import QUANTISATIONS, Quantisation
from cloister.inference.demo_model import demo_model
from cloister.inference.model_files import ModelFiles
from cloister.inference.next_tokens import LlamaCppNext, TransformersNext, text_tokens, tokenizer_of
from cloister.inference.quality import (
    Observations,
    Quality,
    Windows,
    compare,
    default_text,
    observe,
    windows_of,
)
from conversion_models import (
    TEXTS,
    byte_level_tokenizer,
    write_chatglm,
    write_demo_model,
    write_model,
    write_tokenizer,
)
from llama_models import greedy, write_llama
from shared_data import data

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, "
)


def made(source: Path, target: Path, quantisation: Quantisation = "f16") -> ConvertedModel:
    with ModelFiles.of_path(source) as model:
        return convert(model, target, quantisation=quantisation)


def seen_by_llama_cpp(path: Path, windows: Windows, vocabulary: int) -> Observations:
    with ModelFiles.of_path(path) as model, LlamaCppNext.open(model, vocabulary=vocabulary) as found:
        return observe(found, windows)


def seen_by_transformers(folder: Path, windows: Windows) -> Observations:
    with ModelFiles.of_path(folder) as model, TransformersNext.open(model) as found:
        return observe(found, windows)


def random_windows(vocabulary: int) -> Windows:
    drawn = np.random.default_rng(1).integers(3, vocabulary, size=64)
    return Windows((tuple(int(token) for token in drawn),), 40)


STRETCHED = {
    "llama3": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
        "attention_factor": 1.3,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        pytest.param("llama", {}, id="llama"),
        pytest.param("llama", {"attention_bias": True, "mlp_bias": True}, id="llama with biases"),
        pytest.param("llama", {"tie_word_embeddings": True}, id="llama whose embeddings are its output"),
        pytest.param("llama", {"head_dim": 64}, id="llama with heads of a length of their own"),
        pytest.param("llama", {"rope_parameters": STRETCHED["llama3"]}, id="llama stretched as llama 3"),
        pytest.param("llama", {"rope_parameters": STRETCHED["linear"]}, id="llama stretched evenly"),
        pytest.param("llama", {"rope_parameters": STRETCHED["yarn"]}, id="llama stretched by yarn"),
        pytest.param("mistral", {"sliding_window": 128}, id="mistral"),
        pytest.param("qwen2", {}, id="qwen2"),
        pytest.param("qwen3", {"head_dim": 64}, id="qwen3"),
        pytest.param("phi3", {}, id="phi3"),
        pytest.param("glm", {}, id="glm"),
    ],
)
def test_each_kind_of_model_computes_in_llama_cpp_what_it_computes_in_transformers(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    source = write_model(tmp_path / "model", kind, **changes)
    made(source, tmp_path / "model.gguf")
    windows = random_windows(600)
    found = compare(
        seen_by_transformers(source, windows), seen_by_llama_cpp(tmp_path / "model.gguf", windows, 600)
    )
    assert found.cosine is not None
    assert found.cosine > 0.9999
    assert found.divergence < 2e-4
    assert abs(found.change) < 0.01


def test_chatglm_as_its_makers_publish_it_computes_what_its_weights_compute_as_glm(tmp_path: Path) -> None:
    glm = write_model(tmp_path / "glm", "glm")
    source = write_chatglm(tmp_path / "chatglm", glm)
    for quantisation, bound in (("f16", 2e-4), ("q8_0", 0.05)):
        found = made(source, tmp_path / f"{quantisation}.gguf", quantisation)
        assert found.architecture == "chatglm"
        windows = random_windows(600)
        quality = compare(
            seen_by_transformers(glm, windows),
            seen_by_llama_cpp(tmp_path / f"{quantisation}.gguf", windows, 600),
        )
        assert quality.divergence < bound


BOUNDS: dict[Quantisation, tuple[float, float, float, float]] = {
    # perplexity's change, divergence, agreement, cosine: each well above what was measured (docs/benchmarks)
    "f16": (0.002, 1e-5, 0.99, 0.9999),
    "bf16": (0.02, 2e-3, 0.95, 0.999),
    "q8_0": (0.02, 2e-3, 0.95, 0.999),
    "q4_k_m": (0.02, 2e-3, 0.95, 0.999),  # rows of 64: all of it is q8_0
    "q4_0": (0.3, 0.2, 0.7, 0.95),
}


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Windows, Observations]:
    folder = write_llama(tmp_path_factory.mktemp("stories") / "hf")
    page = data("tinyllamas/stories260K.md").read_text(encoding="utf-8")
    with ModelFiles.of_path(folder) as model:
        tokens, first = text_tokens(
            tokenizer_of(model), STORY + page.split("-t 0.0\n", 1)[1].split("\n```", 1)[0]
        )
    windows = windows_of(tokens, count=3, length=64, first=first)
    return folder, windows, seen_by_transformers(folder, windows)


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_each_quantisation_stays_within_its_bound_on_a_model_that_was_taught(
    stories: tuple[Path, Windows, Observations], tmp_path: Path, quantisation: Quantisation
) -> None:
    folder, windows, reference = stories
    made(folder, tmp_path / "a.gguf", quantisation)
    found = compare(reference, seen_by_llama_cpp(tmp_path / "a.gguf", windows, 512))
    change, divergence, agreement, cosine = BOUNDS[quantisation]
    assert found.places == found.covered == windows.places
    assert abs(found.change) < change
    assert found.divergence < divergence
    assert found.agreement > agreement
    assert (found.cosine or 0) > cosine


DEMO_BOUNDS: dict[Quantisation, tuple[float, float, float]] = {
    # perplexity's change, divergence, agreement
    "f16": (0.002, 1e-4, 0.98),
    "q8_0": (0.03, 5e-3, 0.95),
    "q4_k_m": (0.3, 0.3, 0.7),
    "q4_0": (0.3, 0.4, 0.7),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Windows, Observations]:
    folder = write_demo_model(tmp_path_factory.mktemp("demo") / "hf")
    with gzip.open(data("medquad/corpus.jsonl.gz"), "rt", encoding="utf-8") as lines:
        records = [json.loads(next(lines)) for _ in range(3)]
    with ModelFiles.of_path(folder) as model:
        tokenizer = tokenizer_of(model)
    # As it was taught: each conversation from its beginning, in ChatML.
    texts = [
        f"<|im_start|>user\n{record['question']}<|im_end|>\n<|im_start|>assistant\n{record['text']}"
        for record in records
    ]
    windows = Windows(tuple(tuple(tokenizer.encode(text).ids[:56]) for text in texts), 32)
    return folder, windows, seen_by_transformers(folder, windows)


def test_the_demonstration_model_converted_back_and_forth_predicts_what_the_packaged_file_does(
    demo: tuple[Path, Windows, Observations],
) -> None:
    _, windows, reference = demo
    vocabulary = reference.predictions[0].tokens.size
    quality = compare(reference, seen_by_llama_cpp(demo_model(), windows, vocabulary))
    assert quality.perplexity < 60
    assert quality.divergence < 5e-3


@pytest.mark.parametrize("quantisation", DEMO_BOUNDS)
def test_the_demonstration_models_weights_stay_within_their_bounds_in_each_quantisation(
    demo: tuple[Path, Windows, Observations], tmp_path: Path, quantisation: Quantisation
) -> None:
    folder, windows, reference = demo
    found = made(folder, tmp_path / "a.gguf", quantisation)
    vocabulary = reference.predictions[0].tokens.size
    quality = compare(reference, seen_by_llama_cpp(tmp_path / "a.gguf", windows, vocabulary))
    change, divergence, agreement = DEMO_BOUNDS[quantisation]
    assert abs(quality.change) < change, found.types
    assert quality.divergence < divergence
    assert quality.agreement > agreement


@pytest.mark.parametrize("quantisation", ["f16", "q8_0"])
def test_greedy_text_is_the_same_as_of_transformers(
    stories: tuple[Path, Windows, Observations], tmp_path: Path, quantisation: Quantisation
) -> None:
    from transformers import AutoModelForCausalLM

    folder, windows, _ = stories
    made(folder, tmp_path / "a.gguf", quantisation)
    prompt = list(windows.tokens[0][:20])
    expected = greedy(AutoModelForCausalLM.from_pretrained(folder), prompt, 40)
    with ModelFiles.of_path(tmp_path / "a.gguf") as model, LlamaCppNext.open(model, vocabulary=512) as found:
        tokens = list(prompt)
        for _ in expected:
            (place,) = found.predictions([*tokens, 0], len(tokens))
            tokens.append(place.likeliest)
    assert tokens[len(prompt) :] == expected


RULES: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: byte_level_tokenizer("gpt-2"),
    "starcoder": lambda: byte_level_tokenizer("starcoder"),
    "qwen2": lambda: byte_level_tokenizer("qwen2"),
    "llama-bpe": lambda: byte_level_tokenizer("llama-bpe", whole_words=True),
    "smaug-bpe": lambda: byte_level_tokenizer("llama-bpe"),
    "gpt-2 with a beginning token": lambda: byte_level_tokenizer("gpt-2", begin=True),
}


@pytest.mark.parametrize("rule", RULES)
def test_llama_cpp_cuts_hard_texts_as_the_models_own_tokenizer_does(tmp_path: Path, rule: str) -> None:
    tokenizer = RULES[rule]()
    source = write_model(tmp_path / "model", "llama", tokenizer=tokenizer)
    made(source, tmp_path / "model.gguf")
    _check_cutting(tmp_path / "model.gguf", tokenizer, 600)


def test_llama_cpp_cuts_texts_into_sentencepiece_tokens_as_the_models_own_tokenizer_does(
    stories: tuple[Path, Windows, Observations], tmp_path: Path
) -> None:
    folder, _, _ = stories
    made(folder, tmp_path / "a.gguf")
    with ModelFiles.of_path(folder) as model:
        tokenizer = tokenizer_of(model)
    _check_cutting(tmp_path / "a.gguf", tokenizer, 512)


def _check_cutting(path: Path, tokenizer: Any, vocabulary: int) -> None:
    """What is thought of a text's next token is the same, to the last bit, if its tokens are."""
    texts = [*TEXTS, default_text().decode()[5600:5900]]
    with ModelFiles.of_path(path) as model, LlamaCppNext.open(model, vocabulary=vocabulary) as found:
        for text in texts:
            tokens = tokenizer.encode(text).ids
            if not tokens:
                continue
            expected = found.asked(tokens)
            assert found.asked(text) == expected, text


def test_the_bench_shape_is_measured_by_text_that_comes_with_the_package(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer("gpt-2")
    source = write_model(tmp_path / "model", "llama", tokenizer=tokenizer)
    made(source, tmp_path / "model.gguf", "q8_0")
    tokens, first = text_tokens(tokenizer, default_text().decode())
    windows = windows_of(tokens, count=2, length=32, first=first)
    found: Quality = compare(
        seen_by_transformers(source, windows), seen_by_llama_cpp(tmp_path / "model.gguf", windows, 600)
    )
    assert found.divergence < 0.1


def test_settings_of_the_tokenizer_reach_llama_cpp(tmp_path: Path) -> None:
    import gguf

    source = write_model(tmp_path / "model", "qwen2", tokenizer=byte_level_tokenizer("qwen2"))
    write_tokenizer(
        source, byte_level_tokenizer("qwen2"), bos_token=None, pad_token={"content": "<|endoftext|>"},
        chat_template="{{ messages }}",
    )  # fmt: skip
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    made(source, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    told = {
        key.removeprefix("tokenizer."): field.contents()
        for key, field in fields.items()
        if "tokenizer" in key
    }
    assert told["ggml.pre"] == "qwen2"
    assert told["chat_template"] == "{{ messages }}"
    assert (told["ggml.eos_token_id"], told["ggml.eot_token_id"], told["ggml.padding_token_id"]) == (2, 0, 0)
    assert told["ggml.add_bos_token"] is False
    assert told["ggml.token_type"][:4] == [3, 3, 3, 1]
