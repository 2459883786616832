"""The torch engine on small models, and what its chunks say."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloister.inference.engines import EngineSettings
from cloister.inference.engines.torch import TorchEngine
from cloister.inference.model_files import ModelFiles
from llama_models import write_llama

Chunk = Mapping[str, Any]

TOOL_TEMPLATE = (
    "{% if tools %}Tools: {{ tools | tojson }} as <tool_call>{...}</tool_call>\n{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
STORY_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def stories(target: Path, template: str | None = None) -> Path:
    """The stories model as the new folder ``target``, with this chat template."""
    write_llama(target)
    if template is not None:
        path = target / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return target


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[TorchEngine]:
    """The engine on the model in ``folder``, whose descriptors are closed by then."""
    with ModelFiles.of_path(folder) as files:
        engine = TorchEngine.open(
            files, EngineSettings(**({"context_length": 256, "slots": 4, "threads": 1} | settings))
        )
    try:
        yield engine
    finally:
        engine.close()


def ask(engine: TorchEngine, kind: Any = "text", tenant: bytes | None = None, **request: Any) -> list[Chunk]:
    """Every chunk of one answer."""
    chunks: list[Chunk] = []

    def sink(chunk: Chunk) -> bool:
        if chunk:
            chunks.append(chunk)
        return False

    engine.generate(kind, request, sink, tenant=tenant)
    return chunks


def text_of(chunks: list[Chunk], index: int = 0) -> str:
    """The text of one choice."""
    parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
    return "".join(part["text"] if "text" in part else part["delta"].get("content") or "" for part in parts)


def finish_of(chunks: list[Chunk], index: int = 0) -> str:
    reasons = [
        part["finish_reason"] for chunk in chunks for part in chunk["choices"] if part["index"] == index
    ]
    assert [reason for reason in reasons if reason] == [reasons[-1]]
    return str(reasons[-1])


def usage_of(chunks: list[Chunk]) -> Mapping[str, Any]:
    found: list[Mapping[str, Any]] = [chunk["usage"] for chunk in chunks if "usage" in chunk]
    assert len(found) == 1
    return found[0]


def beside(*works: Callable[[], Any]) -> list[Any]:
    """What each of ``works`` returns, run at the same time."""
    found: dict[int, Any] = {}

    def run(place: int) -> None:
        found[place] = works[place]()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[place] for place in range(len(works))]
