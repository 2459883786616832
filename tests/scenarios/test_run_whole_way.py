"""``cloister run``: an unmodified program gets what was promised, over real processes, and nothing more than that."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.sealing.key_file import read_key
from cloister.workload.gramine import gramine_key
from run_site import Site, site

SECRET = "hub-token-canary-7f3a"
PLAIN = "patient 4711 has asthma"

CONFIGURATION = """
[[restore]]
source = "model.sealed"
path = "/models/whole-way"
[[mount]]
source = "data.sealed"
path = "/data/set"
[[mount]]
source = "out.tree"
path = "/out"
write = true
key = "kbs:///default/key/out"
[[secret]]
resource = "kbs:///default/secret/token"
file = "token"
env = "HF_TOKEN_PATH"
"""
PROGRAM = """
import json, os, sqlite3, sys
from pathlib import Path

model = Path("/models/whole-way/weights.bin").read_bytes()
notes = Path("/data/set/notes.txt").read_text()
token = Path(os.environ["HF_TOKEN_PATH"]).read_text()
Path("/out/result.txt").write_text(notes.upper())
database = sqlite3.connect("/out/runs.sqlite")
with database:
    database.execute("create table if not exists runs (notes)")
    database.execute("insert into runs values (?)", (notes,))
database.close()
print(json.dumps({
    "model": len(model), "notes": notes, "token": len(token), "arguments": sys.argv[1:], "home": os.environ["HOME"],
    "variables": sorted(os.environ),
}))
sys.exit(7)
"""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A sealed model, a sealed data set, a tree to write to, a secret; nothing is released to anybody yet."""
    root = tmp_path_factory.mktemp("run")
    with site(root) as made:
        for name, file, content in (
            ("model", "weights.bin", b"w" * 3_000_000),
            ("data", "notes.txt", PLAIN.encode()),
        ):
            made.key(name)
            folder = root / f"{name}-plain"
            folder.mkdir()
            (folder / file).write_bytes(content)
            made.seal(folder, f"{name}.sealed", name)
        made.key("out")
        (root / "token").write_text(SECRET)
        (root / "token").chmod(0o600)
        made.put("kbs:///default/secret/token", root / "token", "--raw")
        made.serve()
        (made.work / "program.py").write_text(PROGRAM)
        yield made


@pytest.fixture(scope="module")
def released(deployed: Site) -> Site:
    """All of it released to just this program."""
    (deployed.work / "program.py").write_text(PROGRAM)
    deployed.configure(CONFIGURATION)
    deployed.allow(["python", "program.py", "one"])
    return deployed


@pytest.fixture
def allowed(released: Site) -> Site:
    """The same, whatever a test before has written there."""
    (released.work / "program.py").write_text(PROGRAM)
    released.configure(CONFIGURATION)
    return released


def test_a_program_reads_and_writes_sealed_files_at_plain_paths_and_its_exit_code_comes_back(
    allowed: Site,
) -> None:
    done = allowed.run(["python", "program.py", "one"])
    assert done.returncode == 7, done.stderr
    said = json.loads(done.stdout)
    assert said["model"] == 3_000_000
    assert said["notes"] == PLAIN
    assert said["token"] == len(SECRET)
    assert said["arguments"] == ["one"]
    assert said["home"].startswith("/run/cloister")
    again = allowed.run(["python", "program.py", "one"])
    assert again.returncode == 7, again.stderr


def test_what_the_program_wrote_is_sealed_on_the_disk_and_its_owner_can_read_it(allowed: Site) -> None:
    allowed.run(["python", "program.py", "one"])
    for path in (allowed.work / "out.tree").rglob("*"):
        content = path.read_bytes()
        for canary in (PLAIN, PLAIN.upper(), SECRET, "SQLite format", "result.txt"):
            assert canary.encode() not in content
    key = str(allowed.root / "out.key")
    assert allowed.cloister("cat", "out.tree", "result.txt", "--key-file", key) == PLAIN.upper()
    allowed.cloister("unseal", "out.tree", "--key-file", key, "--out", str(allowed.root / "opened"))
    with sqlite3.connect(allowed.root / "opened" / "runs.sqlite") as database:
        assert (PLAIN,) in database.execute("select notes from runs").fetchall()
    database.close()


def test_nothing_of_it_is_left_on_the_machine(allowed: Site) -> None:
    allowed.run(["python", "program.py", "one"])
    for place in ("/models/whole-way", "/data/set", "/out", "/run/cloister"):
        assert not any(Path(place).iterdir()) if Path(place).exists() else True
    assert str(allowed.work) not in Path("/proc/self/mounts").read_text()


def test_secrets_are_in_no_argument_and_no_variable_of_any_process(allowed: Site) -> None:
    (allowed.work / "waits.py").write_text("import time; print('up', flush=True); time.sleep(60)")
    allowed.allow(["python", "waits.py"])
    launcher = allowed.start(["python", "waits.py"])
    try:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "up\n"
        seen = b""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                for name in ("cmdline", "environ"):
                    try:
                        seen += (entry / name).read_bytes()
                    except OSError:
                        continue
        key = (allowed.root / "out.key").read_text().split()[-1]
        assert b"HF_TOKEN_PATH=/run/cloister/secrets/token" in seen
        for secret in (SECRET, key):
            assert secret.encode() not in seen
    finally:
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGTERM


def test_explain_says_what_would_be_done_and_does_nothing(allowed: Site) -> None:
    said = allowed.command("run", "--explain", "--", "python", "program.py", "one")
    assert said.returncode == 0, said.stderr
    for word in (
        "/models/whole-way",
        "/data/set",
        "/out",
        "HF_TOKEN_PATH",
        "cloister.config",
        "none but its own loopback",
    ):
        assert word in said.stdout.replace("\n", " ") or word in said.stdout
    found = json.loads(allowed.cloister("run", "--explain", "--json", "--", "python", "program.py", "one"))
    assert {"steps", "isolation"} == set(found)


def test_a_program_that_was_changed_gets_no_key_and_does_not_start(allowed: Site) -> None:
    (allowed.work / "program.py").write_text("print('stolen')\n")
    done = allowed.run(["python", "program.py", "one"])
    assert done.returncode == 5, done.stderr
    assert "attestation-refused" in done.stderr
    assert "stolen" not in done.stdout


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["python", "program.py", "two"], id="another argument"),
        pytest.param(["python", "-c", "print('stolen')"], id="another program"),
    ],
)
def test_another_command_line_gets_no_key(allowed: Site, argv: list[str]) -> None:
    done = allowed.run(argv)
    assert done.returncode == 5, done.stderr
    assert "stolen" not in done.stdout


def test_a_configuration_that_asks_for_more_gets_nothing(allowed: Site) -> None:
    allowed.configure(CONFIGURATION.replace('env = "HF_TOKEN_PATH"', 'env = "OTHER"'))
    assert allowed.run(["python", "program.py", "one"]).returncode == 5


def test_another_broker_is_not_asked(allowed: Site) -> None:
    policy = allowed.work / "broker-policy.toml"
    kept = policy.read_text()
    try:
        policy.write_text(
            kept.replace("rtmr3", "rtmr3", 1).replace("max_age_seconds = ", "max_age_seconds = 1")
        )
        done = allowed.run(["python", "program.py", "one"])
        assert done.returncode == 5
    finally:
        policy.write_text(kept)


def test_an_index_that_was_exchanged_after_measuring_is_another_launch(allowed: Site, tmp_path: Path) -> None:
    other = tmp_path / "plain"
    other.mkdir()
    (other / "notes.txt").write_text("forged")
    original = allowed.work / "data.sealed"
    original.rename(tmp_path / "kept")
    try:
        allowed.seal(other, "data.sealed", "data")
        done = allowed.run(["python", "program.py", "one"])
        assert done.returncode == 5, done.stderr
    finally:
        for path in original.iterdir():
            path.unlink()
        original.rmdir()
        (tmp_path / "kept").rename(original)


def test_an_old_copy_of_a_whole_tree_is_refused_because_the_broker_knows_a_newer_one(
    allowed: Site, tmp_path: Path
) -> None:
    tree, kept = allowed.work / "out.tree", tmp_path / "kept"
    allowed.run(["python", "program.py", "one"])
    os.system(f"cp -a {tree} {kept}")  # noqa: S605
    allowed.run(["python", "program.py", "one"])
    newest = tmp_path / "newest"
    tree.rename(newest)
    kept.rename(tree)
    try:
        done = allowed.run(["python", "program.py", "one"])
        assert done.returncode == 3, done.stderr
        assert done.stdout == ""
    finally:
        os.system(f"rm -rf {tree}")  # noqa: S605
        newest.rename(tree)
    gone = tmp_path / "gone"
    tree.rename(gone)
    try:
        done = allowed.run(["python", "program.py", "one"])
        assert done.returncode == 3, done.stderr
        assert "the broker knows version" in done.stderr
    finally:
        gone.rename(tree)


def test_a_launcher_that_is_killed_takes_the_program_along_and_the_tree_keeps_what_was_synced(
    allowed: Site,
) -> None:
    program = """
import os, time
with open("/out/log.txt", "a") as file:
    file.write("synced\\n"); file.flush(); os.fsync(file.fileno())
print(os.getpid(), flush=True)
time.sleep(60)
"""
    (allowed.work / "syncs.py").write_text(program)
    allowed.allow(["python", "syncs.py"])
    launcher = allowed.start(["python", "syncs.py"])
    assert launcher.stdout is not None
    child = int(launcher.stdout.readline())
    launcher.kill()
    launcher.communicate(timeout=30)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()
    key = str(allowed.root / "out.key")
    for _ in range(100):  # the mount's process commits and lets go
        done = allowed.command("cat", "out.tree", "log.txt", "--key-file", key)
        if done.returncode == 0:
            break
        time.sleep(0.2)
    assert done.stdout.startswith("synced\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        pytest.param(
            ["run", "--config", "nowhere.toml", "--", "python"], 2, "cannot be read", id="no configuration"
        ),
        pytest.param(["run", "--", "no-such-program"], 2, "there is no program", id="no such program"),
        pytest.param(["run"], 2, "no program was named", id="no program at all"),
        pytest.param(["run", "--", "python", "program.py", "one"], 2, "no TEE was found", id="no TEE"),
    ],
)
def test_what_cannot_be_run_gives_one_line(allowed: Site, arguments: list[str], code: int, line: str) -> None:
    done = allowed.command(*arguments)
    assert (done.returncode, line in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


HOOKED = """
import sys
import pandas

frame = pandas.read_csv("table.sealed/table.csv")
frame["double"] = frame["amount"] * 2
frame.to_parquet("sealed://" + sys.argv[1] + "/report.sealed/report.parquet")
print(pandas.read_parquet("sealed://" + sys.argv[1] + "/report.sealed/report.parquet")["double"].sum())
"""


def test_libraries_open_sealed_paths_and_write_signed_ones_with_keys_from_the_launcher(
    released: Site, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "table.csv").write_text("amount\n1\n20\n")
    released.key("table")
    released.seal(plain, "table.sealed", "table")
    released.put("kbs:///default/key/signing", _seed(tmp_path), "--raw")
    out = released.root / "reports"
    out.mkdir()
    (released.work / "hooked.py").write_text(HOOKED)
    released.configure(
        '[outputs]\nkey = "kbs:///default/key/out"\nsigning_key = "kbs:///default/key/signing"\n'
        f'[isolation]\nwrite = ["{out}"]\n',
        head='resources = ["kbs:///default/key/table"]',
    )
    argv = ["python", "hooked.py", str(out)]
    released.allow(argv)
    done = released.run(argv)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "42"
    assert {path.suffix for path in (out / "report.sealed").iterdir()} == {".sealed", ".json", ".sig"}
    signer = json.loads((out / "report.sealed" / "index.json").read_text())["signer"]
    assert signer == SIGNER_BASE64


SIGNER_BASE64 = "O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik="
"""The public key of the seed of 32 zero bytes (RFC 8032's algorithm; any implementation gives it)."""


def _seed(folder: Path) -> Path:
    path = folder / "seed"
    path.write_bytes(bytes(32))
    path.chmod(0o600)
    return path


IN_GRAMINE = """
import sys
from pathlib import Path

from cloister.attester.simulated import SimulatedPlatform
from cloister.workload.configuration import read_workload
from cloister.workload.launcher import run_in_gramine
from cloister.workload.plan import make_plan

# An enclave's part of the launcher on files of Gramine's form; the quotes are the simulated TEE's.
tee, keys, *argv = sys.argv[1:]
plan = make_plan(read_workload(Path("workload.toml")), argv, directory=Path.cwd())
platform = SimulatedPlatform.load(Path(tee))
sys.exit(run_in_gramine(plan, lambda events: platform.tee("tdx", launch=events), tee="tdx", keys_folder=Path(keys)))
"""


def test_in_an_enclave_the_keys_go_to_gramine_and_the_program_runs_without_hooks(
    released: Site, tmp_path: Path
) -> None:
    released.configure('[[gramine]]\nname = "data"\nkey = "kbs:///default/key/data"\n')
    argv = ["python", "-c", "import os, sys; print('CLOISTER_RUN' in os.environ); sys.exit(9)"]
    released.allow(argv)
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "data").write_bytes(bytes(16))
    done = subprocess.run(
        [sys.executable, "-c", IN_GRAMINE, str(released.tee), str(keys), *argv],
        cwd=released.work, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (9, "False\n"), done.stderr
    kek = read_key(released.root / "data.key")
    assert (keys / "data").read_bytes() == gramine_key(kek, "data")
