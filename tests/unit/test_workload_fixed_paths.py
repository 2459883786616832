"""What is mounted stays where it was put only over a path that nobody else can make mean something else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.errors import UsageError
from cloister.workload.fixed_paths import open_fixed, require_fixed, require_mounted
from real_parts import absent


@pytest.fixture
def script(tmp_path: Path) -> Path:
    place = tmp_path.resolve() / "work"
    place.mkdir(mode=0o755)
    (place / "train.py").write_text("print(1)\n")
    return place / "train.py"


def _link_the_folder(script: Path) -> Path:
    link = script.parent.parent / "link"
    link.symlink_to(script.parent)
    return link / script.name


def _link_the_file(script: Path) -> Path:
    link = script.parent / "link.py"
    link.symlink_to(script)
    return link


def _open_the_folder(script: Path) -> Path:
    script.parent.chmod(0o777)
    return script


def _open_the_folder_to_a_group(script: Path) -> Path:
    os.chown(script.parent, -1, 4711)
    script.parent.chmod(0o775)
    return script


def _give_the_folder_away(script: Path) -> Path:
    os.chown(script.parent, 4711, -1)
    return script


def _give_the_file_in_a_common_folder_away(script: Path) -> Path:
    script.parent.chmod(0o1777)
    os.chown(script, 4711, -1)
    return script


def test_a_plain_path_of_the_launcher_s_own_is_one_that_stays(script: Path) -> None:
    with open_fixed(script) as descriptor:
        assert os.path.samestat(os.fstat(descriptor), script.stat())


def test_a_file_of_its_own_in_a_common_folder_stays_as_well(script: Path) -> None:
    script.parent.chmod(0o1777)
    require_fixed(script)


@pytest.mark.parametrize(
    ("attack", "line"),
    [
        pytest.param(_link_the_folder, "link is a link", id="a folder on the way is a link"),
        pytest.param(_link_the_file, "link.py is a link", id="it is a link itself"),
        pytest.param(_open_the_folder, "other users", id="everybody may rename it"),
    ],
)
def test_a_path_that_can_come_to_mean_something_else_is_refused(
    script: Path, attack: Callable[[Path], Path], line: str
) -> None:
    with pytest.raises(UsageError, match=line):
        require_fixed(attack(script))


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(_open_the_folder_to_a_group, id="a group may rename it"),
        pytest.param(_give_the_folder_away, id="the folder is another user's"),
        pytest.param(
            _give_the_file_in_a_common_folder_away, id="the file in a common folder is another user's"
        ),
    ],
)
def test_a_path_that_another_user_rules_is_refused(script: Path, attack: Callable[[Path], Path]) -> None:
    if os.geteuid() != 0:
        absent("only root can give files away")
        return
    with pytest.raises(UsageError, match="other users"):
        require_fixed(attack(script))


def test_a_file_system_whose_names_others_change_is_refused() -> None:
    # /proc stands for every file system that is not on the list: its names come and go by themselves.
    with pytest.raises(UsageError, match="can change outside this machine"):
        require_fixed(Path("/proc/sys"))


def test_a_folder_on_which_nothing_is_mounted_any_more_is_noticed(script: Path) -> None:
    with pytest.raises(UsageError, match="not what was mounted"):
        require_mounted(script.parent)
    require_mounted(Path("/proc"))


REMOVED_OUTSIDE = """
import subprocess, sys
from pathlib import Path
from cloister.workload import linux, namespaces, private_places
target, copy = Path(sys.argv[1]), Path(sys.argv[2])
namespaces.private_mounts()
private_places.bind(copy, target)
print("bound", target.read_text(), flush=True)
sys.stdin.readline()
print("then", target.read_text(), flush=True)
"""


def test_the_kernel_drops_a_mount_whose_name_somebody_outside_removes_which_is_why_folders_must_be_held(
    script: Path, tmp_path: Path
) -> None:
    """Documents the attack: with the right to rename, the measured copy is gone."""
    copy = tmp_path / "copy"
    copy.write_text("measured")
    inside = subprocess.Popen(
        [sys.executable, "-c", REMOVED_OUTSIDE, script, copy],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert inside.stdout is not None
    assert inside.stdout.readline() == "bound measured\n"
    script.unlink()
    script.write_text("planted")
    said, _ = inside.communicate("\n", timeout=20)
    assert said == "then planted\n"
