"""llama.cpp's own server started inside this process, and what it answers made ours.

It insists on listening. A port on loopback would cross the host under SGX, so it is given a Unix socket in a private
directory whose name is removed as soon as it listens: nothing can connect any more, and no TCP port exists. Behind
that it would still ask for a random key.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from cloister.errors import InferenceError
from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines.lora_gguf import lora_memory
from cloister.inference.gguf_header import GgufHeader
from cloister.inference.lora import LoraAdapter

_QUANTISED: Final = "; or its heads do not have a multiple of 32 numbers: leave kv_cache at f16"
_SOCKET_PATH_LIMIT: Final = 107  # sun_path of unix(7), with its terminating zero


@contextmanager
def added(params: Any, adapter: LoraAdapter | None, header: GgufHeader) -> Iterator[None]:
    """While this lasts llama.cpp can load the adapter."""
    if adapter is None:
        yield
        return
    import xllamacpp  # noqa: PLC0415 -- as below

    descriptor = lora_memory(adapter, header)
    try:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(f"/proc/self/fd/{descriptor}", 1.0)]
        yield
    finally:
        os.close(descriptor)


def start(params: Any, what: str, *, embeds: bool = False) -> Any:
    """A running ``xllamacpp.Server`` that has computed once. Raises InferenceError that names ``what``."""
    import xllamacpp  # noqa: PLC0415 -- as above

    params.api_keys = [secrets.token_hex(32)]
    with tempfile.TemporaryDirectory(prefix="cloister-") as directory:
        socket = Path(directory) / "closed.sock"
        if len(os.fsencode(socket)) > _SOCKET_PATH_LIMIT:
            raise InferenceError(
                f"the path of {directory} is too long for a socket", todo="set a shorter TMPDIR"
            )
        params.hostnames = [str(socket)]
        try:
            server = xllamacpp.Server(params)
        except (RuntimeError, ValueError):
            # Its own text says no more than "failed to init".
            raise InferenceError(
                f"llama.cpp cannot load {what}",
                todo="the file is damaged, or its architecture is not supported"
                + ("" if params.cache_type_k == xllamacpp.ggml_type.GGML_TYPE_F16 else _QUANTISED),
            ) from None
        listening = server.listening_address
        with suppress(FileNotFoundError):
            socket.unlink()
    if not listening.startswith("unix://"):
        raise InferenceError(f"llama.cpp listens on {listening}, which it must not")
    _compute_once(server, what, embeds=embeds)
    return server


def _compute_once(server: Any, what: str, *, embeds: bool) -> None:
    # One token shows that the model computes. It also waits for the engine's loop: the server is handed out before
    # that runs, and one that is closed in between never ends.
    if embeds:  # such a model may have nothing that says a next token
        answer = call(lambda: server.handle_embeddings({"input": ["a"]}))
    else:
        answer = call(
            lambda: server.handle_completions({"prompt": "a", "max_tokens": 1, "cache_prompt": False})
        )
    if not isinstance(answer, Mapping) or ("data" if embeds else "choices") not in answer:
        raise InferenceError(f"llama.cpp loads {what}, but does not compute with it")


def call(handle: Callable[[], Any]) -> Any:
    """What ``handle`` returns. Raises InferenceError and RequestRefused for what llama.cpp throws."""
    try:
        return handle()
    except MemoryError:
        raise InferenceError("the engine is out of memory") from None
    except Exception as error:
        # C++ exceptions arrive as many Python types, all while the request is read: a chat template that refuses
        # it, a field of the wrong form.
        raise RequestRefused(f"The engine refuses the request: {str(error)[:300]}") from None
