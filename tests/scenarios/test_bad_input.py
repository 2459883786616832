"""Bad input, as an operator meets it: one clear line, the exit code of its class, nothing half-written."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

import cloister as package
from cloister.errors import AppraisalRefused, NetworkError, PolicyError
from cloister.inference.demo_model import demo_model
from deployment import KEY_URI, CommandFailedError, Deployment, cloister, deployment

USAGE, VERIFICATION, NETWORK, POLICY = 2, 3, 4, 5


@pytest.fixture(scope="module")
def it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    root = tmp_path_factory.mktemp("bad") / "deployment"
    root.mkdir()
    with deployment(root, demo_model()) as running:
        running.prepare()
        running.write_policies()
        running.fill_broker()
        yield running


def _largest(directory: Path) -> Path:
    return max((path for path in directory.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)


def _missing(directory: Path) -> None:
    _largest(directory).unlink()


def _truncated(directory: Path) -> None:
    victim = _largest(directory)
    with victim.open("r+b") as file:
        file.truncate(victim.stat().st_size - 1)


def _foreign(directory: Path) -> None:
    _largest(directory).write_bytes(b"this is not a sealed file" * 100)


def _no_index(directory: Path) -> None:
    (directory / "index.json").unlink()


def _edited_index(directory: Path) -> None:
    index = directory / "index.json"
    index.write_bytes(index.read_bytes().replace(b'"version":', b'"version": '))


def _one_more_file(directory: Path) -> None:
    (directory / "unlisted").write_bytes(b"x")


@pytest.mark.parametrize("damage", [_missing, _truncated, _foreign, _no_index, _edited_index, _one_more_file])
def test_a_damaged_sealed_directory_is_refused_and_nothing_is_written(
    it: Deployment, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    sealed = tmp_path / "sealed"
    shutil.copytree(it.sealed, sealed)
    damage(sealed)
    with pytest.raises(CommandFailedError) as caught:
        cloister(
            "unseal", sealed, "--key-file", it.owner / "model.key", "--signer", it.signer(),
            "--out", tmp_path / "plain",
        )  # fmt: skip
    assert caught.value.code in (USAGE, VERIFICATION)
    assert len(caught.value.line.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sealed"]


def test_a_seal_that_cannot_finish_leaves_nothing(it: Deployment, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("/etc/passwd")
    with pytest.raises(CommandFailedError) as caught:
        cloister(
            "seal", tmp_path / "in", "--key", KEY_URI, "--key-file", it.owner / "model.key",
            "--sign-key", it.owner / "index.key", "--out", tmp_path / "out",
        )  # fmt: skip
    assert len(caught.value.line.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_serving_with_what_is_wrong_ends_before_it_listens(it: Deployment, tmp_path: Path) -> None:
    options = it.measured_options()
    unreachable = "http://127.0.0.1:9"
    with pytest.raises(CommandFailedError, match="network: ") as caught:
        it.start_with(options, unreachable, "unreachable.log")
    assert caught.value.code == NETWORK

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(CommandFailedError, match=f"port {port} of 127.0.0.1 is taken") as caught:
            it.start_with(options, unreachable, "taken.log", port=port)
        assert caught.value.code == NETWORK

    for text, words in {
        "": "policy",
        "nonsense = 1": "policy",
        "unknown = 1\n" + it.broker_policy.read_text(): "unknown",
    }.items():
        wrong = tmp_path / "wrong.toml"
        wrong.write_text(text)
        with pytest.raises(CommandFailedError, match=words) as caught:
            cloister("measure", "serve", *_with(options, it.broker_policy, wrong), "--simulated-tee", it.tee)
        assert caught.value.code == USAGE

    another = tmp_path / "another.toml"
    another.write_text(it.policy.read_text())  # a policy for the inference workload, not for the broker
    broker = it.start_broker()
    with pytest.raises(CommandFailedError, match="appraisal: ") as caught:
        it.start_with(_with(options, it.broker_policy, another), broker.url, "wrong-broker.log")
    assert caught.value.code == POLICY


def test_a_client_with_what_is_wrong_is_told_so(it: Deployment, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="does not answer"):
        package.connect("http://127.0.0.1:9", policy=it.policy)
    with pytest.raises(PolicyError):
        package.connect("http://127.0.0.1:9", policy=tmp_path / "none.toml")
    service = it.start_inference(it.start_broker().url)
    with pytest.raises(AppraisalRefused):
        package.connect(service.url, policy=it.broker_policy)
    with package.connect(service.url, policy=it.policy) as http:
        client = openai.OpenAI(
            base_url=f"{service.url}/v1", api_key=it.api_key, http_client=http, max_retries=0
        )
        with pytest.raises(openai.NotFoundError, match="no-such-model"):
            client.chat.completions.create(
                model="no-such-model", messages=[{"role": "user", "content": "hi"}]
            )
        assert [model.id for model in client.models.list()] == [it.model_name]


def _with(options: list[str | Path], old: Path, new: Path) -> list[str | Path]:
    return [new if option == old else option for option in options]
