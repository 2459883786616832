"""A server process with an engine that costs next to nothing and paces tokens as llama.cpp does: for server_path.py.

Usage: paced_engine.py SLOTS RATE WORKING [SERVER]. Each request has a thread of its own, which wakes RATE times a second
(all at the same moments, as the slots of one batch do), parses one chunk of JSON bytes and hands it on. WORKING seconds pass
before the first. SERVER is what uvicorn is told: `h11`, `httptools`, `httptools+uvloop`. Two ports, plain and sealed, one
application. Prints one JSON line; then answers each line of standard input with the processor seconds and tokens so far.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import uvicorn

from cloister.appraisal.draft import draft_policy
from cloister.attester.launch import launch_events
from cloister.attester.simulated import SimulatedPlatform
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway
from cloister.cli.serving import take_port
from cloister.inference.api_keys import ApiKeys
from cloister.inference.app import create_app
from cloister.inference.engines import EngineStats, Kind, Sink

KEY = "sk-" + "b" * 32
HEAD = b'{"choices":[{"finish_reason":null,"index":0,"delta":'
TAIL = (
    b'}],"created":1764000000,"id":"chatcmpl-0123456789abcdef0123456789abcdef","model":"m",'
    b'"system_fingerprint":"b1-0000000","object":"chat.completion.chunk"}'
)


class PacedEngine:
    """See the module. ``max_tokens`` tokens of four letters for everybody."""

    context_length, embedding_length, tools = 1 << 20, None, False

    def __init__(self, slots: int, rate: float, working: float) -> None:
        self.slots, self._rate, self._working = slots, rate, working
        self.tokens = 0
        self._epoch = time.monotonic()
        self._lock = threading.Lock()

    def generate(
        self, kind: Kind, request: Mapping[str, Any], sink: Sink, *, tenant: bytes | None = None
    ) -> None:
        time.sleep(self._working)
        sink(msgspec.json.decode(HEAD + b'{"role":"assistant","content":null}' + TAIL))
        chunk = HEAD + b'{"content":" word"}' + TAIL
        wanted = int(request.get("max_tokens", 16))
        for number in range(wanted):
            if number:
                now = time.monotonic() - self._epoch
                time.sleep(1 / self._rate - now % (1 / self._rate))
            with self._lock:
                self.tokens += 1
            if sink(msgspec.json.decode(chunk)):
                return
        last = msgspec.json.decode(HEAD.replace(b"null", b'"length"') + b"{}" + TAIL)
        sink(last)
        usage = {"prompt_tokens": 8, "completion_tokens": wanted, "total_tokens": 8 + wanted}
        sink(last | {"choices": [], "usage": usage})

    def embed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        raise AssertionError

    def stats(self) -> EngineStats:
        return EngineStats(running=0, prompt_tokens=0, cached_tokens=0, completion_tokens=self.tokens)

    def close(self) -> None:
        pass


def alone(slots: int, rate: float, seconds: float) -> float:
    """Processor seconds of a token when nobody takes it: what the engine itself costs."""
    engine = PacedEngine(slots, rate, 0.0)
    request = {"max_tokens": int(rate * seconds)}
    began = time.process_time()
    threads = [
        threading.Thread(target=engine.generate, args=("chat", request, lambda _: False))
        for _ in range(slots)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.process_time() - began) / engine.tokens


def main() -> None:
    slots, rate, working = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    http, _, loop = (sys.argv[4] if len(sys.argv) > 4 else "auto").partition("+")
    engine = PacedEngine(slots, rate, working)
    idle = alone(slots, rate, 1.0)
    app = create_app(engine, model_name="m", api_keys=ApiKeys([KEY]))
    now = int(time.time())
    platform = SimulatedPlatform.generate(now=now)
    events = launch_events(config=b"\x02" * 32, program=b"\x01" * 32, model_index=None)
    tee = platform.tee("tdx", launch=events)
    policy = draft_policy(
        tee="tdx",
        measurements=tee.measurements,
        events=events,
        min_tcb_evaluation_number=1,
        simulated_root=platform.root_sha256,
    )
    keyring = KeyRing(replica="replica-0")
    gateway = SealedGateway(app, keyring=keyring, evidence=EvidenceService(tee, keyring), max_open=1024)

    async def either(scope: Any, receive: Any, send: Any) -> None:
        sealed = scope["type"] == "lifespan" or scope["server"][1] == ports["sealed"]
        await (gateway if sealed else app)(scope, receive, send)

    sockets = {name: take_port("127.0.0.1", 0) for name in ("plain", "sealed")}
    ports = {name: taken.getsockname()[1] for name, taken in sockets.items()}
    config = uvicorn.Config(
        either, access_log=False, log_level="error", server_header=False, date_header=False,
        http=http, loop=loop or "auto", timeout_keep_alive=65, ws="none",
    )  # fmt: skip
    server = uvicorn.Server(config)
    where = {name: f"http://127.0.0.1:{port}/" for name, port in ports.items()}

    def answer() -> None:
        while not server.started:
            time.sleep(0.01)
        print(json.dumps({**where, "policy": policy, "key": KEY, "idle": idle}), flush=True)
        for _ in sys.stdin:
            print(json.dumps({"cpu": time.process_time(), "tokens": engine.tokens}), flush=True)
        server.should_exit = True

    threading.Thread(target=answer, daemon=True).start()
    server.run(sockets=list(sockets.values()))


if __name__ == "__main__":
    main()
