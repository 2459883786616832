"""`cloister bench` against a real sealed service, and against what cannot be measured: its figures and its exit codes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app_server import served
from cloister.inference.api_errors import overloaded
from cloister.inference.api_keys import ApiKeys
from cloister.inference.app import create_app
from cloister.inference.demo_model import demo_model
from deployment import CLOISTER, Deployment, Service, deployment
from scripted_engine import ScriptedEngine

KEY = "sk-" + "k" * 40
QUICK = ("--streams", "1,2", "--duration", "1s", "--prompt-tokens", "32", "--tokens", "8", "--json")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Service]]:
    root = tmp_path_factory.mktemp("bench") / "deployment"
    root.mkdir()
    with deployment(root, demo_model(), serve_options=("--slots", "2")) as it:
        it.prepare()
        it.write_policies()
        it.fill_broker()
        yield it, it.start_inference(it.start_broker().url)


def bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [CLOISTER, "bench", *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def key_file(folder: Path, key: str) -> Path:
    path = folder / "key"
    path.touch(mode=0o600)
    path.write_text(f"# mine\n{key}\n")
    return path


def test_a_sealed_service_is_verified_and_measured(
    running: tuple[Deployment, Service], tmp_path: Path
) -> None:
    it, service = running
    page = tmp_path / "report.html"
    key = key_file(tmp_path, it.api_key)
    done = bench(service.url, "--policy", it.policy, "--api-key-file", key, "--out", page, *QUICK)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["way"] == "sealed"
    assert told["model"] == it.model_name
    assert [row["streams"] for row in told["rows"]] == [1, 2]
    for row in told["rows"]:
        assert row["errors"] == {}
        assert row["tokens_per_second"] > 0
        assert row["first"]["p50"] <= row["first"]["p95"] <= row["first"]["p99"]
        assert 16 <= row["prompt_tokens"] <= 64  # about as many as were asked for
    assert "<svg" in page.read_text()
    assert it.api_key not in done.stdout + done.stderr + page.read_text()


def test_another_workload_than_the_policy_names_is_not_measured(
    running: tuple[Deployment, Service], tmp_path: Path
) -> None:
    it, service = running
    key = key_file(tmp_path, it.api_key)
    done = bench(service.url, "--policy", it.broker_policy, "--api-key-file", key, *QUICK)
    assert done.returncode == 5
    assert json.loads(done.stderr.splitlines()[-1])["layer"] == "appraisal"


def test_a_wrong_key_is_one_line_and_a_usage_error(
    running: tuple[Deployment, Service], tmp_path: Path
) -> None:
    it, service = running
    done = bench(service.url, "--policy", it.policy, "--api-key-file", key_file(tmp_path, KEY), *QUICK)
    assert done.returncode == 2
    assert "API key" in json.loads(done.stderr.splitlines()[-1])["error"]


def test_a_plain_server_is_measured_when_it_is_said_to_be_plain(tmp_path: Path) -> None:
    app = create_app(ScriptedEngine(["a"] * 8), model_name="m", api_keys=ApiKeys([KEY]))
    with served(app) as url:
        done = bench(url, "--plain", "--api-key-file", key_file(tmp_path, KEY), *QUICK)
        unsaid = bench(url, "--api-key-file", key_file(tmp_path, KEY), *QUICK)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"][0]["tokens"] > 0
    assert unsaid.returncode == 2


def test_a_dead_port_is_a_network_failure() -> None:
    done = bench("http://127.0.0.1:9", "--plain", *QUICK)
    assert done.returncode == 4
    assert json.loads(done.stderr)["layer"] == "network"


def test_a_service_without_room_is_a_network_failure_and_not_hammered() -> None:
    engine = ScriptedEngine([], error=overloaded(3))
    with served(create_app(engine, model_name="m", api_keys=ApiKeys.nobody_asks())) as url:
        done = bench(url, "--plain", *QUICK)
    assert done.returncode == 4
    assert "503" in json.loads(done.stderr)["error"]
    assert len(engine.asked) == 1


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path, KEY)
    path.chmod(0o644)
    assert bench("http://127.0.0.1:9", "--plain", "--api-key-file", path, *QUICK).returncode == 2
