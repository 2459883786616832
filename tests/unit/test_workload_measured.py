"""The launch document moves with everything that decides what runs, and with nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from msgspec import structs

from broker_parts import policy_for, workload
from cloister.appraisal.policy import load_policy
from cloister.encoding import encode_json
from cloister.workload.configuration import Broker, Mounted, Program, Restored, Secret, WorkloadFile
from cloister.workload.measured import inputs_digest, launch_document, workload_events
from cloister.workload.program import MeasuredProgram

POLICY = load_policy(policy_for(workload()), name="test")
PROGRAM = MeasuredProgram(
    argv=("/usr/bin/python", "x.py"), executable="ab", file="/usr/bin/python3", files={"/x.py": "cd"}
)
FILE = WorkloadFile(
    name="test",
    broker=Broker(url="http://127.0.0.1:1", policy="policy.toml"),
    signers=("00" * 32,),
    restore=(Restored(source="base.sealed", path="/models/base"),),
    mount=(Mounted(source="out.tree", path="/out", write=True, key="kbs:///a/b/c"),),
    secret=(Secret(resource="kbs:///a/b/d", file="token", env="TOKEN"),),
)


def _config(file: WorkloadFile = FILE, program: MeasuredProgram = PROGRAM, **changes: object) -> bytes:
    plain: dict[str, object] = {"directory": "/work", "policies": [POLICY], "environment": {"A": "b"}}
    return encode_json(launch_document(file, program, **{**plain, **changes}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(structs.replace(FILE, signers=("11" * 32,)), id="who may sign"),
        pytest.param(structs.replace(FILE, mount=()), id="what is mounted"),
        pytest.param(structs.replace(FILE, secret=()), id="which secrets it gets"),
        pytest.param(structs.replace(FILE, name="other"), id="its name"),
        pytest.param(structs.replace(FILE, resources=("kbs:///a/b/e",)), id="which keys it may ask for"),
        pytest.param(structs.replace(FILE, program=Program(user="nobody")), id="who it runs as"),
        pytest.param(
            structs.replace(FILE, restore=(structs.replace(FILE.restore[0], index="signed"),)), id="what is pinned"
        ),
    ],
)  # fmt: skip
def test_another_configuration_is_another_launch(file: WorkloadFile) -> None:
    assert _config(file) != _config()


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"argv": ("/usr/bin/python", "y.py")}, id="an argument"),
        pytest.param({"executable": "ee"}, id="the interpreter"),
        pytest.param({"files": {"/x.py": "ce"}}, id="the script"),
    ],
)
def test_another_program_is_another_launch(changed: dict[str, object]) -> None:
    program = MeasuredProgram(
        **{name: changed.get(name, getattr(PROGRAM, name)) for name in PROGRAM.__slots__}
    )  # type: ignore[arg-type]
    assert _config(program=program) != _config()


def test_another_folder_variable_or_broker_policy_is_another_launch() -> None:
    other = load_policy(policy_for(workload(b"another broker")), name="test")
    for changes in ({"directory": "/tmp"}, {"environment": {"A": "c"}}, {"policies": [other]}):
        assert _config(**changes) != _config()


def test_where_things_lie_on_the_machine_is_not_measured() -> None:
    moved = structs.replace(
        FILE,
        broker=Broker(url="https://elsewhere:9", policy="other-name.toml"),
        restore=(structs.replace(FILE.restore[0], source="/mnt/base.sealed"),),
    )
    assert _config(moved) == _config()
    assert b"127.0.0.1" not in _config()


def test_a_single_index_is_measured_as_it_is_printed_and_several_by_their_places() -> None:
    one, two = hashlib.sha256(b"1").digest(), hashlib.sha256(b"2").digest()
    assert inputs_digest({}) is None
    assert inputs_digest({"/a": one}) == one
    assert inputs_digest({"/a": one, "/b": two}) == inputs_digest({"/b": two, "/a": one})
    assert inputs_digest({"/a": one, "/b": two}) != inputs_digest({"/a": two, "/b": one})


def test_the_events_are_configuration_program_and_inputs_in_this_order(tmp_path: Path) -> None:
    launch = launch_document(FILE, PROGRAM, directory="/work", policies=[POLICY], environment={})
    digest = hashlib.sha256(b"index").digest()
    events = workload_events(launch, {"/models/base": digest})
    assert [event.name for event in events] == ["cloister.config", "cloister.program", "cloister.model-index"]
    assert events[0].payload == hashlib.sha256(encode_json(launch)).digest()
    assert events[2].payload == digest
