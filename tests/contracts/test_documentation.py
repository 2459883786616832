"""The threat model names tests that exist, and the documents link to what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
THREATS = (PROJECT / "docs" / "threat-model.md").read_text()
DEFINED = {
    name
    for path in (PROJECT / "tests").rglob("*.py")
    for name in re.findall(r"def (test_\w+)\(", path.read_text())
}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", THREATS))))
def test_a_test_that_the_threat_model_names_exists(name: str) -> None:
    assert [known for known in DEFINED if known.startswith(name)]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:\w+/)+\w+\.py)`", THREATS))))
def test_a_module_that_the_threat_model_names_exists(path: str) -> None:
    assert (PROJECT / "src" / "cloister" / path).exists() or (PROJECT / path).exists()


def test_every_scenario_file_is_named_by_the_threat_model_or_shows_a_whole_way() -> None:
    unnamed = []
    for path in (PROJECT / "tests" / "scenarios").glob("test_*.py"):
        names = re.findall(r"def (test_\w+)\(", path.read_text())
        if not any(f"`{name}" in THREATS or _prefix_named(name) for name in names):
            unnamed.append(path.name)
    whole_ways = {
        "test_bad_input.py", "test_readme.py", "test_demo.py", "test_broker_whole_way.py", "test_channel_whole_way.py",
        "test_channel_generic_clients.py", "test_inference_openai_client.py", "test_inference_engine.py",
        "test_train_demo_model.py", "test_sealed_openai.py", "test_azure_whole_way.py", "test_tpm_whole_way.py",
        "test_key_broker_howto.py", "test_run_identity.py", "test_my_howtos.py", "test_run_examples.py",
            "test_conversion_engines.py", "test_lowbit_generate.py", "test_lowbit_hook.py", "test_optimize_command.py",
            "test_run_optimize.py", "test_served_engines.py", "test_torch_engine.py", "test_federation_secure.py",
    }  # fmt: skip
    assert sorted(set(unnamed) - whole_ways) == []


def _prefix_named(name: str) -> bool:
    return any(name.startswith(known) for known in re.findall(r"`(test_\w+)`", THREATS))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


TRANSLATED = sorted((PROJECT / "docs").rglob("*.zh-CN.md"))


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda path: path.name)
def test_a_translated_page_has_the_very_commands_of_its_original(page: Path) -> None:
    def blocks(path: Path) -> list[str]:
        return re.findall(r"```(?:console|python)\n(.*?)```", path.read_text(), re.DOTALL)

    original = page.with_name(page.name.replace(".zh-CN", ""))
    assert blocks(page)
    assert blocks(page) == blocks(original)
