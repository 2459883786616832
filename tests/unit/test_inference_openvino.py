"""What the OpenVINO engine makes of a model's files: numbers, graph, tokenizer, prompts; and what of a request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from cloister.errors import InferenceError, UsageError
from cloister.inference.api_errors import RequestRefused
from cloister.inference.demo_model import demo_model
from cloister.inference.engines import EngineSettings, open_engine
from cloister.inference.engines.openvino import OpenVinoEngine
from cloister.inference.engines.openvino_gguf import GgufModel, Layer
from cloister.inference.engines.openvino_graph import decoder
from cloister.inference.engines.openvino_import import openvino
from cloister.inference.engines.openvino_language import language_of_keys
from cloister.inference.engines.openvino_prompts import Prompts
from cloister.inference.engines.openvino_schemas import check_keywords
from cloister.inference.engines.openvino_vocabulary import token_table
from cloister.inference.model_files import ModelFiles
from llama_models import write_llama
from openvino_engines import ask, opened, text_of
from tinyllamas_gguf import write_gguf

Q = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("stories") / "stories260K.gguf")


@pytest.fixture(scope="module")
def engine(stories: Path) -> Iterator[OpenVinoEngine]:
    with opened(stories) as made:
        yield made


def read(path: Path) -> GgufModel:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return GgufModel(descriptor, what=path.name)
    finally:
        os.close(descriptor)


def tensors(target: Path, **named: tuple[Any, Q | None]) -> Path:
    writer = gguf.GGUFWriter(target, "llama")
    for name, (data, kind) in named.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def numbers_of(layer: Layer) -> Any:
    """The numbers that OpenVINO computes with."""
    if layer.scales is None:
        raw = layer.numbers
        return (
            (raw.astype(np.uint32) << 16).view(np.float32)
            if raw.dtype == np.uint16
            else raw.astype(np.float32)
        )
    whole = layer.numbers
    if layer.bits == 4:
        pairs = np.stack([whole & 15, whole >> 4], axis=-1).reshape(len(whole), -1).astype(np.int8)
        whole = np.where(pairs > 7, pairs - 16, pairs)
    return whole * np.repeat(layer.scales.astype(np.float32), layer.group, axis=1)


@pytest.mark.parametrize("kind", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0], ids=lambda kind: str(kind.name))
def test_a_layer_is_bit_for_bit_what_ggml_means(tmp_path: Path, kind: Q) -> None:
    weights = np.random.default_rng(3).standard_normal((6, 64), np.float32)
    data = gguf.quants.quantize(weights, kind)
    layer = read(tensors(tmp_path / "m.gguf", w=(data, kind))).layer("w")
    assert np.array_equal(numbers_of(layer), gguf.quants.dequantize(data, kind))


def test_a_q6_k_layer_is_what_ggml_means_but_for_its_scales_last_bits(tmp_path: Path) -> None:
    blocks = np.random.default_rng(4).integers(0, 256, (3, 2 * 210), dtype=np.uint8)
    for block in range(2):
        blocks[:, block * 210 + 208 : block * 210 + 210] = np.array([0.01], "<f2").view(np.uint8)
    layer = read(tensors(tmp_path / "m.gguf", w=(blocks, Q.Q6_K))).layer("w")
    np.testing.assert_allclose(numbers_of(layer), gguf.quants.dequantize(blocks, Q.Q6_K), rtol=2**-11)


def test_blocks_that_only_llama_cpp_computes_are_refused_by_name(tmp_path: Path) -> None:
    blocks = np.zeros((2, 144), np.uint8)
    with pytest.raises(InferenceError, match="Q4_K"):
        read(tensors(tmp_path / "m.gguf", w=(blocks, Q.Q4_K))).layer("w")


def test_the_graph_computes_the_logits_of_transformers(stories: Path, tmp_path: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(write_llama(tmp_path / "hf"))
    tokens = np.array([[1, 403, 407, 261, 378, 432, 297, 412, 60, 70]])
    compiled = (
        openvino()
        .Core()
        .compile_model(
            decoder(read(stories)), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        )
    )
    found = compiled.create_infer_request().infer(
        {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.arange(tokens.shape[1])[None],
            "beam_idx": np.zeros(1, np.int32),
        }
    )[0]
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_tensor_that_no_node_asks_for_is_refused(stories: Path) -> None:
    model = read(stories)
    model._table = dict(model._table) | {"blk.0.attn_sinks.weight": ((8,), 0, 0)}
    with pytest.raises(InferenceError, match=r"attn_sinks"):
        decoder(model)


def test_another_architecture_is_refused_by_name(stories: Path, tmp_path: Path) -> None:
    other = tmp_path / "odd.gguf"
    other.write_bytes(stories.read_bytes().replace(b"llama", b"lllll"))
    with pytest.raises(InferenceError, match="lllll"):
        decoder(read(other))


TEXTS = ("Once upon a time, naïve 日本 🦙\n\n  x", "", " a", "12345 don't <s> stop", "\t\r\n")


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_cut_as_the_models_own_tokenizer_cuts_it(stories: Path, tmp_path: Path, text: str) -> None:
    own = AutoTokenizer.from_pretrained(write_llama(tmp_path / "hf"))
    made = language_of_keys(read(stories)).backend
    assert made.encode(text).ids == own.encode(text, add_special_tokens=False)


def test_a_byte_level_tokenizer_gives_every_text_back() -> None:
    language = language_of_keys(read(demo_model()))
    for text in TEXTS:
        assert language.backend.decode(language.backend.encode(text).ids) == text.replace("<s>", "<s>")
    assert language.first == ()
    assert language.ends == {2}


def test_the_table_of_tokens_has_the_bytes_of_each() -> None:
    pieces = [b"</s>", b"a", "日".encode(), b"\xe6", b" b\n"]
    table = token_table(pieces, frozenset({0}), 0)
    assert table.get_vocab() == {piece: place for place, piece in enumerate(pieces)}
    assert table.get_eos_token_id() == 0


TEMPLATES = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}",
    "{%- set ns = namespace(n=0) -%}\n{% for m in messages[::-1] %}\n  {% if loop.first %}{% continue %}{% endif %}\n"
    "{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m | tojson }}{{ bos_token }}\n{% endfor %}",
)
MESSAGES = [
    {"role": "system", "content": " be <b>ö</b> "},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "x"},
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_gives_what_transformers_gives(template: str) -> None:
    backend = language_of_keys(read(demo_model())).backend
    own = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>")
    expected = own.apply_chat_template(
        MESSAGES, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    assert Prompts(template, {"bos_token": "<|im_start|>"}).text(MESSAGES, {}) == expected


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{{ ''.__class__.__mro__ }}", id="attributes of Python"),
        pytest.param("{% include '/etc/passwd' %}", id="files"),
        pytest.param("{{ messages.append(1) }}", id="changes"),
        pytest.param("{{ cycler.__init__.__globals__.os.system('true') }}", id="programs"),
        pytest.param("{{ raise_exception('no') }}", id="its own refusal"),
    ],
)
def test_a_template_reaches_nothing_outside(template: str) -> None:
    with pytest.raises(RequestRefused, match="template"):
        Prompts(template, {}).text(MESSAGES, {})


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {}},
        {"type": "string", "format": "date"},
        {"properties": {"a": {"items": [{"multipleOf": 3}]}}},
        {"anyOf": [{"patternProperties": {}}]},
    ],
)
def test_a_keyword_that_would_be_passed_over_is_refused(schema: Any) -> None:
    with pytest.raises(RequestRefused) as refused:
        check_keywords(schema)
    assert refused.value.code == "unsupported"


def test_names_and_values_are_no_keywords() -> None:
    check_keywords({"properties": {"not": {"enum": [{"if": 1}]}}, "required": ["else"], "title": "t"})


@pytest.mark.parametrize(
    ("kind", "request_", "param"),
    [
        ("text", {"logit_bias": {"1": 5}}, "logit_bias"),
        ("text", {"n_probs": 2, "temperature": 0}, "top_logprobs"),
        ("text", {"n_probs": 1}, "logprobs"),
        ("text", {"repeat_penalty": 0}, "repeat_penalty"),
        ("text", {"n": 5}, "n"),
        ("text", {"prompt": []}, "prompt"),
        ("text", {"prompt": [512]}, "prompt"),
        ("text", {"prompt": [3] * 512}, "prompt"),
        ("text", {"grammar": "root ::= x"}, "grammar"),
        ("chat", {"tools": [{"type": "function"}]}, "tools"),
        ("chat", {"tool_choice": "required"}, "tool_choice"),
        ("chat", {"reasoning_effort": "low"}, "reasoning_effort"),
        ("chat", {"response_format": {"type": "poem"}}, "response_format"),
        ("chat", {"response_format": {"type": "json_schema"}}, "response_format"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(
    engine: OpenVinoEngine, kind: Any, request_: dict[str, Any], param: str
) -> None:
    usual: dict[str, Any] = (
        {"prompt": "a"} if kind == "text" else {"messages": [{"role": "user", "content": "a"}]}
    )
    with pytest.raises(RequestRefused) as refused:
        ask(engine, kind, **(usual | request_))
    assert refused.value.status == 400
    assert refused.value.param == param


@pytest.mark.parametrize(
    "settings",
    [
        {"prefix_cache": True},
        {"kv_cache": "q4_0"},
        {"speculation": "draft"},
        {"upstream": "unix:/x"},
        {"precision": "int4"},
        {"slots": 0},
        {"context_length": 1},
        {"threads": 0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_setting_it_lacks_is_refused(stories: Path, settings: dict[str, Any]) -> None:
    with ModelFiles.of_path(stories) as files, pytest.raises(UsageError):
        open_engine("openvino", files, EngineSettings(**({"context_length": 64, "slots": 1} | settings)))


def test_choices_drawn_with_a_seed_come_again_and_differ_from_each_other(engine: OpenVinoEngine) -> None:
    body = {
        "prompt": "Once upon a time",
        "max_tokens": 24,
        "n": 3,
        "seed": 7,
        "temperature": 1.2,
        "top_p": 0.95,
    }
    first, second = ask(engine, **body), ask(engine, **body)
    texts = [text_of(first, index) for index in range(3)]
    assert texts == [text_of(second, index) for index in range(3)]
    assert len(set(texts)) == 3
    assert text_of(ask(engine, **(body | {"seed": 8}))) != texts[0]


@pytest.mark.parametrize(
    "narrow",
    [{"temperature": 0}, {"top_k": 1}, {"top_p": 0}, {"min_p": 1}],
    ids=lambda narrow: next(iter(narrow)),
)
def test_where_one_token_can_be_drawn_the_answer_is_the_likeliest(
    engine: OpenVinoEngine, narrow: dict[str, Any]
) -> None:
    chunks = ask(engine, prompt="Once upon a time", max_tokens=10, **narrow)
    assert text_of(chunks) == ", there was a little girl named Lily."[: len(text_of(chunks))]
    assert text_of(chunks).startswith(", there was a little girl")


def test_a_penalty_changes_what_is_said(engine: OpenVinoEngine) -> None:
    usual = text_of(ask(engine, prompt="Once upon a time", max_tokens=60, temperature=0))
    for name in ("presence_penalty", "frequency_penalty"):
        assert (
            text_of(ask(engine, prompt="Once upon a time", max_tokens=60, temperature=0, **{name: 2}))
            != usual
        )
    assert (
        text_of(ask(engine, prompt="Once upon a time", max_tokens=60, temperature=0, repeat_penalty=2))
        != usual
    )
