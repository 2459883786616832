"""Secrets and the mesh identity as files: private, replaced together, overwritten before they go."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

import mesh_parts as mesh
from cloister.broker.mesh_client import MeshIdentity
from cloister.workload.private_files import (
    IdentityFiles,
    erase_files,
    identity_environment,
    write_private,
)


class Rounds:
    """Stands for the pause between two looks: the test says when one is over."""

    def __init__(self) -> None:
        self._asked: queue.Queue[bool] = queue.Queue()
        self._reached: queue.Queue[None] = queue.Queue()

    def wait(self, _seconds: float) -> bool:
        self._reached.put(None)
        return self._asked.get(timeout=30)

    def look(self) -> None:
        """Let the thread look once; back when it has."""
        self._reached.get(timeout=30)
        self._asked.put(False)
        self._reached.get(timeout=30)
        self._reached.put(None)

    def end(self) -> None:
        self._asked.put(True)


@pytest.fixture
def broker() -> mesh.Broker:
    return mesh.Broker()


@pytest.fixture
def rounds() -> Iterator[Rounds]:
    made = Rounds()
    yield made
    made.end()


@pytest.fixture
def files(tmp_path: Path, broker: mesh.Broker, rounds: Rounds) -> IdentityFiles:
    identity = MeshIdentity(
        broker.request,
        bundle=broker.bundle,
        workload="scorer",
        application=mesh.APPLICATION,
        root_sha256=mesh.root_sha256(),
    )
    return IdentityFiles(tmp_path / "identity", identity, user=os.getuid(), wait=rounds.wait)


def _certificate(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "certificate.pem").read_bytes())


def test_certificate_and_key_belong_together_and_are_the_user_s_alone(files: IdentityFiles) -> None:
    key = load_pem_private_key((files.current / "key.pem").read_bytes(), None)
    assert key.public_key() == _certificate(files.current).public_key()
    for path in files.current.resolve().iterdir():
        assert path.stat().st_mode & 0o777 == 0o400
    # Who could write into the folder could lead the launcher astray: it is the launcher's, and so is the one above.
    for folder in (files.current.resolve(), files.current.parent):
        assert folder.stat().st_uid == os.geteuid()
        assert folder.stat().st_mode & 0o022 == 0


def test_the_anchors_are_the_generations_and_the_root_comes_by_a_name_of_its_own(
    files: IdentityFiles,
) -> None:
    anchors = x509.load_pem_x509_certificates((files.current / "ca.pem").read_bytes())
    rooted = x509.load_pem_x509_certificates((files.current / "ca-with-root.pem").read_bytes())
    assert len(anchors) == 1
    assert len(rooted) == len(anchors) + 1


def test_a_new_manifest_brings_a_new_pair_under_the_same_names(
    files: IdentityFiles, broker: mesh.Broker, rounds: Rounds
) -> None:
    before = _certificate(files.current)
    broker.version = 2
    rounds.look()
    after = _certificate(files.current)
    assert after.issuer != before.issuer
    key = load_pem_private_key((files.current / "key.pem").read_bytes(), None)
    assert key.public_key() == after.public_key()


def test_who_read_the_old_certificate_still_finds_its_key(
    files: IdentityFiles, broker: mesh.Broker, rounds: Rounds
) -> None:
    old = files.current.resolve()
    broker.version = 2
    rounds.look()
    assert (old / "key.pem").exists()
    broker.version = 3
    rounds.look()
    assert not old.exists()


def test_a_broker_that_is_away_leaves_the_files_as_they_are(
    files: IdentityFiles, broker: mesh.Broker, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files.current.resolve()

    def gone(*_: object) -> bytes:
        from cloister.errors import BrokerError

        raise BrokerError("gone")

    monkeypatch.setattr(files._identity, "_bundle", gone)
    rounds.look()
    assert files.current.resolve() == before


def test_closed_files_are_gone(files: IdentityFiles, rounds: Rounds) -> None:
    folder = files.current.parent
    rounds.end()
    files.close()
    assert not folder.exists()


def test_an_erased_file_is_overwritten_before_it_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    write_private(folder / "token", b"secret", user=os.getuid())
    with (folder / "token").open("rb") as held:  # a link to it would read the same
        erase_files(folder)
        assert held.read() == bytes(6)
    assert not folder.exists()


def test_a_link_among_secrets_leads_to_no_overwriting(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("kept")
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "other")
    erase_files(folder)
    assert (tmp_path / "other").read_text() == "kept"


@pytest.mark.parametrize("profile", ["ray", "uvicorn", "postgres", "grpc"])
def test_no_variable_of_an_identity_holds_a_secret(files: IdentityFiles, profile: str) -> None:
    found = identity_environment(files.current, (profile,))  # type: ignore[arg-type]
    assert len(found) > 4
    for value in found.values():
        assert "PRIVATE KEY" not in value
        assert value in {"1", "2", "verify-full"} or Path(value).is_file()
