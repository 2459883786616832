"""SGX under Gramine: 16-byte keys through its pseudo-files, and a manifest that measures the launch."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import pytest

from broker_parts import policy_for, workload
from cloister.errors import UsageError, WorkloadError
from cloister.workload.configuration import GramineKey, read_workload
from cloister.workload.gramine import (
    gramine_key,
    manifest_fragment,
    require_gramine_form,
    require_no_gramine_keys,
    set_keys,
)
from cloister.workload.plan import make_plan
from workload_parts import written

KEK = bytes(range(32))
ENTRY = GramineKey(name="data", key="kbs:///default/key/data")
CONFIGURED = '[[gramine]]\nname = "data"\nkey = "kbs:///default/key/data"\n'


class Keys:
    def key(self, uri: str) -> bytes:
        assert uri == ENTRY.key
        return KEK


def test_a_mount_s_key_is_16_bytes_and_its_own() -> None:
    # HKDF-SHA256 of 00…1f with "cloister/gramine-key/v1", NUL and the name as info (docs/spec/workload.md).
    assert gramine_key(KEK, "data").hex() == "0c08dba960b3d69d54247f76807cff8e"
    assert gramine_key(KEK, "other") != gramine_key(KEK, "data")


def test_gramine_gets_its_keys_by_name(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(16))
    set_keys([ENTRY], Keys(), folder=tmp_path)
    assert (tmp_path / "data").read_bytes() == gramine_key(KEK, "data")


def test_a_key_that_the_manifest_does_not_name_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="data"):
        set_keys([ENTRY], Keys(), folder=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('[[mount]]\nsource="a"\npath="/a"\nwrite=true\nkey="kbs:///a/b/c"', id="a mount"),
        pytest.param('[program]\nuser="nobody"', id="another user"),
        pytest.param('[[secret]]\nresource="kbs:///a/b/c"\nfile="x"\nenv="X"', id="a secret in a file"),
        pytest.param('[identity]\nworkload="a"\napplication="b"', id="a mesh identity"),
        pytest.param(
            '[outputs]\nkey="kbs:///a/b/c"\nsigning_key="kbs:///a/b/d"', id="keys for its libraries"
        ),
    ],
)
def test_what_an_enclave_cannot_have_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="in an SGX enclave"):
        require_gramine_form(read_workload(written(tmp_path, text)).file)


def test_gramine_s_keys_are_for_enclaves_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="SGX only"):
        require_no_gramine_keys(read_workload(written(tmp_path, CONFIGURED)).file)


def test_the_manifest_fixes_arguments_and_names_every_measured_file_with_its_digest(tmp_path: Path) -> None:
    (tmp_path / "broker-policy.toml").write_text(policy_for(workload()))
    (tmp_path / "train.py").write_text("print(1)\n")
    path = written(tmp_path, CONFIGURED)
    plan = make_plan(
        read_workload(path), ["python", "train.py"], directory=tmp_path, root=Path("/run/cloister")
    )
    found = tomllib.loads(manifest_fragment(plan, path))
    assert found["loader"]["argv"][-2:] == [plan.program.argv[0], "train.py"]
    assert found["loader"]["insecure__use_cmdline_argv"] is False
    assert found["sgx"]["debug"] is False
    trusted = {one["uri"]: one.get("sha256") for one in found["sgx"]["trusted_files"]}
    assert trusted[f"file:{tmp_path}/train.py"] == plan.program.files[str(tmp_path / "train.py")]
    assert trusted[f"file:{plan.program.argv[0]}"] == plan.program.executable
    for read in (path, tmp_path / "broker-policy.toml"):  # what runs, and which broker is believed
        assert trusted[f"file:{read}"] == hashlib.sha256(read.read_bytes()).hexdigest()
    assert found["fs"]["start_dir"] == str(tmp_path)
    kinds = {one["type"]: one for one in found["fs"]["mounts"]}
    assert kinds["encrypted"]["key_name"] == "data"
    assert kinds["tmpfs"]["path"] == "/run/cloister"
