"""Attacks on ``cloister run`` by who owns the disk, the environment and the account beside it, on real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment import CLOISTER
from run_site import Site, site

PROGRAM = """
import json, os, sys
print(json.dumps({
    "secret": open(os.environ["TOKEN"]).read(), "umask": os.umask(0o22), "term": os.environ.get("TERM"),
    "executable": sys.executable, "prefix": sys.prefix,
}))
"""
SECRET = """
[[secret]]
resource = "kbs:///default/secret/token"
file = "token"
env = "TOKEN"
"""
PLANTED = "import os\nprint('PLANTED', os.environ.get('TOKEN'), flush=True)\nos._exit(0)\n"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One secret, released to just this program."""
    with site(tmp_path_factory.mktemp("attacked")) as made:
        (made.root / "token").write_text("canary-51b2")
        (made.root / "token").chmod(0o600)
        made.put("kbs:///default/secret/token", made.root / "token", "--raw")
        made.key("out")
        made.serve()
        (made.work / "program.py").write_text(PROGRAM)
        made.configure(SECRET)
        made.allow(["python", "program.py"])
        yield made


@pytest.fixture
def allowed(deployed: Site) -> Iterator[Site]:
    """The same, and what an attack left is taken away afterwards."""
    deployed.configure(SECRET)
    before = set(deployed.work.iterdir())
    yield deployed
    for path in set(deployed.work.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (deployed.work / "program.py").write_text(PROGRAM)
    deployed.work.chmod(0o700)


def _honest(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    assert "canary-51b2" in done.stdout
    assert "PLANTED" not in done.stdout


@pytest.mark.parametrize("name", ["json.py", "sitecustomize.py", "usercustomize.py"])
def test_a_module_planted_beside_a_script_is_not_imported(allowed: Site, name: str) -> None:
    (allowed.work / name).write_text(PLANTED)
    _honest(allowed.run(["python", "program.py"]))


def test_a_package_planted_where_the_program_starts_is_not_run_in_place_of_an_installed_one(
    allowed: Site,
) -> None:
    argv = ["python", "-m", "json.tool", "--help"]
    allowed.allow(argv)
    (allowed.work / "json").mkdir()
    for name in ("__init__.py", "tool.py"):
        (allowed.work / "json" / name).write_text(PLANTED)
    done = allowed.run(argv)
    assert done.returncode == 0, done.stderr
    assert "PLANTED" not in done.stdout


def test_modules_of_a_measured_folder_are_imported_as_always(allowed: Site) -> None:
    (allowed.work / "app").mkdir()
    (allowed.work / "app" / "part.py").write_text("WORD = 'imported'\n")
    (allowed.work / "app" / "main.py").write_text("import part\nprint(part.WORD)\n")
    allowed.configure(SECRET + '[program]\nfiles = ["app"]\n')
    argv = ["python", "app/main.py"]
    allowed.allow(argv)
    assert allowed.run(argv).stdout == "imported\n"
    (allowed.work / "app" / "json.py").write_text(PLANTED)
    done = allowed.run(argv)
    assert done.returncode == 5, done.stderr
    assert "PLANTED" not in done.stdout


def test_the_program_s_umask_and_terminal_are_not_whatever_its_starter_likes(allowed: Site) -> None:
    old = os.umask(0)
    try:
        done = subprocess.run(
            [CLOISTER, "run", "--simulated-tee", allowed.tee, "--", "python", "program.py"],
            cwd=allowed.work, capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "TERM": "../../tmp/evil", "PYTHONSAFEPATH": ""},
        )  # fmt: skip
    finally:
        os.umask(old)
    _honest(done)
    assert '"umask": 18' in done.stdout
    assert '"term": null' in done.stdout


def test_an_exit_code_is_not_lost_where_whoever_starts_it_ignores_the_deaths_of_children(
    allowed: Site,
) -> None:
    argv = ["sh", "-c", "exit 9"]
    allowed.allow(argv)
    done = subprocess.run(
        [CLOISTER, "run", "--simulated-tee", allowed.tee, "--", *argv],
        cwd=allowed.work, capture_output=True, timeout=60, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    )  # fmt: skip
    assert done.returncode == 9, done.stderr


def test_a_folder_that_another_user_can_change_is_no_place_for_a_measured_script(allowed: Site) -> None:
    # Who may rename the script drops the measured copy that is mounted over it.
    allowed.work.chmod(0o777)
    done = allowed.run(["python", "program.py"])
    assert done.returncode == 2
    assert "can be changed by other users" in done.stderr
    assert "canary" not in done.stdout


def test_a_sealed_place_reached_over_a_link_is_refused(allowed: Site) -> None:
    real = allowed.root / "real"
    real.mkdir()
    link = allowed.root / "link"
    link.symlink_to(real)
    tree = (
        f'[[mount]]\nsource = "out.tree"\npath = "{link}/out"\nwrite = true\nkey = "kbs:///default/key/out"\n'
    )
    allowed.configure(SECRET + tree)
    allowed.allow(["python", "program.py"])
    done = allowed.run(["python", "program.py"])
    assert done.returncode == 2, done.stderr
    assert "is a link" in done.stderr
    assert "canary" not in done.stdout


def test_a_program_without_landlock_cannot_rename_or_replace_what_the_launcher_writes_into(
    allowed: Site,
) -> None:
    # As root the launcher overwrites secrets at the end: a link in their place would lead it to any file.
    victim = allowed.root / "victim"
    victim.mkdir()
    (victim / "precious").write_text("kept")
    script = f"""
cat "$TOKEN" && echo
mv /run/cloister/secrets /run/cloister/moved && ln -s {victim} /run/cloister/secrets && echo MOVED
ln -s {victim} /run/cloister/secrets/link && echo LINKED
rm -f /run/cloister/access.json /run/cloister/keys.socket "$TOKEN" && echo REMOVED
echo through > /out-of-nobody/result && cat /out-of-nobody/result
"""
    config = allowed.configure(
        SECRET
        + f'[[mount]]\nsource = "{allowed.root}/out.tree"\npath = "/out-of-nobody"\nwrite = true\nkey = "kbs:///default/key/out"\n'
        + '[program]\nuser = "nobody"\n[isolation]\nlandlock = "off"\n'
    )
    # Where tests have their folders no other user may enter, so it starts elsewhere.
    argv = ["--config", str(config), "--", "sh", "-c", script]
    policy = allowed.root / "nobody.toml"
    allowed.policies.append(policy)
    measure = ["measure", "run", "--simulated-tee", str(allowed.tee), "--out", str(policy), *argv]
    assert allowed.command(*measure, directory=Path("/")).returncode == 0
    allowed.release()
    done = allowed.command("run", "--simulated-tee", str(allowed.tee), *argv, directory=Path("/"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["canary-51b2", "through"]
    assert (victim / "precious").read_text() == "kept"


LAUNCH = """
import os, sys
from pathlib import Path
from cloister.attester.simulated import SimulatedPlatform
from cloister.workload.configuration import read_workload
from cloister.workload.launcher import run
from cloister.workload.plan import make_plan

tee, moment, victim, planted = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
plan = make_plan(read_workload(Path("workload.toml")), sys.argv[5:], directory=Path.cwd())


def exchange():
    # What the owner of the disk does: the same name holds other bytes.
    victim.write_bytes(planted.read_bytes())


def launch(events):
    if moment == "while it attests":
        import subprocess
        # From outside the run's mounts, as whoever owns the disk is.
        command = ["nsenter", f"--mount=/proc/{os.getppid()}/ns/mnt", "cp", str(planted), str(victim)]
        subprocess.run(command, check=True)
    return SimulatedPlatform.load(Path(tee)).tee("tdx", launch=events)


if moment == "before it is copied":
    exchange()
sys.exit(run(plan, launch))
"""


@pytest.mark.parametrize("moment", ["before it is copied", "while it attests"])
@pytest.mark.parametrize("what", ["executable", "script"])
def test_what_is_exchanged_after_it_was_measured_is_never_executed(
    allowed: Site, moment: str, what: str
) -> None:
    executable = allowed.work / "program.sh"
    executable.write_text('#!/bin/sh\necho honest "$@"\n')
    executable.chmod(0o755)
    script = allowed.work / "script.sh"
    script.write_text("echo honest\n")
    argv = ["./program.sh"] if what == "executable" else ["sh", "script.sh"]
    planted = allowed.root / "planted"
    planted.write_text("#!/bin/sh\necho PLANTED\n")
    victim = executable if what == "executable" else script
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LAUNCH), allowed.tee, moment, victim, planted, *argv],
        cwd=allowed.work, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "PLANTED" not in done.stdout
    assert "PLANTED" in planted.read_text()
    if moment == "before it is copied":
        assert "changed after it was measured" in done.stderr
    else:
        assert victim.read_text() == planted.read_text(), "the attack was made"
