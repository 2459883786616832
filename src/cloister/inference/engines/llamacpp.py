"""The built-in engine: llama.cpp's own server inside this process, through PyPI's ``xllamacpp``.

Requests go to the server's handlers as function calls and come back chunk by chunk on the calling thread; several
are computed at once in slots with continuous batching. Three things about it are handled here:

* It insists on listening. A port on loopback would cross the host under SGX, so it is given a Unix socket in a
  private directory whose name is removed as soon as it listens: nothing can connect any more, and no TCP port
  exists. Behind that it would still ask for a random key.
* It can reuse one client's prompt for the next one's common prefix. How fast an answer starts would then tell
  what others asked, so that is off, and no request can turn it on.
* It logs prompts when verbose. It is silent here.
"""

from __future__ import annotations

import atexit
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from cloister.errors import InferenceError, UsageError
from cloister.inference.api_errors import RequestRefused, engine_refusal
from cloister.inference.engines import Kind, Sink
from cloister.inference.gguf_header import GgufHeader, read_gguf_header

MAX_SLOTS: Final = 64
MAX_CONTEXT: Final = 1 << 20
MAX_BATCH: Final = 2048
"""Tokens computed in one go. An embedding's input has to fit, so it follows the context up to here."""
MIN_BATCH: Final = 512
CLOSE_SECONDS: Final = 30.0
_SILENT: Final = -1
_SOCKET_PATH_LIMIT: Final = 107  # sun_path of unix(7), with its terminating zero
_STILL_WORKING: Final[Mapping[str, Any]] = {}


class LlamaCppEngine:
    """A GGUF model in llama.cpp's server, in this process. See :class:`cloister.inference.engines.Engine`."""

    def __init__(
        self,
        server: Any,
        *,
        context_length: int,
        slots: int,
        embedding_length: int | None,
        header: GgufHeader,
    ) -> None:
        self.context_length = context_length
        self.slots = slots
        self.embedding_length = embedding_length
        # llama.cpp would drop the functions in silence where the template has no place for them.
        self.tools = "tools" in (header.chat_template or "")
        self._server: Any | None = server
        self._running = 0
        self._change = threading.Condition()
        # A loop thread inside C++ must not outlive the interpreter.
        atexit.register(self.close)

    @classmethod
    def open(
        cls,
        model: Path | int,
        *,
        context_length: int,
        slots: int,
        threads: int | None = None,
        embedding: bool = True,
    ) -> LlamaCppEngine:
        """Load ``model``: a path, or a file descriptor (a memfd, say) that the caller keeps and may close then.

        ``context_length`` is in tokens for each of the ``slots``; the model's own length is an upper bound.
        ``threads`` compute; None leaves one of the processors to the server that this engine works for.
        Raises InferenceError (the model) and UsageError (the numbers).
        """
        _check_sizes(context_length, slots, threads)
        what = str(model) if isinstance(model, Path) else "the model"
        try:
            descriptor = (
                os.open(model, os.O_RDONLY | os.O_CLOEXEC) if isinstance(model, Path) else os.dup(model)
            )
        except OSError as error:
            raise InferenceError(f"{what} cannot be opened: {error.strerror}") from None
        try:
            header = read_gguf_header(descriptor, what=what)
            length = min(context_length, header.trained_context or context_length)
            params = server_parameters(
                f"/proc/self/fd/{descriptor}",
                context_length=length,
                slots=slots,
                threads=threads or default_threads(),
                embedding=embedding,
            )
            server = _start(params, what)
        finally:
            os.close(descriptor)
        return cls(
            server,
            context_length=length,
            slots=slots,
            embedding_length=header.embedding_length if embedding else None,
            header=header,
        )

    def generate(self, kind: Kind, request: Mapping[str, Any], sink: Sink) -> None:
        body = dict(request) | {
            "stream": True,
            "stream_options": {"include_usage": True},
            # Progress of the prompt's batches comes as chunks too: a chance to stop before the first token.
            "return_progress": True,
            "cache_prompt": False,
        }
        refusal: RequestRefused | None = None
        complete = False
        stopped = False

        def on_chunk(data: bytes) -> bool:
            nonlocal refusal, complete, stopped
            chunk: dict[str, Any] = msgspec.json.decode(data)
            if "error" in chunk:
                refusal = engine_refusal(chunk)
                return True
            complete = complete or "usage" in chunk
            stopped = sink(_STILL_WORKING if "prompt_progress" in chunk else chunk) or self._server is None
            return stopped

        with self._using() as server:
            handler = server.handle_chat_completions if kind == "chat" else server.handle_completions
            _call(lambda: handler(msgspec.json.encode(body), on_chunk))
        if refusal is not None:
            raise refusal
        if not complete and not stopped:
            raise InferenceError("the engine broke off an answer")

    def embed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.embedding_length is None:
            raise RequestRefused("This model was loaded without embeddings", code="unsupported")
        with self._using() as server:
            answer = _call(lambda: server.handle_embeddings(dict(request)))
        if not isinstance(answer, Mapping) or "data" not in answer:
            raise engine_refusal(answer if isinstance(answer, Mapping) else {})
        return answer

    def close(self) -> None:
        """Stop what runs at its next token, wait for it (bounded), free the model. Idempotent."""
        with self._change:
            server, self._server = self._server, None
            self._change.wait_for(lambda: self._running == 0, timeout=CLOSE_SECONDS)
        atexit.unregister(self.close)
        # The last reference: llama.cpp's threads are joined here.
        del server

    @contextmanager
    def _using(self) -> Iterator[Any]:
        with self._change:
            server = self._server
            if server is None:
                raise RequestRefused("The engine is shutting down", status=503, code="overloaded")
            self._running += 1
        try:
            yield server
        finally:
            del server
            with self._change:
                self._running -= 1
                self._change.notify_all()


def default_threads() -> int:
    """Processors this process may use, less one for the server around the engine, at least one."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _check_sizes(context_length: int, slots: int, threads: int | None) -> None:
    if not 1 <= slots <= MAX_SLOTS:
        raise UsageError(f"{slots} slots: between 1 and {MAX_SLOTS} are served")
    if not 16 <= context_length <= MAX_CONTEXT:
        raise UsageError(f"a context of {context_length} tokens: between 16 and {MAX_CONTEXT} are served")
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"{threads} threads: between 1 and 1024 compute")


def server_parameters(path: str, *, context_length: int, slots: int, threads: int, embedding: bool) -> Any:
    """The settings of llama.cpp's server (``xllamacpp.CommonParams``), all but where it listens.

    Public so that a benchmark can run the same server on a port of its own and compare.
    """
    # Read once by the OpenMP runtime when it is loaded: its threads then sleep at a barrier instead of spinning,
    # which would starve the event loop (and everybody else) on a machine with few processors.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp  # noqa: PLC0415 -- 100 MB of native code: only for who opens this engine

    params = xllamacpp.CommonParams()
    params.verbosity = _SILENT
    params.model.path = path
    params.model_alias = {"model"}
    params.n_ctx = context_length * slots
    params.n_parallel = slots
    params.fit_params = False
    batch = min(max(context_length, MIN_BATCH), MAX_BATCH)
    params.n_batch = batch
    params.n_ubatch = batch if embedding else MIN_BATCH
    params.embedding = embedding
    if embedding:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads
        cpu.poll = 0
    params.use_jinja = True
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 0
    params.offline = True
    params.ui = False
    params.endpoint_slots = False
    params.n_threads_http = 1
    return params


def _start(params: Any, what: str) -> Any:
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
                todo="the file is damaged, or its architecture is not supported",
            ) from None
        listening = server.listening_address
        with suppress(FileNotFoundError):
            socket.unlink()
    if not listening.startswith("unix://"):
        raise InferenceError(f"llama.cpp listens on {listening}, which it must not")
    _compute_once(server, what)
    return server


def _compute_once(server: Any, what: str) -> None:
    # One token shows that the model computes. It also waits for the engine's loop: the server is handed out before
    # that runs, and one that is closed in between never ends.
    answer = _call(lambda: server.handle_completions({"prompt": "a", "max_tokens": 1, "cache_prompt": False}))
    if not isinstance(answer, Mapping) or "choices" not in answer:
        raise InferenceError(f"llama.cpp loads {what}, but does not compute with it")


def _call(handle: Callable[[], Any]) -> Any:
    try:
        return handle()
    except MemoryError:
        raise InferenceError("the engine is out of memory") from None
    except Exception as error:
        # C++ exceptions arrive as many Python types, all while the request is read: a chat template that refuses
        # it, a field of the wrong form.
        raise RequestRefused(f"The engine refuses the request: {str(error)[:300]}") from None
