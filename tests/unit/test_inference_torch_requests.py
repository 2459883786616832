"""What a request asks of the torch engine: understood in full, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines.torch import TorchEngine
from torch_engines import TOOL_TEMPLATE, ask, finish_of, opened, stories, text_of

USER = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchEngine]:
    folder: Path = stories(tmp_path_factory.mktemp("requests") / "stories", TOOL_TEMPLATE)
    with opened(folder, context_length=512) as made:
        yield made


@pytest.fixture(scope="module")
def without_tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchEngine]:
    with opened(stories(tmp_path_factory.mktemp("plain") / "stories")) as made:
        yield made


@pytest.mark.parametrize(
    ("kind", "request_", "param", "code"),
    [
        pytest.param("text", {"prompt": "a", "grammar": "x"}, "grammar", "unsupported", id="an unknown field"),
        pytest.param("text", {"prompt": "a", "tools": []}, "tools", "unsupported", id="a chat's field"),
        pytest.param("chat", {"messages": USER, "reasoning_effort": "low"}, "reasoning_effort", "unsupported", id="effort"),
        pytest.param("chat", {"messages": USER, "tool_choice": "required"}, "tool_choice", "unsupported", id="no tools"),
        pytest.param("text", {"prompt": "a", "n": 5}, "n", "invalid_value", id="more choices than rows"),
        pytest.param("text", {"prompt": [3, 9999]}, "prompt", "invalid_value", id="a token that is none"),
        pytest.param("text", {"prompt": [3, "a"]}, "prompt", "invalid_value", id="tokens and texts"),
        pytest.param("text", {"prompt": [3] * 512}, "prompt", "context_length_exceeded", id="a full context"),
        pytest.param("text", {"prompt": "a", "logit_bias": {"9999": 1}}, "logit_bias", "invalid_value", id="no such token"),
        pytest.param("text", {"prompt": "a", "logit_bias": {"-1": 1}}, "logit_bias", "invalid_value", id="a bias below"),
        pytest.param("text", {"prompt": "a", "repeat_penalty": 0}, "repeat_penalty", "invalid_value", id="division by 0"),
        pytest.param(
            "chat", {"messages": USER, "response_format": {"type": "xml"}}, "response_format", "invalid_value", id="XML"
        ),
        pytest.param(
            "chat",
            {"messages": USER, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}},
            "response_format",
            "invalid_value",
            id="a schema that is none",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(
    engine: TorchEngine, kind: str, request_: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(RequestRefused) as refused:
        ask(engine, kind, **request_)
    assert (refused.value.param, refused.value.code, refused.value.status) == (param, code, 400)


def test_an_input_over_the_context_is_refused(engine: TorchEngine) -> None:
    with pytest.raises(RequestRefused) as refused:
        engine.embed({"input": "word " * 600})
    assert refused.value.code == "context_length_exceeded"


def test_a_template_that_refuses_the_messages_is_told_to_who_asked(tmp_path: Path) -> None:
    folder = stories(tmp_path / "model", "{{ raise_exception('roles must alternate') }}")
    with opened(folder) as engine, pytest.raises(RequestRefused, match="roles must alternate") as refused:
        ask(engine, "chat", messages=USER)
    assert refused.value.status == 400


def test_a_template_reaches_nothing_of_this_process(tmp_path: Path) -> None:
    folder = stories(tmp_path / "model", "{{ messages.__class__.__base__.__subclasses__() }}")
    with opened(folder) as engine, pytest.raises(RequestRefused):
        ask(engine, "chat", messages=USER)


def test_a_model_without_a_template_is_asked_in_chatml(without_tools: TorchEngine) -> None:
    given = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    tokens = without_tools._texts.backend.encode(given, add_special_tokens=False).ids
    chat = ask(without_tools, "chat", messages=USER, max_tokens=8, temperature=0)
    assert text_of(chat) == text_of(ask(without_tools, prompt=tokens, max_tokens=8, temperature=0))


def test_tools_are_offered_only_where_the_template_has_them(
    engine: TorchEngine, without_tools: TorchEngine
) -> None:
    assert engine.tools
    assert not without_tools.tools
    with pytest.raises(RequestRefused):
        ask(without_tools, "chat", messages=USER, tools=[WEATHER])


def test_a_required_call_is_a_call_of_a_tool_by_its_schema(engine: TorchEngine) -> None:
    chunks = ask(engine, "chat", messages=USER, tools=[WEATHER], tool_choice="required", max_tokens=150)
    calls = [
        call
        for chunk in chunks
        for part in chunk["choices"]
        for call in part["delta"].get("tool_calls") or ()
    ]
    assert finish_of(chunks) == "tool_calls"
    assert [call["function"]["name"] for call in calls] == ["weather"]
    assert json.loads(calls[0]["function"]["arguments"])["city"] in ("Rome", "Oslo")
    assert text_of(chunks) == ""


def test_an_answer_by_a_schema_is_what_the_schema_says(engine: TorchEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
        "required": ["age", "ok"],
        "additionalProperties": False,
    }
    for temperature in (0, 1.3):
        chunks = ask(
            engine,
            "chat",
            messages=USER,
            max_tokens=100,
            temperature=temperature,
            seed=5,
            response_format={"type": "json_schema", "json_schema": {"schema": schema}},
        )
        assert finish_of(chunks) == "stop"
        answer = json.loads(text_of(chunks))
        assert set(answer) == {"age", "ok"}
        assert 0 <= answer["age"] <= 99


def test_each_prompt_of_several_has_its_answer(engine: TorchEngine) -> None:
    one = ask(engine, prompt="Once upon a time", max_tokens=6, temperature=0)
    two = ask(engine, prompt=["Once upon a time", "Tom and"], max_tokens=6, temperature=0)
    assert text_of(two, 0) == text_of(one)
    assert finish_of(two, 1) == "length"
    assert two[-1]["usage"]["prompt_tokens"] > one[-1]["usage"]["prompt_tokens"]


def test_the_models_own_way_to_sample_is_the_default(tmp_path: Path) -> None:
    folder = stories(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.01}))
    with opened(folder) as engine:
        greedy = text_of(ask(engine, prompt="Once upon a time", max_tokens=20, temperature=0))
        assert text_of(ask(engine, prompt="Once upon a time", max_tokens=20)) == greedy
        assert text_of(ask(engine, prompt="Once upon a time", max_tokens=20, temperature=2)) != greedy
