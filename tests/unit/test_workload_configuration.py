"""``workload.toml`` is strict: what cannot be meant is refused by name, before anything is opened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cloister.errors import UsageError
from cloister.workload.configuration import read_workload
from workload_parts import MINIMAL, SIGNER, written

SIGNED = f'signers = ["{SIGNER}"]\n'
SPEC = Path(__file__).resolve().parents[2] / "docs" / "spec" / "workload.md"


def test_the_least_configuration_denies_everything_that_it_does_not_name(tmp_path: Path) -> None:
    found = read_workload(written(tmp_path)).file
    assert found.network.access == "none"
    assert found.isolation.landlock == "require"
    assert found.isolation.seccomp
    assert found.isolation.swap == "refuse"
    assert found.mount == found.restore == found.secret == ()


def test_the_configuration_of_the_specification_is_read(tmp_path: Path) -> None:
    [text] = re.findall(r"```toml\n(.*?)```", SPEC.read_text(), re.S)
    found = read_workload(written(tmp_path, text, head=""))
    assert [tree.path for tree in found.file.trees] == ["/out"]
    assert [one.path for one in found.file.inputs] == ["/models/base", "/data/claims"]
    assert found.path("base.sealed") == tmp_path / "base.sealed"
    assert found.signers == {bytes.fromhex(SIGNER)}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("surprise = 1", "unknown field", id="a field that nobody knows"),
        pytest.param('[program]\nuser = "a"\nuser = "b"', "not TOML", id="a field twice"),
        pytest.param('[[restore]]\nsource="a"\npath="/a"', "nobody's signature", id="inputs without signers"),
        pytest.param('[[mount]]\nsource="a"\npath="/a"\nwrite=true', "has a key if and only if", id="a tree without key"),
        pytest.param(
            '[[mount]]\nsource="a"\npath="/a"\nkey="kbs:///a/b/c"', "has a key if and only if", id="an input with a key"
        ),
        pytest.param(
            '[[mount]]\nsource="a"\npath="/a"\nwrite=true\nkey="kbs:///a/b"', "key URI", id="a key URI of two parts"
        ),
        pytest.param(
            '[[mount]]\nsource="a"\npath="/a/../b"\nwrite=true\nkey="kbs:///a/b/c"', "and plain", id="a path with dots"
        ),
        pytest.param(
            '[[mount]]\nsource="a"\npath="b"\nwrite=true\nkey="kbs:///a/b/c"', "absolute and plain", id="a relative path"
        ),
        pytest.param('[[mount]]\nsource="a"\npath="/"\nwrite=true\nkey="kbs:///a/b/c"', "below /", id="over the root"),
        pytest.param('[network]\naccess="some"', "Invalid enum value", id="a network of no kind"),
        pytest.param('[network]\naccess="none"\nconnect=[443]', "takes no ports", id="ports without a network of ports"),
        pytest.param('[network]\naccess="ports"\nconnect=[70000]', "no TCP port", id="a port that is none"),
        pytest.param('[program]\ninherit=["LD_PRELOAD"]', "put code into it", id="code by way of a variable"),
        pytest.param('[program]\ninherit=["PYTHONPATH"]', "put code into it", id="modules by way of a variable"),
        pytest.param('[program]\ninherit=["BASH_ENV"]', "put code into it", id="a shell's script by way of a variable"),
        pytest.param('[program.environment]\nCLOISTER_RUN="/x"', "no name for a variable", id="one of our variables"),
        pytest.param('[program.environment]\n"A=B"="x"', "no name for a variable", id="a variable with an equals sign"),
        pytest.param(
            '[[secret]]\nresource="kbs:///a/b/c"\nfile="../x"\nenv="X"', "secret files is named", id="a secret outside"
        ),
        pytest.param('[identity]\nworkload="a/b"\napplication="c"', "identity's workload", id="a name that is none"),
        pytest.param('[isolation]\nlandlock="off"\n[network]\naccess="none"\n[surprise]', "unknown field", id="a table"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, line: str) -> None:
    # A key that stands behind a table would be the table's own.
    head, tables = (text + "\n" + MINIMAL, "") if text.startswith("surprise") else (MINIMAL, text)
    with pytest.raises(UsageError, match=line) as caught:
        read_workload(written(tmp_path, tables, head=head))
    assert str(tmp_path / "workload.toml") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param(
            '[[mount]]\nsource="a"\npath="/a"\n[[mount]]\nsource="b"\npath="/a/b"', "below /a", id="nested"
        ),
        pytest.param(
            '[[mount]]\nsource="a"\npath="/a"\n[[restore]]\nsource="b"\npath="/a"', "at the same path", id="two at one path"
        ),
        pytest.param(
            '[[mount]]\nsource="a"\npath="/a"\nwrite=true\nkey="kbs:///a/b/c"\n'
            '[[mount]]\nsource="b"\npath="/b"\nwrite=true\nkey="kbs:///a/b/c"',
            "two trees under one key",
            id="two trees under one key",
        ),
        pytest.param('[[mount]]\nsource="a"\npath="/a"\nminimum_version=0', "count from 1", id="version 0"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        read_workload(written(tmp_path, text, head=SIGNED + MINIMAL))


def test_a_broker_is_accepted_by_a_policy_or_by_a_manifest_and_not_by_both(tmp_path: Path) -> None:
    for more in ("", 'policy = "a"\nmanifest = "b"\n'):
        path = written(tmp_path, head=f'name = "test"\n[broker]\nurl = "http://127.0.0.1:1"\n{more}')
        with pytest.raises(UsageError, match="by policy or by manifest"):
            read_workload(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml cannot be read"):
        read_workload(tmp_path / "nowhere.toml")
