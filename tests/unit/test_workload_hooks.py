"""Import hooks: which paths are sealed, what happens around a call, and that nothing happens without ``install``."""

from __future__ import annotations

import inspect
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import WorkloadError
from cloister.sealing import access as registry
from cloister.sealing.access import Access
from cloister.workload.hooks import paths
from cloister.workload.hooks.seams import Seam, apply_when_imported, translated
from sealing_samples import OWNER, STRANGER, URI, Keys, sealed_folder

FILES = {"a.txt": b"alpha", "sub/b.txt": b"beta", "sub/deep/c.txt": b"gamma"}


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))  # a tmpfs, and of mode 0700
    monkeypatch.setenv(paths.PRIVATE, str(folder))
    registry.register(
        Access(keys=Keys(), signers=frozenset([OWNER.public_key]), signing_key=STRANGER, output_key=URI)
    )
    yield folder
    registry.forget()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sealed(tmp_path: Path, private: Path) -> Path:
    return sealed_folder(tmp_path, FILES)[0]


def test_urls_and_what_lies_in_a_sealed_directory_are_sealed_paths(sealed: Path, private: Path) -> None:
    assert paths.sealed_url("sealed://s3://bucket/x") == "sealed://s3://bucket/x"
    assert paths.sealed_url("sealed::memory://x") == "sealed::memory://x"
    assert paths.sealed_url(str(sealed)) == f"sealed://{sealed}"
    assert paths.sealed_url(sealed / "sub" / "b.txt") == f"sealed://{sealed}/sub/b.txt"
    assert paths.sealed_url(f"{sealed}/sub/../a.txt") == f"sealed://{sealed}/a.txt"
    for plain in (
        "",
        "gpt2",
        "org/model",
        "https://host/x",
        "/dev/null",
        b"/x",
        7,
        None,
        True,
        sealed.parent,
        "a\0b",
    ):
        assert paths.sealed_url(plain) is None, plain
        assert paths.as_url(plain) is plain
        assert paths.as_file(plain) is plain
        assert paths.as_name_or_file(plain) is plain


def test_a_name_ending_in_sealed_is_enough(tmp_path: Path) -> None:
    # Else a host could take the index away, and plain files in its place would be believed.
    (tmp_path / "model.sealed").mkdir()
    (tmp_path / "model.sealed/config.json").write_text("{}")
    assert paths.is_sealed(tmp_path / "model.sealed/config.json")
    assert paths.is_sealed(tmp_path / "not/there.sealed/x")


def test_an_index_without_a_signature_makes_no_sealed_directory(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    assert not paths.is_sealed(tmp_path / "x.csv")


def test_what_lies_behind_a_mount_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "data.sealed"
    place.mkdir()
    really = os.path.ismount
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == place or really(path))
    assert not paths.is_sealed(place / "x.csv")


def test_restored_files_are_plain_and_for_this_user_alone(sealed: Path, private: Path) -> None:
    real = Path(paths.restored(f"sealed://{sealed}"))
    assert {
        path.relative_to(real).as_posix(): path.read_bytes() for path in real.rglob("*") if path.is_file()
    } == FILES
    assert real.is_relative_to(private)
    assert real.name == sealed.name
    assert not paths.is_sealed(real / "a.txt")
    assert paths.restored(f"sealed://{sealed}") == str(real), "once for each version"
    assert isinstance(paths.as_file(sealed), Path)
    assert isinstance(paths.as_file(str(sealed)), str)


def test_a_part_of_a_directory_is_restored_alone(sealed: Path, private: Path) -> None:
    folder = Path(paths.restored(f"sealed://{sealed}/sub"))
    assert folder.name == "sub"
    assert sorted(path.name for path in folder.rglob("*")) == ["b.txt", "c.txt", "deep"]
    file = Path(paths.restored(f"sealed://{sealed}/sub/deep/c.txt"))
    assert file.read_bytes() == b"gamma"
    assert not list(private.rglob("a.txt"))
    assert not list(private.rglob("*.partial"))


def test_a_new_version_is_restored_anew(sealed: Path, private: Path) -> None:
    first = paths.restored(f"sealed://{sealed}/a.txt")
    with paths.open_sealed(f"sealed://{sealed}/a.txt", "wb") as file:
        file.write(b"newer")
    second = paths.restored(f"sealed://{sealed}/a.txt")
    assert Path(first).read_bytes() == b"alpha"
    assert Path(second).read_bytes() == b"newer"


@pytest.mark.parametrize("missing", ["absent", "sub/absent", "a.txt/below"])
def test_what_is_not_there_is_not_found(sealed: Path, private: Path, missing: str) -> None:
    with pytest.raises(FileNotFoundError):
        paths.restored(f"sealed://{sealed}/{missing}")
    assert not list(private.rglob("*.txt"))


def test_a_relative_name_that_is_not_in_the_directory_stays_a_name(
    sealed: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sealed)
    assert paths.as_name_or_file("org/model") == "org/model"
    assert Path(paths.as_name_or_file("sub")).is_dir()
    with pytest.raises(FileNotFoundError):
        paths.as_name_or_file("./org/model")


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        pytest.param(lambda folder: folder.chmod(0o750), "0700", id="others may look"),
        pytest.param(lambda folder: folder.rmdir(), "cannot be used", id="gone"),
    ],
)
def test_without_a_private_folder_nothing_is_restored(
    sealed: Path, private: Path, prepare: Callable[[Path], None], says: str
) -> None:
    prepare(private)
    with pytest.raises(WorkloadError, match=says):
        paths.restored(f"sealed://{sealed}")


def test_a_private_folder_on_a_disk_is_none(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    monkeypatch.setenv(paths.PRIVATE, str(tmp_path / "disk"))
    monkeypatch.setattr(paths, "_lies_in_memory", lambda folder: not folder.is_relative_to(tmp_path))
    with pytest.raises(WorkloadError, match="does not lie in memory"):
        paths.restored(f"sealed://{sealed}")


def test_without_the_launchers_environment_nothing_is_restored(
    sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(paths.PRIVATE)
    with pytest.raises(WorkloadError, match="no private folder"):
        paths.restored(f"sealed://{sealed}")


def test_many_files_are_sealed_in_one_version_or_not_at_all(tmp_path: Path, private: Path) -> None:
    from cloister.sealing.index import open_index

    out = tmp_path / "out.sealed"
    with paths.gathered(f"sealed://{out}/model") as stage:
        (stage / "a").write_bytes(b"1")
        (stage / "sub").mkdir()
        (stage / "sub/b").write_bytes(b"2")
    index = open_index(out, signers=[STRANGER.public_key])
    assert (set(index.files), index.version) == ({"model/a", "model/sub/b"}, 1)

    def interrupted() -> None:
        with paths.gathered(f"sealed://{out}/model") as stage:
            (stage / "c").write_bytes(b"3")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert open_index(out, signers=[STRANGER.public_key]) == index
    assert not list(private.iterdir())


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module as a program would import it."""
    module = types.ModuleType("some_library")

    def load(path: Any, *, strict: bool = True) -> tuple[Any, bool]:
        """Loads."""
        return path, strict

    class Model:
        @classmethod
        def make(cls, name: Any = "default", **options: Any) -> tuple[type, Any, dict[str, Any]]:
            return cls, name, options

    class Special(Model):
        pass

    load.__module__ = Model.__module__ = "some_library"
    load.__qualname__ = "load"
    for value in (load, Model, Special):
        setattr(module, value.__name__, value)
    monkeypatch.setitem(sys.modules, "some_library", module)
    return module


def test_a_seam_changes_the_argument_and_leaves_the_rest(library: Any) -> None:
    original = library.load
    apply_when_imported(Seam("some_library", "load", translated(lambda value: f"<{value}>", (0, "path"))))
    assert library.load("x") == ("<x>", True)
    assert library.load(path="x", strict=False) == ("<x>", False)
    assert inspect.signature(library.load) == inspect.signature(original)
    assert (library.load.__doc__, library.load.__name__) == ("Loads.", "load")
    assert pickle.loads(pickle.dumps(library.load)) is library.load  # noqa: S301 -- our own bytes
    with pytest.raises(TypeError):
        library.load()


def test_a_class_method_keeps_its_class(library: Any) -> None:
    apply_when_imported(
        Seam("some_library", "Model.make", translated(lambda value: f"<{value}>", (0, "name")))
    )
    assert library.Model.make("x", a=1) == (library.Model, "<x>", {"a": 1})
    assert library.Special.make(name="x") == (library.Special, "<x>", {})
    assert library.Special.make() == (library.Special, "default", {})


def test_a_library_without_the_seam_is_let_pass_only_where_it_reads(library: Any) -> None:
    around = translated(lambda value: value, (0, "path"))
    apply_when_imported(Seam("some_library", "nowhere", around))
    with pytest.raises(ImportError, match="could not be sealed"):
        apply_when_imported(Seam("some_library", "Model.nowhere", around, writes=True))


def test_importing_cloister_and_its_hooks_changes_nothing() -> None:
    script = """
import sys
import cloister, cloister.sealing, cloister.sealing.access, cloister.workload.hooks
import cloister.workload.hooks.frames, cloister.workload.hooks.hub, cloister.workload.hooks.tensors
heavy = {"torch", "pandas", "pyarrow", "transformers", "datasets", "safetensors", "fsspec"} & set(sys.modules)
assert not heavy, heavy
import pandas, pyarrow.parquet, safetensors, fsspec
assert type(pandas.read_csv).__name__ == type(pandas.DataFrame.to_csv).__name__ == "function"
assert type(pyarrow.parquet.read_table).__name__ == "function"
assert type(safetensors.safe_open).__name__ == "type"
assert not [finder for finder in sys.meta_path if "wrapt" in type(finder).__module__]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_installing_imports_no_library_and_is_done_once() -> None:
    script = """
import sys
from cloister.workload.hooks import install
asked = []
def provider():
    asked.append(1)
    raise SystemExit("asked too early")
install(provider); install(provider)
heavy = {"torch", "pandas", "pyarrow", "transformers", "datasets", "safetensors", "fsspec"} & set(sys.modules)
assert not heavy, heavy
import pandas
assert pandas.read_csv.__wrapped__.__name__ == "read_csv"
assert not hasattr(pandas.read_csv.__wrapped__, "_self_place")
import fsspec
assert "sealed" in fsspec.available_protocols()
assert not asked
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
