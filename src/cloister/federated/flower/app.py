"""Flower's bundle (FAB) of our ServerApp and ClientApp: two lines each, the same bytes wherever this program is installed.

Flower sends the bundle from the SuperLink to the SuperNodes, which run it: whoever chooses it chooses what runs beside a
party's data. So each side makes it by itself, and a party takes the one with its own digest and no other (relay.py).
"""

from __future__ import annotations

import hashlib
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

PACKAGE: Final = "cloister_federation"
_PROJECT: Final = """\
[project]
name = "cloister-federation"
version = "1.0.0"
description = "Starts the installed cloister package's apps"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>={flwr},<{below}"]

[tool.flwr.app]
publisher = "cloister"
fab-format-version = 1
flwr-version-target = "{flwr}"

[tool.flwr.app.components]
serverapp = "cloister_federation.server:app"
clientapp = "cloister_federation.client:app"

[tool.flwr.app.config]
"""


def write_app(folder: Path) -> None:
    """The app's sources into ``folder``, which is empty."""
    flwr = version("flwr")
    major, minor = flwr.split(".")[:2]
    package = folder / PACKAGE
    package.mkdir()
    (folder / "pyproject.toml").write_text(
        _PROJECT.format(flwr=flwr, below=f"{major}.{int(minor) + 1}"), "utf-8"
    )
    (folder / "LICENSE").write_text("Apache-2.0\n", "utf-8")
    (package / "__init__.py").write_text("", "utf-8")
    for name in ("server", "client"):
        text = f'from cloister.federated.flower.{name} import app\n\n__all__ = ["app"]\n'
        (package / f"{name}.py").write_text(text, "utf-8")


@cache
def app_digest() -> str:
    """SHA-256 of the bundle as Flower builds it here, hexadecimal."""
    from flwr.cli.build import build_fab_from_disk  # noqa: PLC0415 -- loads Flower

    with tempfile.TemporaryDirectory() as folder:
        write_app(Path(folder))
        bundle: bytes = build_fab_from_disk(Path(folder))
    return hashlib.sha256(bundle).hexdigest()
