"""The how-tos for "my model", "my data set", "my training script", "my FastAPI app" and any OpenAI program work."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from llama_models import write_llama
from ports import free_port
from training_data import CANARY, write_answers, write_claims
from training_site import ISOLATION, PROJECT, TRAINING, assert_nothing_plain

PAGES = PROJECT / "docs" / "how-to"
PORTS = ("8000", "8090", "8100", "8443", "8788", "8789")


def follow(page: str, folder: Path) -> str:
    """Do what the page says, in ``folder``, on ports and paths that are free here; all that was said."""
    text = (PAGES / page).read_text()
    for port in PORTS:
        text = re.sub(rf"(?<=[^0-9]){port}(?=[^0-9])", str(free_port()), text)
    text = re.sub(r"(?<=[ \"])/workload/", f"{folder}/workload/", text)
    text = text.replace("[network]\n", f"{ISOLATION}\n[network]\n")
    script = ["set -euo pipefail"]
    for language, block in re.findall(r"```(console|python)\n(.*?)```", text, re.DOTALL):
        script.append(block if language == "console" else f"python <<'END-OF-BLOCK'\n{block}END-OF-BLOCK")
    script.append("echo THE-END")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (folder / "log").open("w+") as log:
        shell = subprocess.Popen(
            ["bash", "-c", "\n".join(script)],
            cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            shell.wait(280)
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing was left running
                os.killpg(shell.pid, signal.SIGKILL)
        log.seek(0)
        said = log.read()
    assert "THE-END" in said, said[-4000:]
    assert "Traceback" not in said
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_my_model_is_sealed_served_and_answers(folder: Path) -> None:
    said = follow("my-model.md", folder)
    assert len(said.split("THE-END")[0].splitlines()[-1]) > 20
    assert not list(folder.rglob("*.gguf"))


def test_any_openai_program_is_answered_through_the_local_proxy(folder: Path) -> None:
    said = follow("any-openai-program.md", folder)
    assert "data: [DONE]" in said
    assert '"verified":true' in said
    assert "SIMULATED: nothing is protected" in said
    assert len(said.split("THE-END")[0].splitlines()[-1]) > 20
    assert (folder / "proxy.key").read_text().strip() not in said


def test_private_documents_are_found_by_who_has_the_key(folder: Path) -> None:
    said = follow("private-documents.md", folder)
    assert "Who cannot breathe? → lungs.md ('Lungs', 'Asthma') Asthma makes breathing hard." in said
    assert "How much aspirin? → doses.csv" in said
    assert "Removed(there=True, copies=0)" in said
    assert b"inhaler" not in (folder / "documents.index").read_bytes()


def test_questions_over_documents_are_answered_to_who_may_ask(folder: Path) -> None:
    said = follow("knowledge-service.md", folder)
    assert "lungs.md: added" in said
    assert "[1] Lungs (lungs.md)" in said
    assert "The documents do not answer this." in said
    assert "1 lungs.md ['Lungs', 'Asthma'] Asthma makes breathing hard." in said
    assert said.count("the receipt holds") == 2
    assert "doses.csv: removed; no other copy is left" in said
    assert_nothing_plain(folder / "documents.tree", b"inhaler", b"lungs.md", b"SQLite format")
    for key in (folder / "keys").iterdir():
        assert key.read_text().strip() not in said


def test_the_page_is_opened_by_its_address_and_by_nothing_else(folder: Path) -> None:
    said = follow("chat-page.md", folder)
    assert said.split("THE-END")[0].split()[-2:] == ["200", "404"]


def test_my_training_script_trains_on_what_is_sealed_and_leaves_nothing_in_the_clear(folder: Path) -> None:
    write_llama(folder / "llama")
    write_answers(folder / "answers", 40)
    shutil.copy(TRAINING / "finetune_lora.py", folder)
    assert "done: step 8" in follow("my-training-script.md", folder)
    assert_nothing_plain(
        folder / "finetuned.tree", CANARY.encode(), b"adapter_config", b"lora_A", b"trainer_state"
    )


def test_my_data_set_is_read_by_the_program_that_was_measured(folder: Path) -> None:
    write_claims(folder / "insurance", 1000)
    shutil.copy(TRAINING / "claims_report.py", folder)
    assert "1000 claims" in follow("my-data-set.md", folder)
    assert_nothing_plain(
        folder / "report.tree", CANARY.encode(), b"report.sqlite", b"SQLite format", b"2026-01"
    )


def test_my_fastapi_app_answers_attested_workloads_and_nobody_else(folder: Path) -> None:
    (folder / "report").mkdir()
    database = sqlite3.connect(folder / "report" / "report.sqlite")
    database.execute("CREATE TABLE report (region TEXT, month TEXT, claims INTEGER, paid REAL)")
    database.executemany("INSERT INTO report VALUES (?, '2026-01', 3, 12.5)", [("north",), (CANARY,)])
    database.commit()
    database.close()
    shutil.copytree(PROJECT / "examples" / "fastapi_app", folder / "app")
    said = follow("my-fastapi-app.md", folder)
    assert f'["north","{CANARY}"]' in said
    assert_nothing_plain(folder / "report.sealed", CANARY.encode(), b"SQLite format")
