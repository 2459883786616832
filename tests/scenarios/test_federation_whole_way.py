"""Three parties train one model, each in a network that one cable joins to the aggregator's, and somebody listens on it.

Two rounds as people run them, by commands alone; then whoever receives the model checks it, opens it and tags with it. What
was heard on the cable, what lies on disks, what was logged and what command lines say is searched for data and weights.
"""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from cloister.channel.headers import ATTESTATION_PATH
from cloister.encoding import decode_json, encode_json
from cloister.federated.provenance import NAME, SEALED, Provenance
from cloister.federated.training.tagger_files import open_tagger
from cloister.federated.updates import decode_arrays
from cloister.sealing.key_file import read_key
from deployment import CommandFailedError, cloister
from federation import AGGREGATOR, Federation
from federation_site import (
    KIND,
    MEMORY,
    PARTIES,
    Watch,
    canary,
    commands_here,
    edited,
    end,
    memory_folder_of,
    refusal,
    site,
    wait_for,
)
from task_parts import WORDS
from two_networks import overheard, streams, tls_fields, two_networks

RECEIVER: Final = "north"
TUNNEL: Final = 8201
HANDSHAKE, APPLICATION_DATA = 22, 23
pytestmark = pytest.mark.timeout(900)


@dataclass
class Went:
    """What is left of the run."""

    federation: Federation
    digest: str
    status: dict[str, Any]
    report: str
    heard: Path
    """What crossed the cable."""
    seen: dict[str, bytes] = field(repr=False)
    """What a host saw: files, logs, command lines and environments, by where."""
    open_folders: list[str]
    """Folders in memory that others than their owner could enter."""

    @property
    def out(self) -> Path:
        return self.federation.parties[RECEIVER].out

    def verify(self, *, digest: str | None = None) -> dict[str, Any]:
        key = self.federation.parties[RECEIVER].data_key
        words = ["--digest", digest or self.digest, "--key-file", key, "--json"]
        told: dict[str, Any] = json.loads(cloister("federation", "verify-model", self.out, *words))
        return told


@pytest.fixture(scope="module")
def went(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Went]:
    root = tmp_path_factory.mktemp("whole-way")
    federation = site(root, rounds=2, receivers=[RECEIVER])
    with commands_here():
        digest = federation.prepare()
    heard, report = root / "heard.pcapng", root / "report.html"
    with ExitStack() as undo:
        networks = undo.enter_context(two_networks())
        undo.callback(federation.stop)
        with overheard(networks, heard):
            with networks.inside(networks.one):
                federation.start_aggregator("--host", networks.one_address, port="8200", tunnel=str(TUNNEL))
            with networks.inside(networks.other), ExitStack() as watching:
                for name in PARTIES:
                    federation.start_workload(name)
                    federation.start_agent(name)
                for name in PARTIES:
                    federation.join(name)
                watch = Watch(federation)
                watching.callback(watch.close)
                wait_for(watch.rounds, seconds=240, what="the first round")
                seen = _processes(federation)
                wait_for(watch.ended, seconds=240, what="the end")
                wait_for((federation.parties[RECEIVER].out / NAME).exists, seconds=240, what="the model")
                status = federation.status(RECEIVER, "--report", report)
        folders = [memory_folder_of(federation.services[name]) for name in _flower(federation)]
        open_folders = [str(one) for one in folders if stat.S_IMODE(one.stat().st_mode) != 0o700]
        for folder in folders:
            seen |= {str(path): path.read_bytes() for path in folder.rglob("*.log")}
        end(federation)
        for path in federation.root.rglob("*"):
            if path.is_file() and path.suffix != ".key":  # those stay with their owners
                seen[str(path)] = path.read_bytes()
        seen |= {
            str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()
        }
        yield Went(federation, digest, status, report.read_text(), heard, seen, open_folders)


def _flower(federation: Federation) -> list[str]:
    """Parts that have something in memory."""
    return [name for name in federation.services if name == AGGREGATOR or name.endswith("workload")]


def _processes(federation: Federation) -> dict[str, bytes]:
    """Command lines and environments of every process that names this federation's folder, or one in memory."""
    seen = {}
    wanted = [str(federation.root).encode(), f"{MEMORY}/cloister-".encode()]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if any(one in line + environment for one in wanted):
            seen |= {f"{entry}/cmdline": line, f"{entry}/environ": environment}
    return seen


@pytest.fixture(scope="module")
def clear(went: Went, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, unsealed."""
    out, signer = tmp_path_factory.mktemp("clear") / "model", str(went.verify()["index_signer"])
    key = went.federation.parties[RECEIVER].data_key
    cloister("unseal", went.out / SEALED, "--key-file", key, "--signer", signer, "--out", out)
    return out


def _tensors(clear: Path) -> dict[str, bytes]:
    """A piece of each of the model's tensors that is not zeros, or ones."""
    pieces = {}
    for name in ("head.safetensors", "model.safetensors"):
        data = (clear / name).read_bytes()
        arrays = decode_arrays(data, what=name, limit=len(data))
        pieces |= {f"{name} {tensor}": array.tobytes()[:32] for tensor, array in arrays.items()}
    return {name: piece for name, piece in pieces.items() if len(set(piece)) > 12}


def test_three_parties_train_a_model_that_its_receiver_verifies_and_opens(went: Went, clear: Path) -> None:
    facts = went.status["facts"]
    rounds = [fact for fact in facts if fact["event"] == "round"]
    assert went.status["states"] == dict.fromkeys(PARTIES, "ready")
    assert [sorted(one["shares"]) for one in rounds] == [sorted(PARTIES)] * 2
    assert facts[-1]["event"] == "ended"
    assert facts[-1]["finished"]
    told = went.verify()
    assert told["checked"]
    assert told["rounds"] == 2
    assert told["parties"] == sorted(PARTIES)
    assert told["model"] == rounds[-1]["model"] == facts[-1]["model"]
    words = WORDS[:6]
    tags = open_tagger(clear).tag([words])
    assert [len(one) for one in tags] == [len(words)]
    assert set(tags[0]) <= {"O", f"B-{KIND}", f"I-{KIND}"}


def test_nobody_but_the_receiver_has_a_model(went: Went) -> None:
    others = [went.federation.parties[name].out for name in PARTIES if name != RECEIVER]
    assert [list(out.iterdir()) for out in others] == [[], []]


def test_the_report_is_one_page_with_every_party_and_round(went: Went) -> None:
    assert went.report.lstrip().startswith("<!doctype html")
    assert all(name in went.report for name in PARTIES)
    assert all(one["model"][:12] in went.report for one in went.status["facts"] if one["event"] == "round")
    assert "simulated" in went.report.lower()


def _flipped(folder: Path) -> None:
    path = max(
        (path for path in (folder / SEALED).rglob("*") if path.is_file()), key=lambda one: one.stat().st_size
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _edit(folder: Path, change: Callable[[Provenance], Provenance]) -> None:
    data = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(
        encode_json(change(decode_json(data, Provenance, what=NAME, limit=len(data))))
    )


def _said(vouched: Any, old: bytes, new: bytes) -> Any:
    assert old in vouched.statement
    return _with(vouched, statement=vouched.statement.replace(old, new))


def _with(record: Any, **changes: Any) -> Any:
    return type(record)(**({name: getattr(record, name) for name in record.__struct_fields__} | changes))


def _of(part: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    return lambda folder: _edit(
        folder, lambda found: _with(found, **{part: _said(getattr(found, part), old, new)})
    )


FORGERIES: Final[Mapping[str, tuple[Callable[[Path], None], str]]] = {
    "a byte of the sealed model is another": (_flipped, "does not authenticate"),
    "the aggregator's statement names another party": (_of("run", b'"west":', b'"zest":'), "evidence: "),
    "the aggregator's statement has one round more": (_of("run", b'"number":2', b'"number":3'), "evidence: "),
    "the workload's statement is of another party": (
        _of("files", b'"party":"north"', b'"party":"south"'), "'south' does not receive the model",
    ),
    "the workload's statement is beside the aggregator's evidence": (
        lambda folder: _edit(
            folder, lambda found: _with(found, files=_with(found.files, evidence=found.run.evidence))
        ),
        "verifier: ",
    ),
    "the federation is another": (
        lambda folder: _edit(
            folder, lambda found: _with(found, federation=edited(found.federation, b'"rounds":2', b'"rounds":1'))
        ),
        "manifest: ",
    ),
    "the sealed model is gone": (lambda folder: shutil.rmtree(folder / SEALED), "usage: "),
}  # fmt: skip


@pytest.mark.parametrize(("forge", "words"), FORGERIES.values(), ids=FORGERIES)
def test_a_model_that_its_provenance_does_not_speak_of_is_refused(
    went: Went, tmp_path: Path, forge: Callable[[Path], None], words: str
) -> None:
    folder, key = tmp_path / "copy", went.federation.parties[RECEIVER].data_key
    shutil.copytree(went.out, folder)
    forge(folder)
    error = refusal("federation", "verify-model", folder, "--digest", went.digest, "--key-file", key)
    assert words in str(error)


def test_a_model_of_another_federation_than_the_one_pinned_is_refused(went: Went) -> None:
    with pytest.raises(CommandFailedError) as caught:
        went.verify(digest="ab" * 32)
    assert caught.value.code == 3
    assert caught.value.line.splitlines()[-1].startswith('{"error": "manifest: ')


def test_a_listener_on_the_cable_hears_neither_data_nor_weights(went: Went, clear: Path) -> None:
    heard = streams(went.heard)
    tunnel = streams(went.heard, TUNNEL)
    update = len((went.federation.model / "model.safetensors").read_bytes())
    assert sum(map(len, tunnel)) > 2 * 2 * len(PARTIES) * update, "models went both ways, twice"
    assert any(ATTESTATION_PATH.encode() in one for one in heard), "what is public is heard"
    needles = _tensors(clear) | _secrets(went)
    needles |= {
        "a kind of entity": KIND.encode(),
        "safetensors": b'"dtype"',
        "a tensor's name": b"encoder.layer",
    }
    assert len(needles) > 20
    assert [name for name, needle in needles.items() for one in heard if needle in one] == []


def test_nothing_but_tls_1_3_leads_to_flower(went: Went) -> None:
    versions = tls_fields(
        went.heard, TUNNEL, "tls.handshake.type == 2", "tls.handshake.extensions.supported_version"
    )
    assert len(versions) >= len(PARTIES)
    assert set(versions) == {"0x0304"}
    assert tls_fields(went.heard, TUNNEL, "tls.handshake.type == 11", "frame.number") == [], (
        "a certificate was in the clear"
    )
    for one in streams(went.heard, TUNNEL):
        assert set(_records(one)) <= {20, 21, HANDSHAKE, APPLICATION_DATA}


def _records(stream: bytes) -> Iterator[int]:
    """The types of TLS records that ``stream`` is made of, to its last byte."""
    at = 0
    while at < len(stream):
        kind, version, length = (
            stream[at],
            stream[at + 1 : at + 3],
            int.from_bytes(stream[at + 3 : at + 5], "big"),
        )
        assert version in (b"\x03\x01", b"\x03\x03")
        assert at + 5 + length <= len(stream)
        at += 5 + length
        yield kind


def _secrets(went: Went) -> dict[str, bytes]:
    parties = went.federation.parties
    return {f"a word of {name}": canary(name).encode() for name in PARTIES} | {
        f"the data key of {name}": read_key(party.data_key) for name, party in parties.items()
    }


def test_neither_data_nor_weights_are_on_a_disk_in_a_log_or_on_a_command_line(
    went: Went, clear: Path
) -> None:
    needles = _tensors(clear) | _secrets(went)
    assert any("superlink.log" in place for place in went.seen)
    assert any("supernode.log" in place for place in went.seen)
    assert any("cmdline" in place for place in went.seen)
    found = [
        (name, place) for name, needle in needles.items() for place, hay in went.seen.items() if needle in hay
    ]
    assert found == []


def test_what_is_in_memory_is_its_owners_alone_and_gone_at_the_end(went: Went) -> None:
    assert went.open_folders == []
    assert [place for place in went.seen if place.startswith(str(MEMORY)) and Path(place).exists()] == []
