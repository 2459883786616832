"""A small sealed service on a real socket, for tests: the simulated TEE, an OpenAI-shaped echo behind the gateway.

``running(...)`` starts uvicorn in a thread and yields a :class:`Service`; what the application was asked is in
``service.asked``. Every part is the product's own, but for the application.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import Policy, load_policy
from cloister.attester.launch import launch_events
from cloister.attester.simulated import SimulatedPlatform, SimulatedTee
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway

MODEL = "echo-1"


@dataclass
class Asked:
    """One request as the application saw it."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    sealed: dict[str, Any] | None
    client: object


@dataclass
class Service:
    """Everything behind one port."""

    url: str
    port: int
    policy: Policy
    keyring: KeyRing
    tee: SimulatedTee
    asked: list[Asked] = field(default_factory=list)
    disconnected: threading.Event = field(default_factory=threading.Event)


@functools.cache
def platform() -> SimulatedPlatform:
    """One simulated platform for a test run: making keys takes a moment."""
    return SimulatedPlatform.generate(now=int(time.time()))


def launched(program: bytes = b"\x01" * 32) -> SimulatedTee:
    """A TDX workload's TEE with a launch of its own."""
    return platform().tee("tdx", launch=launch_events(config=b"\x02" * 32, program=program, model_index=None))


def policy_for(tee: SimulatedTee) -> Policy:
    """A policy that pins exactly this launch under this platform's root."""
    return load_policy(policy_text(tee), name="test policy")


def policy_text(tee: SimulatedTee) -> str:
    """As :func:`policy_for`, for a file."""
    return draft_policy(
        tee="tdx",
        measurements=tee.measurements,
        events=tee.launch,
        min_tcb_evaluation_number=1,
        simulated_root=platform().root_sha256,
    )


def policy_file(folder: Path, tee: SimulatedTee) -> Path:
    """Likewise, in a file of ``folder``."""
    path = folder / "policy.toml"
    path.write_text(policy_text(tee))
    return path


@contextlib.contextmanager
def running(
    *,
    keyring: KeyRing | None = None,
    tee: SimulatedTee | None = None,
    answers: list[str] | None = None,
    pause: float = 0.0,
    **gateway: Any,
) -> Iterator[Service]:
    """Serve until the block ends. ``answers`` are the tokens of every completion, ``pause`` seconds apart."""
    tee = tee or launched()
    keyring = keyring or KeyRing(replica="replica-1")
    listener = listen()
    port = listener.getsockname()[1]
    service = Service(f"http://127.0.0.1:{port}", port, policy_for(tee), keyring, tee)
    app = echo_app(service, answers or ["Hel", "lo", " there", "."], pause)
    sealed = SealedGateway(app, keyring=keyring, evidence=EvidenceService(tee, keyring), **gateway)
    with serving(sealed, listener):
        yield service


def listen() -> socket.socket:
    """A listening socket on a free port. The protocol is named because asyncio switches Nagle's algorithm off
    only then; otherwise each answer waits 40 ms for a delayed acknowledgement."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


@contextlib.contextmanager
def serving(app: Any, listener: socket.socket) -> Iterator[None]:
    """Run any ASGI app under uvicorn on ``listener`` in a thread."""
    config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def echo_app(service: Service, answers: list[str], pause: float) -> Starlette:
    """OpenAI-shaped answers made of fixed tokens."""

    async def note(request: Request) -> dict[str, Any]:
        body = await request.body()
        service.asked.append(
            Asked(
                method=request.method,
                path=request.url.path,
                query=request.url.query,
                headers=dict(request.headers),
                body=body,
                sealed=request.scope.get("extensions", {}).get("cloister.sealed"),
                client=request.client,
            )
        )
        return json.loads(body) if request.headers.get("content-type") == "application/json" else {}

    def streamed(make: Any) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            try:
                for number, token in enumerate(answers):
                    if number and pause:
                        await asyncio.sleep(pause)
                    yield f"data: {json.dumps(make(token))}\n\n"
                yield "data: [DONE]\n\n"
            except asyncio.CancelledError:
                service.disconnected.set()
                raise

        return StreamingResponse(events(), media_type="text/event-stream")

    async def models(request: Request) -> Response:
        await note(request)
        return JSONResponse(
            {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "us"}]}
        )

    async def chat(request: Request) -> Response:
        asked = await note(request)
        common = {"id": "c1", "created": 1, "model": MODEL}
        if asked.get("stream"):
            return streamed(
                lambda token: {
                    **common,
                    "object": "chat.completion.chunk",
                    "choices": [
                        {"index": 0, "delta": {"role": "assistant", "content": token}, "finish_reason": None}
                    ],
                }
            )
        message = {"role": "assistant", "content": "".join(answers)}
        return JSONResponse(
            {
                **common,
                "object": "chat.completion",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {
                    "prompt_tokens": 1,
                    "completion_tokens": len(answers),
                    "total_tokens": 1 + len(answers),
                },
            }
        )

    async def completions(request: Request) -> Response:
        asked = await note(request)
        common = {"id": "t1", "created": 1, "model": MODEL, "object": "text_completion"}

        def choice(text: str) -> dict[str, Any]:
            return {
                **common,
                "choices": [{"index": 0, "text": text, "finish_reason": None, "logprobs": None}],
            }

        return streamed(choice) if asked.get("stream") else JSONResponse(choice("".join(answers)))

    async def embeddings(request: Request) -> Response:
        await note(request)
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return JSONResponse({"object": "list", "model": MODEL, "data": data, "usage": usage})

    async def responses(request: Request) -> Response:
        await note(request)
        content = [{"type": "output_text", "text": "".join(answers), "annotations": []}]
        output = [
            {"type": "message", "id": "m1", "status": "completed", "role": "assistant", "content": content}
        ]
        return JSONResponse(
            {
                "id": "r1",
                "object": "response",
                "created_at": 1,
                "model": MODEL,
                "status": "completed",
                "output": output,
                "parallel_tool_calls": False,
                "tool_choice": "auto",
                "tools": [],
            }
        )

    async def echo(request: Request) -> Response:
        await note(request)
        return Response(await request.body(), media_type="application/octet-stream")

    async def failing(request: Request) -> Response:
        await note(request)
        raise RuntimeError("a secret prompt in an exception")

    async def half(request: Request) -> Response:
        await note(request)

        async def parts() -> AsyncIterator[bytes]:
            yield b"half of "
            await asyncio.sleep(0.2)
            raise RuntimeError("broken in the middle")

        return StreamingResponse(parts())

    async def quarter(request: Request) -> Response:
        await note(request)

        async def parts() -> AsyncIterator[bytes]:
            yield b"a quarter of "
            raise RuntimeError("broken at once")

        return StreamingResponse(parts())

    async def healthz(request: Request) -> Response:
        return Response("alive")

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/responses", responses, methods=["POST"]),
            Route("/echo", echo, methods=["POST", "GET"]),
            Route("/failing", failing),
            Route("/half", half),
            Route("/quarter", quarter),
            Route("/healthz", healthz),
        ]
    )
