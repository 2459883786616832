from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.cli.knowledge import documents_at
from cloister.errors import UsageError
from cloister.knowledge import opening
from cloister.knowledge.opening import require_installed
from deployment import CommandFailedError, cloister


def test_a_folder_gives_its_own_files_and_no_links_and_nothing_hidden(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("private")
    folder = tmp_path / "documents"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.md").write_text("a")
    (folder / ".hidden.md").write_text("h")
    (folder / "notes.txt").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    assert list(documents_at([folder])) == [("deep/a.md", folder / "deep" / "a.md")]
    assert list(documents_at([secret])) == [("secret.txt", secret)]


def test_what_is_no_document_or_two_of_one_name_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.md").write_text(name)
    for paths, told in (
        ([tmp_path / "absent"], "there is no document"),
        ([tmp_path / "one", tmp_path / "two"], "would both be"),
    ):
        with pytest.raises(UsageError, match=told):
            documents_at(paths)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there are no documents"):
        documents_at([tmp_path / "empty"])


def test_a_service_without_the_packages_of_documents_says_which_extra_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_installed()
    monkeypatch.setattr(opening, "PACKAGES", (*opening.PACKAGES, "a_package_that_nobody_has"))
    with pytest.raises(UsageError, match=r"pip install 'cloister\[knowledge\]'"):
        require_installed()


def test_rules_are_written_shown_and_taken_back(tmp_path: Path) -> None:
    rules, key = tmp_path / "rules.json", tmp_path / "alice.key"
    first = json.loads(
        cloister("knowledge", "grant", rules, "alice", "--key-file", key, "--write", "clinic", "--json")
    )
    assert (first["users"], first["collections"]["clinic"]["writers"]) == (["alice"], ["alice"])
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().strip() not in rules.read_text()
    again = json.loads(cloister("knowledge", "grant", rules, "alice", "--read", "law", "--json"))
    assert again["collections"]["law"]["readers"] == ["alice"]
    assert again["digest"] != first["digest"]
    assert json.loads(cloister("knowledge", "rules", rules, "--json")) == again
    gone = json.loads(cloister("knowledge", "revoke", rules, "alice", "--json"))
    assert gone["users"] == []
    with pytest.raises(CommandFailedError, match="exists") as refused:
        cloister("knowledge", "grant", rules, "alice", "--key-file", key)
    assert refused.value.code == 2
    assert json.loads(cloister("knowledge", "rules", rules, "--json")) == gone
