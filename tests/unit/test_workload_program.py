"""What is measured of a program is what it gets: digests move with every byte, and a copy that differs is refused."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from cloister.errors import UsageError
from cloister.workload.program import MAX_MEASURED, copy_measured, measure_program

BIN = str(Path(sys.executable).parent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("print(1)\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "model.py").write_text("x = 1\n")
    return tmp_path


def test_a_script_on_the_command_line_is_measured_as_a_file(folder: Path) -> None:
    found = measure_program(["python", "train.py", "--steps", "3"], files=[], directory=folder, search=BIN)
    assert found.argv == (f"{BIN}/python", "train.py", "--steps", "3")
    assert found.files == {str(folder / "train.py"): hashlib.sha256(b"print(1)\n").hexdigest()}
    assert found.executable == hashlib.sha256(Path(sys.executable).read_bytes()).hexdigest()


def test_a_folder_is_measured_with_all_that_lies_in_it(folder: Path) -> None:
    before = measure_program(["python"], files=[folder / "package"], directory=folder, search=BIN)
    (folder / "package" / "torch.py").write_text("planted\n")
    after = measure_program(["python"], files=[folder / "package"], directory=folder, search=BIN)
    assert before.files != after.files


def test_a_file_of_a_measured_folder_is_measured_once(folder: Path) -> None:
    found = measure_program(
        ["python", "package/model.py"], files=[Path("package")], directory=folder, search=BIN
    )
    assert list(found.files) == [str(folder / "package")]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        pytest.param([], "no program was named", id="nothing"),
        pytest.param(["no-such-program"], "there is no program", id="a name that is nowhere"),
        pytest.param(["./train.py"], "not executable", id="a script without its interpreter"),
        pytest.param(["./nothing"], "there is no program", id="a path that leads nowhere"),
        pytest.param(["python", *["x"] * 2000], "too long", id="too many arguments"),
    ],
)
def test_a_program_that_cannot_be_run_is_refused_before_anything_is_done(
    folder: Path, argv: list[str], line: str
) -> None:
    with pytest.raises(UsageError, match=line):
        measure_program(argv, files=[], directory=folder, search=BIN)


@pytest.mark.parametrize(
    ("argv", "files", "loose"),
    [
        pytest.param(["python", "train.py"], [], "", id="a script"),
        pytest.param(["python", "package/model.py"], [], "package", id="a script in a folder"),
        pytest.param(["python", "-m", "package.model"], [], "", id="a module"),
        pytest.param(["python", "package/model.py"], ["package"], None, id="a script in a measured folder"),
        pytest.param(["python", "train.py"], ["package"], "", id="a script beside a measured folder"),
        pytest.param(
            ["python", "-m", "package.model"], ["."], None, id="a module, and the folder is measured"
        ),
    ],
)
def test_where_python_would_import_from_unmeasured_is_found_out(
    folder: Path, argv: list[str], files: list[str], loose: str | None
) -> None:
    found = measure_program(argv, files=[Path(name) for name in files], directory=folder, search=BIN)
    assert found.loose == ("" if loose is None else str(folder / loose))


def test_a_folder_that_python_runs_is_measured_as_a_program(folder: Path) -> None:
    (folder / "package" / "__main__.py").write_text("print(1)\n")
    before = measure_program(["python", "package"], files=[], directory=folder, search=BIN)
    assert list(before.files) == [str(folder / "package")]
    (folder / "package" / "json.py").write_text("planted\n")
    after = measure_program(["python", "package"], files=[], directory=folder, search=BIN)
    assert before.files != after.files


def test_what_is_executed_is_named_without_links(folder: Path) -> None:
    (folder / "tool").write_text("#!/bin/sh\n")
    (folder / "tool").chmod(0o755)
    (folder / "called").symlink_to("tool")
    found = measure_program(["./called"], files=[], directory=folder, search=BIN)
    assert (found.argv[0], found.file) == (str(folder / "called"), str((folder / "tool").resolve()))


def test_a_copy_has_no_modes_that_the_disk_s_owner_chose(folder: Path, tmp_path: Path) -> None:
    (folder / "train.py").chmod(0o4777)
    (folder / "package").chmod(0o777)
    (folder / "package" / "model.py").chmod(0o602)
    found = measure_program(["python", "train.py"], files=[Path("package")], directory=folder, search=BIN)
    for number, (path, digest) in enumerate(found.files.items()):
        copy_measured(Path(path), digest, tmp_path / f"copy-{number}")
    modes = [(tmp_path / name).stat().st_mode & 0o7777 for name in ("copy-0", "copy-0/model.py", "copy-1")]
    assert modes == [0o755, 0o444, 0o555]


def test_a_link_or_a_device_is_no_measured_file(folder: Path) -> None:
    (folder / "link.py").symlink_to("/etc/passwd")
    for name in ("link.py", "/dev/null"):
        with pytest.raises(UsageError, match=r"cannot open|not a regular file"):
            measure_program(["python"], files=[Path(name)], directory=folder, search=BIN)


def test_a_large_file_is_to_be_sealed_instead(folder: Path) -> None:
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(MAX_MEASURED + 1)
    with pytest.raises(UsageError, match="seal it"):
        measure_program(["python", "weights.bin"], files=[], directory=folder, search=BIN)


def test_the_copy_is_what_was_measured_or_nothing(folder: Path, tmp_path: Path) -> None:
    found = measure_program(["python", "train.py"], files=[Path("package")], directory=folder, search=BIN)
    copies = tmp_path / "copies"
    copies.mkdir()
    for number, (path, digest) in enumerate(found.files.items()):
        copy_measured(Path(path), digest, copies / str(number))
    assert (copies / "0" / "model.py").read_text() == "x = 1\n"
    assert (copies / "1").read_text() == "print(1)\n"


@pytest.mark.parametrize("name", ["train.py", "package/model.py"])
def test_a_file_that_changed_after_it_was_measured_is_refused(
    folder: Path, tmp_path: Path, name: str
) -> None:
    found = measure_program(["python", "train.py"], files=[Path("package")], directory=folder, search=BIN)
    (folder / name).write_text("evil = 1\n")
    path = str(folder / name.split("/", maxsplit=1)[0])
    with pytest.raises(UsageError, match="changed after it was measured"):
        copy_measured(Path(path), found.files[path], tmp_path / "copy")
