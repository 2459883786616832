"""Flower's bundle: the same bytes for everybody who has this program, and other bytes for anything else in it."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from cloister.federated.flower.app import PACKAGE, app_digest, write_app

# Flower's own choice of a library's class; nothing here can change it.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


def built(folder: Path, change: Callable[[Path], object] = lambda _folder: None) -> bytes:
    folder.mkdir()
    write_app(folder)
    change(folder)
    return build_fab_from_disk(folder)


def test_a_bundle_is_the_same_bytes_wherever_it_is_made(tmp_path: Path) -> None:
    one, two = built(tmp_path / "one"), built(tmp_path / "two")
    assert one == two
    assert app_digest() == app_digest.__wrapped__() == hashlib.sha256(one).hexdigest()


def test_a_bundle_has_our_two_lines_and_nothing_else_that_runs(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(built(tmp_path / "app"))) as bundle:
        code = {name: bundle.read(name).decode() for name in bundle.namelist() if name.endswith(".py")}
        names = set(bundle.namelist()) - code.keys()
    assert names == {"pyproject.toml", "LICENSE", ".info/CONTENT"}
    line = 'from cloister.federated.flower.{} import app\n\n__all__ = ["app"]\n'
    assert code == {
        f"{PACKAGE}/__init__.py": "",
        f"{PACKAGE}/client.py": line.format("client"),
        f"{PACKAGE}/server.py": line.format("server"),
    }
    for name in ("client", "server"):  # and what they name is there
        assert import_module(f"cloister.federated.flower.{name}").app


def say(text: str, name: str = "client.py") -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / PACKAGE / name
        path.write_text((path.read_text() if path.exists() else "") + text)

    return change


def depend(folder: Path) -> None:
    path = folder / "pyproject.toml"
    text = path.read_text()
    assert "dependencies = [" in text
    path.write_text(text.replace("dependencies = [", 'dependencies = ["mallory", ', 1))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(say("import mallory\n"), id="a line more in the ClientApp"),
        pytest.param(say(" ", "server.py"), id="a blank more in the ServerApp"),
        pytest.param(say("", "more.py"), id="an empty file more"),
        pytest.param(depend, id="a package more to install"),
    ],
)
def test_a_bundle_with_anything_else_in_it_has_another_digest(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    assert hashlib.sha256(built(tmp_path / "app", change)).hexdigest() != app_digest()
