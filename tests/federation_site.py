"""Whole federations for scenario tests: tiny model and data on top of examples/federation.py, what a host and a party see.

A party's sentences hold a word of its own that stands nowhere else, so that one can look for its data everywhere.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cloister.channel.transport import SealedClient, connect
from cloister.cli import build
from cloister.cli.federation_parties import Seen
from cloister.cli.federation_serving import agreed_files
from cloister.cli.signing_options import one_signer
from cloister.encoding import encode_json, parse_json
from cloister.errors import CloisterError
from cloister.federated.agreement import AgreedFederation
from cloister.federated.progress import Begun, Ended, Fact, PartyState, RoundDone
from cloister.manifest.signers import Signer
from deployment import Service
from federation import AGGREGATOR, Federation
from task_parts import WORDS, save_encoder

PARTIES: Final = ("north", "south", "west")
KIND: Final = "Gralloch"
"""The kind of entity: a word that stands nowhere but in the data's tags and in the federation."""
SETTINGS: Final[Mapping[str, Any]] = {
    "kinds": [KIND], "train": "train.tsv", "test": "test.tsv", "format": "conll", "word-column": 0, "tag-column": 1,
    "length": 64, "stride": 16, "epochs": 1, "batch": 8, "rate-ppm": 2000, "head-rate-ppm": 5000, "precision": "fp32",
}  # fmt: skip
MEMORY: Final = Path("/dev/shm")
T = TypeVar("T")


def canary(party: str) -> str:
    """A word that stands in the data of ``party`` and nowhere else."""
    return f"Zugzwang{party.capitalize()}Quark"


def sentences(party: str, count: int, seed: int) -> bytes:
    """In CoNLL's form."""
    draw = random.Random(f"{party} {seed}")
    text = ""
    for _ in range(count):
        for word in draw.choices(WORDS, k=draw.randint(4, 9)):
            text += f"{word}\tO\n"
        text += f"{canary(party)}\tB-{KIND}\n{draw.choice(WORDS)}\tI-{KIND}\n\n"
    return text.encode()


def data_of(party: str) -> dict[str, bytes]:
    """A party's files."""
    return {"train.tsv": sentences(party, 24, 1), "test.tsv": sentences(party, 8, 2)}


def site(root: Path, **settings: Any) -> Federation:
    """A federation below ``root`` that nothing was done for yet but its model."""
    model = save_encoder(root / "models" / "encoder")
    return Federation(root / "site", model, {name: data_of(name) for name in PARTIES}, SETTINGS, **settings)


@contextlib.contextmanager
def commands_here() -> Iterator[None]:
    """What a federation does by commands that end is done in this process meanwhile: the same, without their start."""

    def here(*words: str | Path) -> str:
        result = invoked(*words)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("federation.cloister", here)
        yield


def invoked(*words: str | Path) -> Result:
    """What came of one command in this process."""
    return CliRunner().invoke(build(str(words[0])), [str(word) for word in words])


def refusal(*words: str | Path) -> CloisterError:
    """Why the command is refused: in one line."""
    error = invoked(*words).exception
    assert isinstance(error, CloisterError), error
    assert len(str(error).splitlines()) == 1
    return error


def edited(document: bytes, old: bytes, new: bytes) -> bytes:
    """A signed document in which somebody wrote ``new`` for ``old``, under the signatures that it has."""
    envelope = parse_json(document, what="a signed document")
    plain = base64.b64decode(envelope["document"], validate=True)
    assert old in plain
    return encode_json(envelope | {"document": base64.b64encode(plain.replace(old, new, 1)).decode()})


def end(federation: Federation, *, seconds: float = 60) -> None:
    """End every part, and leave it the time that it takes on a busy machine: what is killed cleans nothing up."""
    for service in federation.services.values():
        service.process.terminate()
    for service in federation.services.values():
        service.process.wait(seconds)
    federation.stop()


def agreed(federation: Federation) -> AgreedFederation:
    """As every part of it takes it."""
    return agreed_files([federation.document])


def signer(federation: Federation, party: str) -> Signer:
    """Signs for ``party``."""
    return one_signer(federation.parties[party].key, None, None)


@dataclass
class Watch:
    """A run as the verified aggregator tells it to one party, looked at from this process. Outlives an aggregator."""

    federation: Federation
    party: str = PARTIES[0]
    _seen: tuple[SealedClient, Seen] | None = field(default=None, repr=False)

    def look(self) -> tuple[Fact, ...]:
        """All that was told so far. Raises CloisterError."""
        if self._seen is None:
            found = agreed(self.federation)
            client = connect(self.federation.services[AGGREGATOR].url, policy=found.aggregator_policies())
            self._seen = client, Seen(client, found, self.party, signer(self.federation, self.party))
        return self._seen[1].look()

    def states(self) -> dict[str, str]:
        self.look()
        assert self._seen is not None
        return self._seen[1].states

    def rounds(self) -> list[RoundDone]:
        return [fact for fact in self.look() if isinstance(fact, RoundDone)]

    def told(self, party: str) -> list[PartyState]:
        """What became of ``party``."""
        return [fact for fact in self.look() if isinstance(fact, PartyState) and fact.party == party]

    def begun(self) -> list[Begun]:
        return [fact for fact in self.look() if isinstance(fact, Begun)]

    def ended(self) -> Ended | None:
        """The end, if nothing follows it."""
        turns = [fact for fact in self.look() if isinstance(fact, Begun | Ended)]
        return turns[-1] if turns and isinstance(turns[-1], Ended) else None

    def close(self) -> None:
        if self._seen is not None:
            self._seen[0].close()
            self._seen = None


def wait_for(look: Callable[[], T], *, seconds: float = 60, what: str = "") -> T:
    """The first answer of ``look`` that is something; an aggregator that is not there yet answers nothing."""
    until, last = time.monotonic() + seconds, ""
    while time.monotonic() < until:
        try:
            if found := look():
                return found
        except CloisterError as error:
            last = str(error)
        time.sleep(0.3)
    raise AssertionError(f"did not come within {seconds:.0f} s: {what}; {last}")


def children(process: int) -> Iterator[int]:
    """Everything that ``process`` started, and what that started."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == process:
            yield int(path.parent.name)
            yield from children(int(path.parent.name))


def alive(process: int) -> bool:
    """Whether it runs, and is not only waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def memory_folder_of(service: Service) -> Path:
    """The private folder in memory of a part that runs Flower: its children have paths in it on their command lines."""
    for process in children(service.process.pid):
        for word in Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0"):
            if word.startswith(f"{MEMORY}/cloister-"):
                return MEMORY / Path(word).relative_to(MEMORY).parts[0]
    raise AssertionError("this part has nothing in memory")


@contextlib.contextmanager
def killed(service: Service) -> Iterator[list[int]]:
    """``service`` ends by SIGKILL, so it removes nothing; what it had in memory goes at the end. Yields its children."""
    folder, below = memory_folder_of(service), list(children(service.process.pid))
    os.kill(service.process.pid, signal.SIGKILL)
    service.stop()
    try:
        yield below
    finally:
        for process in filter(alive, below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def in_memory_of(process: int, needle: bytes) -> bool:
    """Whether ``needle`` is anywhere in what ``process`` may write to; in a process that has ended there is nothing."""
    try:
        return _in_memory(process, needle)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _in_memory(process: int, needle: bytes) -> bool:
    with Path(f"/proc/{process}/maps").open() as maps, Path(f"/proc/{process}/mem").open("rb", 0) as memory:
        for line in maps:
            place, rights, *rest = line.split()
            if not rights.startswith("rw") or (len(rest) > 3 and rest[3] in ("[vvar]", "[vsyscall]")):
                continue
            begin, end = (int(part, 16) for part in place.split("-"))
            kept = b""
            while begin < end:
                with contextlib.suppress(OSError):
                    memory.seek(begin)
                    chunk = memory.read(min(16 << 20, end - begin))
                    if needle in kept + chunk:
                        return True
                    kept = chunk[-len(needle) :]
                begin += 16 << 20
    return False
