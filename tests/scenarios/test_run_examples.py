"""The examples as programs of their own: they work without Cloister, and not one line of theirs is about it."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from cloister.workload.configuration import read_workload
from llama_models import write_llama
from ports import free_port
from training_data import write_answers, write_claims, write_digits

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAMS = sorted([*(EXAMPLES / "training").glob("*"), *(EXAMPLES / "fastapi_app").glob("*")])


def _run(script: str, *arguments: str | Path, home: Path) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "training" / script, *arguments],
        capture_output=True, text=True, timeout=280, check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", [path for path in PROGRAMS if path.is_file()], ids=lambda path: path.name)
def test_a_program_has_not_one_line_about_cloister(program: Path) -> None:
    assert not re.search(r"cloister|sealed|kbs:", program.read_text(), re.IGNORECASE)


def test_there_are_programs() -> None:
    assert {"finetune_lora.py", "digits.py", "claims_report.py", "app.py"} <= {path.name for path in PROGRAMS}


@pytest.mark.parametrize("path", sorted((EXAMPLES / "workloads").glob("*.toml")), ids=lambda path: path.name)
def test_an_example_workload_says_what_it_may_say(path: Path) -> None:
    assert read_workload(path).file.signers


def test_fine_tuning_makes_an_adapter_and_goes_on_from_its_last_whole_checkpoint(tmp_path: Path) -> None:
    base, data, out = write_llama(tmp_path / "base"), write_answers(tmp_path / "data", 60), tmp_path / "out"
    options = (
        "--model",
        base,
        "--data",
        data,
        "--output",
        out,
        "--batch",
        "4",
        "--length",
        "64",
        "--save-steps",
        "3",
    )
    said = _run("finetune_lora.py", *options, "--steps", "6", home=tmp_path)
    assert "done: step 6" in said
    assert "resuming" not in said
    (out / "checkpoint-9").mkdir()
    (out / "checkpoint-9" / "adapter_config.json").write_text("the rest was never written")
    said = _run("finetune_lora.py", *options, "--steps", "9", home=tmp_path)
    assert "resuming from checkpoint-6" in said
    assert "done: step 9" in said
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_digits_are_learned_and_training_goes_on_after_the_last_epoch(tmp_path: Path) -> None:
    data, out = write_digits(tmp_path / "data"), tmp_path / "out"
    said = _run("digits.py", "--data", data, "--output", out, "--epochs", "2", home=tmp_path)
    assert said.count("epoch ") == 2
    said = _run("digits.py", "--data", data, "--output", out, "--epochs", "5", home=tmp_path)
    assert "resuming after epoch 2" in said
    found = re.search(r"accuracy (0\.\d+|1\.0+) of 500", said)
    assert found is not None
    assert float(found[1]) > 0.8


def test_the_report_adds_up(tmp_path: Path) -> None:
    import pandas as pd

    data, out = write_claims(tmp_path / "data"), tmp_path / "out"
    said = _run("claims_report.py", "--data", data, "--output", out, home=tmp_path)
    claims = pd.read_parquet(data / "claims.parquet")
    report = pd.read_parquet(out / "report.parquet")
    assert report["claims"].sum() == len(claims) == 5000
    assert report["paid"].sum() == pytest.approx(claims["amount"].sum(), abs=1)
    assert f"{len(claims)} claims" in said
    with sqlite3.connect(out / "report.sqlite") as database:
        assert database.execute("SELECT COUNT(*) FROM outliers").fetchone() == (20,)
    database.close()


def _certificate(folder: Path) -> None:
    """A new key and a certificate for itself."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=20,
    )  # fmt: skip


class Application:
    """The application under ``command``, over mutual TLS with the files of ``folder``."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.folder = folder
        database = sqlite3.connect(folder / "report.sqlite")
        database.execute("CREATE TABLE report (region TEXT, month TEXT, claims INTEGER, paid REAL)")
        database.execute("INSERT INTO report VALUES ('north', '2026-01', 3, 12.5)")
        database.commit()
        database.close()
        _certificate(folder)
        self.certificate, self.key = str(folder / "cert.pem"), str(folder / "key.pem")
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=EXAMPLES / "fastapi_app",
            env={
                "PATH": os.environ["PATH"], "REPORT": str(folder / "report.sqlite"), "UVICORN_PORT": str(self.port),
                "UVICORN_SSL_CERTFILE": self.certificate, "UVICORN_SSL_KEYFILE": self.key,
                "UVICORN_SSL_CA_CERTS": self.certificate, "UVICORN_SSL_CERT_REQS": "2",
                "PYTHONDONTWRITEBYTECODE": "1", "RELOAD_SECONDS": "0.1",
            },
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def known(self) -> ssl.SSLContext:
        """Of a client that shows the certificate that lies there now."""
        context = ssl.create_default_context(cafile=self.certificate)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def get(self, path: str, context: ssl.SSLContext) -> object:
        with urllib.request.urlopen(
            f"https://127.0.0.1:{self.port}{path}", context=context, timeout=10
        ) as answer:
            return json.load(answer)

    def wait(self) -> None:
        """Until it answers who is known now."""
        end = time.monotonic() + 60
        while True:
            try:
                assert self.get("/regions", self.known()) == ["north"]
                return
            except OSError:
                assert time.monotonic() < end, "the application does not listen"
                time.sleep(0.1)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.mark.parametrize("command", [("-m", "uvicorn", "app:app"), ("serve.py",)], ids=["uvicorn", "serve"])
def test_the_application_answers_over_mutual_tls_that_the_environment_alone_configures(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    application = Application(tmp_path, *command)
    try:
        application.wait()
        known, nobody = application.known(), ssl.create_default_context(cafile=application.certificate)
        assert application.get("/regions/north", known) == [{"month": "2026-01", "claims": 3, "paid": 12.5}]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            application.get("/regions/atlantis", known)
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            application.get("/regions", nobody)
    finally:
        application.stop()


def test_the_application_goes_on_with_the_next_certificate_when_the_first_one_is_replaced(
    tmp_path: Path,
) -> None:
    application = Application(tmp_path, "serve.py")
    try:
        application.wait()
        before = application.known()
        _certificate(tmp_path)
        application.wait()
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            application.get("/regions", before)
    finally:
        application.stop()
