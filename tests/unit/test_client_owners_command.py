"""`cloister owner page` as its own process: on this machine only, verified first, its address printed once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

import manifest_parts
from broker_parts import PATH, policy_for
from cloister.cli.owner import app
from cloister.cli.owner_page import opened
from cloister.errors import AppraisalRefused, NetworkError, UsageError
from cloister.manifest.storage import write_signed
from owners_bench import START, Deployed, deployed, reader
from owners_site import command


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Deployed]:
    with deployed(tmp_path / "state") as found:
        (tmp_path / "broker.toml").write_text(found.policy_text)
        write_signed(
            tmp_path / "v1.json",
            manifest_parts.signed(found.bench.genesis, *found.bench.genesis.owners),
            replace=False,
        )
        yield found


@contextmanager
def served(folder: Path, *words: str | Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The running command, and the first line that it printed."""
    process = subprocess.Popen(
        command("owner", "page", "--no-browser", "--json", "--port", "0", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_STATE_HOME": str(folder / "kept")},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, json.loads(line)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def options(site: Deployed, folder: Path) -> list[str | Path]:
    return ["--broker", site.url, "--manifest", folder / "v1.json", "--policy", folder / "broker.toml"]


def test_the_page_is_served_and_its_address_works_once(site: Deployed, tmp_path: Path) -> None:
    with served(tmp_path, *options(site, tmp_path)) as (process, said):
        assert said["page"].startswith("http://127.0.0.1:")
        secret = said["page"].rpartition("=")[2]
        assert secret.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        place = said["page"].partition("enter?")[0]
        with httpx2.Client() as browser, httpx2.Client() as other:
            assert browser.get(said["page"]).status_code == 200
            found = browser.get(f"{place}api/overview").json()
            assert other.get(said["page"]).status_code == 403
            assert other.get(f"{place}api/overview").status_code == 403
    assert found["summary"][0] == "open"
    kept = tmp_path / "kept" / "cloister" / "heads" / f"{site.bench.state.log}.json"
    assert json.loads(kept.read_bytes())["broker"] == site.url


def test_the_browser_is_sent_there_by_a_private_file_and_no_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    done: list[tuple[str, str]] = []
    there = threading.Event()

    def browse(address: str) -> bool:
        asked.append(address)
        file = Path(address.removeprefix("file://"))
        done.append((file.read_text(), oct(file.parent.stat().st_mode & 0o777)))
        there.set()
        return True

    monkeypatch.setattr("webbrowser.open", browse)
    with opened("http://127.0.0.1:1/place/enter?token=secret", wanted=True):
        assert there.wait(10)
    assert "secret" not in asked[0]
    ((text, mode),) = done
    assert "url=http://127.0.0.1:1/place/enter?token=secret" in text
    assert mode == "0o700"
    assert not Path(asked[0].removeprefix("file://")).exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--host", "0.0.0.0"], UsageError),  # noqa: S104 -- refused, which is the point
        (["--key", "a", "--ssh", "b"], UsageError),
        (["--broker", "http://127.0.0.1:9"], NetworkError),
    ],
    ids=["every interface", "two keys", "a broker that is not there"],
)
def test_it_is_refused_before_anything_is_served(
    site: Deployed, tmp_path: Path, words: list[str], error: type[Exception]
) -> None:
    given = [str(word) for word in (*options(site, tmp_path), "--no-browser", "--port", "0", *words)]
    assert isinstance(CliRunner().invoke(app, ["page", *given]).exception, error)


def test_a_broker_that_is_not_what_the_policy_says_gets_no_page(site: Deployed, tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text(policy_for(reader(), now=START))
    given = [str(word) for word in (*options(site, tmp_path), "--no-browser", "--port", "0")]
    assert isinstance(CliRunner().invoke(app, ["page", *given]).exception, AppraisalRefused)
    assert PATH not in CliRunner().invoke(app, ["page", *given]).output
