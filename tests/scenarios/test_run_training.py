"""Training under ``cloister run``: sealed inputs, sealed outputs, killed in the middle, resumed, and the adapter served."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloister as package
from cloister.errors import RolledBack
from deployment import cloister, start_service
from llama_models import write_llama
from run_site import Site, site
from tinyllamas_gguf import write_gguf
from training_data import CANARY, write_answers, write_claims, write_digits
from training_site import (
    assert_nothing_plain,
    kill_all,
    seal_and_forget,
    use_example,
    wait_for,
    wait_for_commit,
)

PLAIN = (
    CANARY.encode(), b"adapter_config", b"lora_A", b'"dtype"', b"trainer_state", b"__metadata__", b"SQLite format", b"PAR1",
)  # fmt: skip
"""What training data, checkpoints, safetensors, Parquet files and databases hold in the clear, and their names."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site")) as made:
        made.key("unused")  # the state is there before the broker is
        made.serve()
        yield made


@pytest.mark.timeout(300)
def test_fine_tuning_seals_its_checkpoints_survives_a_kill_and_its_adapter_is_served(
    place: Site, tmp_path: Path
) -> None:
    seal_and_forget(place, write_llama(tmp_path / "llama"), "base")
    seal_and_forget(place, write_answers(tmp_path / "answers", 160), "answers")
    place.key("finetuned")
    workload = use_example(place, "finetune", "finetune_lora.py")
    program = [
        "python", "finetune_lora.py", "--model", str(workload / "base"), "--data", str(workload / "data"),
        "--output", str(workload / "out"), "--steps", "60", "--save-steps", "5", "--batch", "16", "--length", "200",
    ]  # fmt: skip
    place.allow(program, *(f"kbs:///default/key/{name}" for name in ("base", "answers", "finetuned")))

    running = place.start(program)
    try:
        # Step 10: the first checkpoint is whole, and nobody synced it.
        said = wait_for(running, "'epoch': '1'")
        wait_for_commit(place.work / "finetuned.tree")
    finally:
        kill_all(running)
    assert "resuming" not in said
    assert_nothing_plain(place.work / "finetuned.tree", *PLAIN)

    resumed = place.run(program, timeout=200)
    assert resumed.returncode == 0, resumed.stderr
    found = re.search(r"resuming from checkpoint-(\d+)", resumed.stdout)
    assert found is not None, resumed.stdout
    assert 5 <= int(found[1]) < 60
    assert "done: step 60" in resumed.stdout
    assert_nothing_plain(place.work / "finetuned.tree", *PLAIN)
    assert not any(path.is_file() for path in workload.rglob("*"))

    (tmp_path / "story").mkdir()
    write_gguf(tmp_path / "story" / "story.gguf")
    seal_and_forget(place, tmp_path / "story", "story")
    _serve(place)


def _serve(place: Site) -> None:
    """The adapter out of the tree as training left it, its key released to this service."""
    options = [
        place.work / "story.sealed", "--adapter", place.work / "finetuned.tree", "--index-signer", place.signer,
        "--broker-policy", place.work / "broker-policy.toml", "--no-api-keys", "--simulated-tee", place.tee,
        "--slots", "1", "--context", "256",
    ]  # fmt: skip
    policy = place.root / "serve.toml"
    cloister("measure", "serve", *options, "--out", policy)
    state = ("--state", place.root / "state", "--passphrase-file", place.root / "passphrase")
    for name in ("story", "finetuned"):
        cloister("broker", "policy", f"kbs:///default/key/{name}", "--file", policy, *state)
    assert place.broker is not None
    words = ["serve", *options, "--broker", place.broker.url, "--port", "0", "--threads", "1"]
    service = start_service(words, place.root / "serve.log")
    try:
        with package.connect(service.url, policy=policy) as client:
            body = {"model": "story", "prompt": "What are the symptoms", "max_tokens": 20, "temperature": 0}
            answer = client.post(f"{service.url}/v1/completions", json=body)
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["text"]
    finally:
        service.stop()


def test_a_network_that_reads_digits_is_trained_on_sealed_images_and_resumes_after_a_kill_but_not_from_an_older_copy(
    place: Site, tmp_path: Path
) -> None:
    seal_and_forget(place, write_digits(tmp_path / "mnist", 1200, 300), "mnist")
    place.key("digits")
    workload = use_example(place, "digits", "digits.py")
    program = [
        "python", "digits.py", "--data", str(workload / "data"), "--output", str(workload / "out"), "--epochs", "6",
    ]  # fmt: skip
    place.allow(program, "kbs:///default/key/mnist", "kbs:///default/key/digits")
    running = place.start(program)
    try:
        wait_for(running, "epoch 3")
    finally:
        kill_all(running)
    old = shutil.copytree(place.work / "digits.tree", tmp_path / "old")
    done = place.run(program)
    assert done.returncode == 0, done.stderr
    found = re.search(r"resuming after epoch (\d)", done.stdout)
    assert found is not None, done.stdout
    # The fsync of epoch 3 made the rename of epoch 2 durable; that of epoch 3 itself may be lost, as POSIX has it.
    assert int(found[1]) >= 2
    accuracy = re.search(r"accuracy (0\.\d+|1\.0+) of 300", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.8
    assert_nothing_plain(place.work / "digits.tree", b"digits.pt", b"optimizer", b"archive/", b"digits/data")

    shutil.rmtree(place.work / "digits.tree")
    shutil.copytree(old, place.work / "digits.tree")
    done = place.run(program)
    assert done.returncode == RolledBack.exit_code
    assert "was recorded" in done.stderr
    assert "accuracy" not in done.stdout


def test_a_report_is_made_of_sealed_tables_as_parquet_csv_and_sqlite_and_nothing_of_it_is_on_the_disk(
    place: Site, tmp_path: Path
) -> None:
    seal_and_forget(place, write_claims(tmp_path / "insurance", 2000), "insurance")
    place.key("report")
    workload = use_example(place, "claims", "claims_report.py")
    program = [
        "python",
        "claims_report.py",
        "--data",
        str(workload / "data"),
        "--output",
        str(workload / "out"),
    ]
    place.allow(program, "kbs:///default/key/insurance", "kbs:///default/key/report")
    for _ in range(2):  # the second replaces what the first wrote
        done = place.run(program)
        assert done.returncode == 0, done.stderr
        assert "2000 claims" in done.stdout
        assert_nothing_plain(place.work / "report.tree", *PLAIN, b"report.sqlite", b"2026-01")
