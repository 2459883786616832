"""A few lines over xllamacpp (llama.cpp in process), used to check an export and to write the card's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xllamacpp


class Engine:
    """One loaded GGUF file."""

    def __init__(self, path: Path, threads: int = 2) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 512
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = threads
        params.warmup = False
        params.use_jinja = True
        params.verbosity = 0
        self._server = xllamacpp.Server(params)

    def complete(self, prompt: str, **options: Any) -> dict[str, Any]:
        """A raw completion: no chat template; the most likely token is always taken."""
        result: dict[str, Any] = self._server.handle_completions(
            {"prompt": prompt, "temperature": 0.0, "cache_prompt": False, **options}
        )
        return result

    def chat(self, messages: list[dict[str, str]], limit: int = 200) -> str:
        """The greedy answer to a conversation, rendered with the file's own chat template."""
        result = self._server.handle_chat_completions(
            {"messages": messages, "temperature": 0.0, "max_tokens": limit, "cache_prompt": False}
        )
        return str(result["choices"][0]["message"]["content"])
