"""A sealed question to a sealed model: the whole way, on one machine (`make demo`).

A key broker and an inference workload run as processes of their own; this program is the owner, the client and, at the
end, the attacker. Between client and workload stands a relay that records what the network sees.
"""

# ruff: noqa: E402
from __future__ import annotations

import signal

# Until main() can stop things in order, Ctrl-C just ends the program: no traceback out of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import json
import logging
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table

import cloister
from cloister.errors import CloisterError
from cloister.inference.demo_model import demo_model
from deployment import KEY_URI, CommandFailedError, Deployment, deployment
from recording_proxy import RecordingProxy, split_requests

QUESTION = "What are the symptoms of diabetes?"
console = Console(highlight=False)


def step(number: int, title: str) -> None:
    console.print(f"\n[bold cyan]{number}[/]  [bold]{title}[/]")


def fact(text: str, indent: int = 3) -> None:
    """One line of rich markup; where the terminal is narrow its continuation is indented too."""
    console.print(Padding(text, (0, 0, 0, indent), expand=False))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--question", default=QUESTION)
    arguments.add_argument("--folder", type=Path, default=Path(".demo"), help="kept between runs")
    options = arguments.parse_args()
    logging.getLogger("cloister").setLevel(logging.ERROR)  # the red panel below says it for all of them
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    with deployment(options.folder / "deployment", demo_model()) as it:
        try:
            run(it, options.question)
        except CommandFailedError as error:
            console.print(str(error), style="red", markup=False)
            sys.exit(1)
        except CloisterError as error:
            console.print(str(error), style="red", markup=False)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            console.print("\nstopped")
            sys.exit(130)
    console.print(
        f"\n[dim]{time.monotonic() - began:.1f} s, all processes stopped. What was made is kept in {it.root}.[/]"
    )


def run(it: Deployment, question: str) -> None:
    console.print(
        Panel(
            "SIMULATED TEE\nReal quotes, real verification, under a root made on this machine.\n"
            "Nothing here is protected from whoever owns this machine.",
            style="bold white on red",
        )
    )
    step(1, "The owner seals the model, and hands key and rule to the broker")
    with console.status("preparing"):
        prepare(it)
    sealed = sorted(path for path in it.sealed.iterdir())
    for path in sealed:
        name = path.name if len(path.name) < 24 else f"{path.name[:12]}….sealed"
        fact(f"{name}: {path.stat().st_size:,} bytes, begins {path.read_bytes()[:8].hex(' ')}")
    fact(f"rule: [green]{KEY_URI}[/] leaves the broker only for what {it.policy.name} measures")

    step(2, "A key broker starts, and an inference workload that has only the sealed model")
    with console.status("starting"):
        broker = it.start_broker()
        fact(f"broker     {broker.url}  (process {broker.process.pid})")
        inference = it.start_inference(broker.url)
        fact(f"inference  {inference.url}  (process {inference.process.pid})")
    for line in released(it):
        fact(line)

    address = urlsplit(inference.url)
    assert address.hostname is not None
    assert address.port is not None
    with RecordingProxy((address.hostname, address.port)) as network:
        step(3, "The client verifies the workload before it sends anything")
        http = cloister.connect(network.url, policy=it.policy)
        show_checks(http)
        step(4, "It asks, sealed; the answer streams back, sealed")
        ask(it, http, network.url, question)
        step(5, "What the network in between saw")
        captured = show_network(network, question)
    step(6, "Three attacks")
    attack_tampered_model(it, broker.url)
    attack_other_measurement(it, broker.url)
    attack_replay(inference.url, captured)
    http.close()


def prepare(it: Deployment) -> None:
    it.root.mkdir(parents=True, exist_ok=True)
    it.prepare()
    it.write_policies()
    handed = it.root / "rule-in-broker"  # written last: an interrupted run is repeated, not believed
    if not handed.exists() or handed.read_bytes() != it.policy.read_bytes():
        it.fill_broker()
        handed.write_bytes(it.policy.read_bytes())


def released(it: Deployment) -> list[str]:
    """What the broker wrote into its audit log for this start."""
    release = [entry for entry in it.audited() if entry["event"] == "release"][-1]
    return [
        f"[green]key released[/] {release['resource']} to measurements {release['measurements'][:16]}…",
        f"[dim]by rule {release['policy'][:16]}…, for the workload's key {release['tee_key'][:16]}…[/]",
    ]


def show_checks(http: cloister.SealedClient) -> None:
    result = http.attestation
    assert result is not None
    table = Table(box=None, padding=(0, 1), show_header=False)
    for check in result.checks:
        table.add_row(" ", f"[green]{check.number}[/]", check.name, "[green]✓[/]", f"[dim]{check.outcome}[/]")
    console.print(table)
    for name, payload in result.claims.events.items():
        fact(f"[dim]{name}[/] {payload.hex()[:32]}…")


def ask(it: Deployment, http: cloister.SealedClient, url: str, question: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=it.api_key, http_client=http)
    fact(f"[bold]> {escape(question)}[/]")
    began = first = time.monotonic()
    tokens = 0
    stream = client.chat.completions.create(
        model=it.model_name,
        messages=[{"role": "user", "content": question}],
        stream=True,
        max_tokens=160,
        temperature=0,
        stream_options={"include_usage": True},
    )
    console.print("   ", end="")
    for chunk in stream:
        text = (chunk.choices[0].delta.content or "") if chunk.choices else ""
        if text and not tokens:
            first = time.monotonic()
            tokens = 1
        console.print(text, end="", markup=False, soft_wrap=True)
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    console.print()
    took = time.monotonic() - began
    fact(
        f"[dim]first words after {1000 * (first - began):.0f} ms, {tokens} tokens in {took:.1f} s; not medical advice[/]"
    )


def show_network(network: RecordingProxy, question: str) -> tuple[bytes, bytes]:
    """Print sizes and first bytes; return the sealed request for the replay."""
    captured: tuple[bytes, bytes] | None = None
    # A few letters are in any fifty thousand random bytes: a short question is looked for as JSON would carry it.
    needle = question.encode() if len(question) >= 8 else f'"content":{json.dumps(question)}'.encode()
    for recording in network.recordings:
        everything = bytes(recording.sent) + b"".join(recording.received)
        if needle in everything:
            raise AssertionError("the question was seen in the clear")
        for head, body in split_requests(bytes(recording.sent)):
            line = head.split(b" HTTP/")[0].decode()
            fact(f"→ {line}: {len(body):,} bytes, begins {body[:8].hex(' ')}")
            if b"ohttp-gateway" in head:
                captured = (head, body)
        fact(f"← {sum(map(len, recording.received)):,} bytes in {len(recording.received)} pieces")
    fact("the question was searched for in all of it, and is not there")
    assert captured is not None
    return captured


def refused(title: str, line: str) -> None:
    fact(f"[bold]{title}[/]")
    fact(f"[green]refused[/]: {escape(line)}", indent=5)


def attack_tampered_model(it: Deployment, broker_url: str) -> None:
    """One bit of the sealed model is flipped on the host's disk."""
    tampered = it.root / "host" / "tampered.sealed"
    shutil.rmtree(tampered, ignore_errors=True)
    shutil.copytree(it.sealed, tampered)
    largest = max(
        (path for path in tampered.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    with largest.open("r+b") as file:
        file.seek(largest.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    try:
        options = [tampered if option == it.sealed else option for option in it.measured_options()]
        it.start_with(options, broker_url, "tampered.log")
    except CommandFailedError as error:
        refused("the host flips one bit of the sealed model", f"{error.line} (exit {error.code})")
    else:
        raise AssertionError("a tampered model was served")
    finally:
        shutil.rmtree(tampered, ignore_errors=True)


def attack_other_measurement(it: Deployment, broker_url: str) -> None:
    """The operator launches the workload with another configuration, so it measures otherwise."""
    try:
        it.start_with([*it.measured_options(), "--context", "256"], broker_url, "other.log")
    except CommandFailedError as error:
        refused(
            "another workload (other configuration) asks for the key", f"{error.line} (exit {error.code})"
        )
    else:
        raise AssertionError("a key was released to another measurement")


def attack_replay(url: str, captured: tuple[bytes, bytes]) -> None:
    """The recorded request is sent again, byte for byte."""
    head, body = captured
    names = ("content-type", "accept", "incremental", "cloister-replica")
    fields = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n")[1:])
    again = {name: value for name, value in fields.items() if name.lower() in names}
    answer = httpx2.post(f"{url}/.well-known/ohttp-gateway", content=body, headers=again)
    assert answer.status_code >= 400, "a replayed request was answered"
    problem = answer.json()
    refused(
        "the recorded request is sent again", f"{answer.status_code} {problem['title']} ({problem['type']})"
    )


if __name__ == "__main__":
    main()
