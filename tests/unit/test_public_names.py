"""The few public names are pinned, load lazily, and importing the package stays cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cloister

NAMES = [
    "AsyncSealedClient",
    "AttestationResult",
    "CloisterError",
    "ManifestAnchor",
    "Policy",
    "SealedClient",
    "connect",
    "connect_async",
    "load_policy",
    "optimize",
    "read_policy",
]
HEAVY = ("httpx2", "httpx", "dcap_qvl", "cryptography", "msgspec", "starlette", "asyncio", "openai", "torch")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_the_public_names_are_these():
    assert cloister.__all__ == NAMES
    assert set(NAMES) <= set(dir(cloister))


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there(name: str):
    assert getattr(cloister, name).__name__ == name


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        cloister.nothing_of_the_kind  # noqa: B018 -- looking it up is the test


def test_importing_loads_nothing_heavy():
    loaded = run(f"import sys, cloister; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_connect_loads_the_client_and_the_verifier_when_it_is_first_used():
    code = "import sys, cloister; cloister.connect; print('httpx2' in sys.modules, 'dcap_qvl' in sys.modules)"
    assert run(code).split()[0] == "True"
