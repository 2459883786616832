"""The ``generate`` API of transformers on optimised models: greedy, beams, sampling, batches; beside full precision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import cloister
from llama_models import write_llama

LARGEST_LOSS = {"int8": 1.005, "int4": 1.15}
"""Of perplexity over float32's, for a model of 260 thousand weights, which has nothing to spare."""
TEXT = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TinyStories: 64 hidden numbers, 172 in its feed-forward layers, so that int4 does not fit all."""
    return write_llama(tmp_path_factory.mktemp("stories") / "model")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Iterator[Any]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=["int8", "int4"])
def fast(request: pytest.FixtureRequest, folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return cloister.optimize(model, precision=request.param)


def perplexity(model: Any, tokens: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model(tokens).logits[:, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:]).exp())


def test_perplexity_on_a_story_stays_near_that_of_float32(whole: Any, fast: Any, tokenizer: Any) -> None:
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    loss = perplexity(fast, tokens) / perplexity(whole, tokens)
    assert loss < LARGEST_LOSS[fast.cloister_report.precision]


def test_greedy_answers_begin_as_in_full_precision(whole: Any, fast: Any, tokenizer: Any) -> None:
    tokens = tokenizer("Once upon a time", return_tensors="pt").input_ids
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    expected, found = whole.generate(tokens, **settings)[0], fast.generate(tokens, **settings)[0]
    same = int((expected[: len(found)] == found[: len(expected)]).long().cumprod(0).sum())
    assert same >= (len(expected) if fast.cloister_report.precision == "int8" else tokens.shape[1] + 4)


def test_what_a_prompt_is_answered_does_not_depend_on_the_one_beside_it(fast: Any, tokenizer: Any) -> None:
    tokens = tokenizer("Once upon a time", return_tensors="pt").input_ids
    beside = torch.randint(3, 500, tokens.shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        alone = fast(tokens).logits[0]
        both = fast(torch.cat([tokens, beside])).logits[0]
    assert float((alone - both).norm() / alone.norm()) < 0.02


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"num_beams": 3, "do_sample": False}, id="beams"),
        pytest.param({"do_sample": True, "temperature": 0.8, "top_p": 0.9}, id="sampling"),
        pytest.param({"do_sample": False, "use_cache": False}, id="without a cache"),
        pytest.param({"do_sample": False, "cache_implementation": "static"}, id="a static cache"),
        pytest.param(
            {"do_sample": False, "repetition_penalty": 1.2, "num_return_sequences": 1}, id="penalties"
        ),
    ],
)
def test_every_way_to_generate_works(fast: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    prompts = tokenizer(
        ["Once upon a time", "Lily and"], return_tensors="pt", padding=True, padding_side="left"
    )
    found = fast.generate(
        input_ids=prompts.input_ids, attention_mask=prompts.attention_mask, max_new_tokens=8,
        min_new_tokens=8, pad_token_id=0, disable_compile=True, **settings,
    )  # fmt: skip
    assert found.shape == (2, prompts.input_ids.shape[1] + 8)
    assert int(found.max()) < 512


def test_layers_that_do_not_fit_int4_are_reported_as_what_they_are(folder: Path) -> None:
    model = cloister.optimize(AutoModelForCausalLM.from_pretrained(folder), precision="int4")
    report = model.cloister_report
    forms = {name.rpartition(".")[2]: layer.precision for layer in report.layers for name in layer.names}
    # 172 inputs are no multiple of 32, 172 outputs none of 16, and the logits' layer is kept in int8.
    assert forms == {
        "q_proj": "int4", "o_proj": "int4", "gate_proj": "int8", "up_proj": "int8", "down_proj": "int8", "lm_head": "int8",
    }  # fmt: skip
    assert report.kept["model.layers.0.self_attn.k_proj"] == "64 × 32 is too small"
