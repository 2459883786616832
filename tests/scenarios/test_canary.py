"""A marker in prompt, answer, model and keys appears nowhere that the host can look.

The whole deployment runs as processes over real sockets while loopback is captured. Afterwards the capture, every
file that the deployment wrote, every log, every command line and environment, and every error are searched.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

import cloister
from cloister.inference.demo_model import demo_model
from cloister.sealing.key_file import read_key
from deployment import Deployment, deployment
from loopback import LoopbackCapture


class Seen:
    """What was seen where: named haystacks of bytes."""

    def __init__(self) -> None:
        self.places: dict[str, bytes] = {}

    def search(self, needles: dict[str, bytes]) -> list[str]:
        return [
            f"{name} in {place}"
            for name, needle in needles.items()
            for place, hay in self.places.items()
            if needle in hay
        ]


def _forms(name: str, secret: bytes) -> dict[str, bytes]:
    """A secret as it could leak: raw, hexadecimal, base64, JSON-escaped."""
    return {
        name: secret,
        f"{name} (hex)": secret.hex().encode(),
        f"{name} (base64)": base64.b64encode(secret).rstrip(b"="),
        f"{name} (base64url)": base64.urlsafe_b64encode(secret).rstrip(b"="),
    }


def _processes() -> dict[str, bytes]:
    seen = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for what in ("cmdline", "environ"):
                try:
                    seen[f"/proc/{entry.name}/{what}"] = (entry / what).read_bytes()
                except OSError:
                    continue
    return seen


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, LoopbackCapture]]:
    root = tmp_path_factory.mktemp("canary") / "deployment"
    root.mkdir()
    with LoopbackCapture() as capture, deployment(root, demo_model()) as it:
        it.prepare()
        it.write_policies()
        it.fill_broker()
        yield it, capture


@pytest.mark.timeout(300)
def test_a_marker_in_prompt_answer_model_and_keys_appears_nowhere(
    running: tuple[Deployment, LoopbackCapture], caplog: pytest.LogCaptureFixture
) -> None:
    it, capture = running
    caplog.set_level("DEBUG")
    marker = f"canary-{secrets.token_hex(16)}"
    seen = Seen()

    broker = it.start_broker()
    service = it.start_inference(broker.url)
    seen.places |= _processes()
    http = cloister.connect(service.url, policy=it.policy)
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=it.api_key, http_client=http, max_retries=0)
    prompt = [{"role": "user", "content": f"What is asthma? {marker}"}]
    pieces = []
    for chunk in client.chat.completions.create(
        model=it.model_name, messages=prompt, stream=True, max_tokens=60, temperature=0
    ):
        pieces.append(chunk.choices[0].delta.content or "" if chunk.choices else "")
        seen.places |= _processes()
    answer = "".join(pieces)
    whole = client.chat.completions.create(model=it.model_name, messages=prompt, max_tokens=60, temperature=0)
    assert len(answer) > 40, "the model answered"
    assert whole.choices[0].message.content

    errors = []
    for kwargs in (
        {"model": "no-such-model", "messages": prompt},
        {"model": it.model_name, "messages": [{"role": "user", "content": f"{marker} " * 2000}]},
        {"model": it.model_name, "messages": prompt, "temperature": marker},
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**kwargs)
        errors.append(str(caught.value))
    seen.places["errors shown to the client"] = "\n".join(errors).encode()
    http.close()
    it.stop()

    owners = {it.owner, it.root / "passphrase", it.root / "api-keys"}
    for path in it.root.rglob("*"):
        if path.is_file() and not owners & {path, *path.parents}:
            seen.places[str(path.relative_to(it.root))] = path.read_bytes()
    seen.places["the test's own log"] = caplog.text.encode()
    streams = capture.streams()
    assert sum(map(len, streams)) > 20_000, "the capture saw the traffic"
    for number, stream in enumerate(streams):
        seen.places[f"loopback flow {number}"] = stream

    weights = demo_model().read_bytes()
    kek = read_key(it.owner / "model.key")
    needles = {
        "the prompt's marker": marker.encode(),
        **_forms("the API key", it.api_key.encode()),
        **_forms("the key-encryption key", kek),
        **_forms("the passphrase", (it.root / "passphrase").read_bytes().strip()),
        "the beginning of the answer": answer[:24].encode(),
        "the middle of the answer": answer[len(answer) // 2 : len(answer) // 2 + 24].encode(),
        **{
            f"the model's bytes at {offset}": weights[offset : offset + 32]
            for offset in range(4096, len(weights) - 32, len(weights) // 50)
            if len(set(weights[offset : offset + 32])) > 16  # not padding or text that says nothing
        },
    }
    assert seen.search(needles) == []


def test_the_search_would_find_a_leak() -> None:
    seen = Seen()
    seen.places["a log"] = json.dumps({"prompt": "canary-1234"}).encode()
    assert seen.search({"marker": b"canary-1234"}) == ["marker in a log"]
