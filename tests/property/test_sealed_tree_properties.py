"""A sealed tree against a dictionary: whatever is done, wherever the power goes, however often the disk is full or fails.

What was acknowledged is there; what was not is there as a whole or not at all; nothing that did not authenticate is read; no
nonce is ever used twice under one key.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cloister.errors import FormatError
from cloister.sealing.tree import Head, SealedTree, tree_keys
from cloister.sealing.tree.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from cloister.sealing.tree.creation import create_in
from cloister.sealing.tree.frames import parse_head
from cloister.sealing.tree.handle import TreeFile
from cloister.sealing.tree.opening import open_in
from cloister.sealing.tree.operations import (
    MakeDirectory,
    MakeFile,
    MakeLink,
    Move,
    Operation,
    Remove,
    SetAttributes,
    SetContents,
    decode_all,
    encode,
)
from cloister.sealing.tree.state import State, apply
from cloister.sealing.xaes import Xaes
from sealed_tree_disk import Disk, PowerLoss
from sealed_trees import errno_of
from sealing_samples import KEK, URI

SEGMENT = 4096
NAMES = ("a", "b", "c", "d", "d/a", "d/b", "e", "e/a", "d/f", "d/f/a")
paths = st.sampled_from(NAMES)
offsets = st.integers(0, 5 * SEGMENT) | st.sampled_from([0, SEGMENT - 1, SEGMENT, 2 * SEGMENT, 100 * SEGMENT])
lengths = st.integers(1, 3 * SEGMENT) | st.sampled_from([1, SEGMENT, 2 * SEGMENT, 40 * SEGMENT])
chances = st.integers(0, 2**32 - 1)

Model = dict[str, bytearray | str | None]
"""Path → contents, None for a folder, text for a link."""


class Keys:
    def key(self, uri: str) -> bytes:
        assert uri == URI
        return KEK


class RecordingXaes(Xaes):
    """Remembers every key and nonce that ever sealed, in all trees of a test."""

    __slots__ = ("_key",)
    used: ClassVar[set[tuple[bytes, bytes]]] = set()

    def __init__(self, key: Any) -> None:
        self._key = bytes(key)
        super().__init__(key)

    def seal_into(self, nonce: bytes, plain: Any, associated_data: bytes, out: Any) -> None:
        assert (self._key, nonce) not in self.used, "a nonce was used twice under one key"
        self.used.add((self._key, nonce))
        super().seal_into(nonce, plain, associated_data, out)


def tick() -> int:
    return 0


def opened(disk: Disk, *, writable: bool = True, minimum: Head | None = None) -> SealedTree:
    disk.locked = False
    return open_in(
        disk,
        Keys(),
        writable=writable,
        minimum=minimum,
        recorded=None,
        now_ns=tick,
        entropy=os.urandom,
        name="the tree",
    )


class Programs(RuleBasedStateMachine):
    """``now`` is what programs see, ``kept`` what was acknowledged."""

    @initialize()
    def begin(self) -> None:
        RecordingXaes.used = set()
        self.original = tree_keys.Xaes
        tree_keys.Xaes = RecordingXaes  # type: ignore[misc]
        self.disk = Disk()
        create_in(
            self.disk,
            key_uri=URI,
            kek=KEK,
            segment_size=SEGMENT,
            now_ns=tick,
            entropy=os.urandom,
            name="the tree",
        )
        self.tree = opened(self.disk)
        self.now: Model = {"": None}
        self.kept: Model = {"": None}
        self.head = self.tree.head
        self.handles: list[tuple[TreeFile, bytearray]] = []
        self.perhaps: list[Model] = []

    def teardown(self) -> None:
        if hasattr(self, "original"):
            tree_keys.Xaes = self.original  # type: ignore[misc]

    def parent_is_folder(self, path: str) -> bool:
        return self.now.get(path.rpartition("/")[0], "") is None

    def below(self, path: str) -> list[str]:
        return [name for name in self.now if name.startswith(f"{path}/")]

    # What programs do

    @rule(path=paths, keep=st.booleans())
    def create(self, path: str, keep: bool) -> None:
        if path in self.now or not self.parent_is_folder(path):
            assert errno_of(lambda: self.tree.create(path, 0o644)) in (
                errno.EEXIST,
                errno.ENOENT,
                errno.ENOTDIR,
            )
            return
        file = self.tree.create(path, 0o644)
        contents = self.now[path] = bytearray()
        if keep:
            self.handles.append((file, contents))
        else:
            file.close()

    @rule(path=paths)
    def open(self, path: str) -> None:
        contents = self.now.get(path)
        if isinstance(contents, bytearray) and len(self.handles) < 6:
            self.handles.append((self.tree.open(path, write=True), contents))

    def some_file(self, chance: int) -> tuple[TreeFile, bytearray] | None:
        return self.handles[chance % len(self.handles)] if self.handles else None

    @rule(chance=chances, offset=offsets, length=lengths)
    def write(self, chance: int, offset: int, length: int) -> None:
        found = self.some_file(chance)
        if found:
            file, contents = found
            data = random.Random(chance).randbytes(length)
            assert file.write(offset, data) == length
            contents.extend(bytes(max(0, offset - len(contents))))
            contents[offset : offset + length] = data

    @rule(chance=chances, size=offsets)
    def truncate(self, chance: int, size: int) -> None:
        found = self.some_file(chance)
        if found:
            file, contents = found
            file.truncate(size)
            del contents[size:]
            contents.extend(bytes(size - len(contents)))

    @rule(chance=chances, offset=offsets, length=lengths)
    def read(self, chance: int, offset: int, length: int) -> None:
        found = self.some_file(chance)
        if found:
            file, contents = found
            assert file.read(offset, length) == contents[offset : offset + length]

    @rule(chance=chances)
    def close(self, chance: int) -> None:
        if self.handles:
            self.handles.pop(chance % len(self.handles))[0].close()

    @rule(path=paths)
    def make_directory(self, path: str) -> None:
        if path in self.now or not self.parent_is_folder(path):
            assert errno_of(lambda: self.tree.make_directory(path, 0o755)) != 0
        else:
            self.tree.make_directory(path, 0o755)
            self.now[path] = None

    @rule(path=paths, to=st.sampled_from(["a", "../a", "x/y", "/a", "../../a", "a/../b"]))
    def link(self, path: str, to: str) -> None:
        climbs = {"a": 0, "x/y": 0, "../a": 1, "../../a": 2}.get(to, 99)
        inside = climbs <= path.count("/")
        if path in self.now or not self.parent_is_folder(path) or not inside:
            assert errno_of(lambda: self.tree.link(path, to)) != 0
        else:
            self.tree.link(path, to)
            self.now[path] = to

    @rule(path=paths)
    def remove(self, path: str) -> None:
        there = self.now.get(path, 0)
        if there == 0:
            assert errno_of(lambda: self.tree.unlink(path)) in (errno.ENOENT, errno.ENOTDIR)
        elif there is None:
            assert errno_of(lambda: self.tree.unlink(path)) == errno.EISDIR
            done = errno_of(lambda: self.tree.remove_directory(path))
            assert done == (errno.ENOTEMPTY if self.below(path) else 0)
            if not done:
                del self.now[path]
        else:
            assert errno_of(lambda: self.tree.remove_directory(path)) == errno.ENOTDIR
            self.tree.unlink(path)
            del self.now[path]

    @rule(old=paths, new=paths)
    def rename(self, old: str, new: str) -> None:
        done = errno_of(lambda: self.tree.rename(old, new))
        there, over = self.now.get(old, 0), self.now.get(new, 0)
        if there == 0 or not self.parent_is_folder(new):
            assert done in (errno.ENOENT, errno.ENOTDIR)
        elif old == new:
            assert done == 0
        elif new.startswith(f"{old}/"):
            assert done == errno.EINVAL
        elif over != 0 and (there is None) != (over is None):
            assert done == (errno.ENOTDIR if there is None else errno.EISDIR)
        elif over is None and self.below(new):
            assert done == errno.ENOTEMPTY
        elif done == errno.EPERM:
            assert any(isinstance(self.now[name], str) for name in (old, *self.below(old)))
        else:
            assert done == 0
            moved = {name: self.now.pop(name) for name in (old, *self.below(old))}
            for name, contents in moved.items():
                self.now[new + name.removeprefix(old)] = contents

    # What is promised

    def acknowledged(self) -> None:
        self.kept = copy.deepcopy(self.now)
        self.perhaps = []
        self.head = self.tree.head

    def journal_is_settled(self) -> bool:
        journal = self.tree._ledger._journal
        return journal is None or journal.settled

    @rule()
    def sync(self) -> None:
        self.tree.sync()
        self.acknowledged()

    @rule()
    def compact(self) -> None:
        self.tree.sync()
        self.tree._ledger.compact(over=0)
        self.acknowledged()

    @rule(bytes_left=st.integers(0, 6 * SEGMENT))
    def sync_on_a_full_disk(self, bytes_left: int) -> None:
        self.disk.full_after = bytes_left
        try:
            done = errno_of(self.tree.sync)
            assert done in (0, errno.ENOSPC)
            if not done:
                self.acknowledged()
        finally:
            self.disk.full_after = None

    @rule(chance=chances, bytes_left=st.integers(0, 6 * SEGMENT))
    def write_on_a_full_disk(self, chance: int, bytes_left: int) -> None:
        found = self.some_file(chance)
        if not found:
            return
        self.disk.full_after = bytes_left
        try:
            file, contents = found
            data = random.Random(chance).randbytes(4 * SEGMENT)
            if not errno_of(lambda: file.write(SEGMENT, data)):
                contents.extend(bytes(max(0, SEGMENT - len(contents))))
                contents[SEGMENT : SEGMENT + len(data)] = data
        finally:
            self.disk.full_after = None

    @rule(times=st.integers(1, 3), loses=st.booleans(), names=st.sampled_from(["", "journal-"]))
    def sync_on_a_failing_disk(self, times: int, loses: bool, names: str) -> None:
        self.disk.failing_syncs, self.disk.failing_loses, self.disk.failing_names = times, loses, names
        attempted = copy.deepcopy(self.now)
        try:
            if not errno_of(self.tree.sync):
                self.acknowledged()
            elif not self.journal_is_settled():
                # Neither the record nor its removal is certain: either may be found, as long as nothing else is done.
                self.perhaps.append(attempted)
        finally:
            self.disk.failing_syncs = 0

    @rule(chance=chances)
    def lose_power(self, chance: int) -> None:
        self.boot(chance, [self.kept])

    @rule(chance=chances, steps=st.integers(0, 12), compacting=st.booleans())
    def lose_power_in_a_commit(self, chance: int, steps: int, compacting: bool) -> None:
        self.disk.off_after = steps
        possible = [self.kept, copy.deepcopy(self.now)]
        try:
            self.tree.sync()
            if compacting:
                self.tree._ledger.compact(over=0)
            self.kept = possible[1]
            possible = [self.kept]
        except PowerLoss:
            pass
        self.boot(chance, possible)

    @rule()
    def close_and_open(self) -> None:
        for file, _ in self.handles:
            file.close()
        self.handles = []
        self.tree.close()
        self.kept = copy.deepcopy(self.now)
        self.tree = opened(self.disk, minimum=self.head)
        self.head = self.tree.head
        self.compare(self.kept)

    def boot(self, chance: int, possible: list[Model]) -> None:
        self.disk = self.disk.after_power_loss(random.Random(chance))
        self.handles = []
        # Read-only first: it changes nothing, and finds the same.
        self.tree = opened(self.disk, writable=False, minimum=self.head)
        found = self.listed()
        assert found in possible + self.perhaps
        before = self.tree.head
        self.tree = opened(self.disk, minimum=self.head)
        assert self.tree.head == before
        self.now = found
        self.acknowledged()
        self.compare(self.kept)

    def listed(self) -> Model:
        found: Model = {}
        waiting = [""]
        while waiting:
            path = waiting.pop()
            kind = self.tree.status(path).kind
            if kind == "directory":
                found[path] = None
                waiting += [f"{path}/{name}" if path else name for name in self.tree.names(path)]
            elif kind == "link":
                found[path] = self.tree.read_link(path)
            else:
                file = self.tree.open(path, write=False)
                found[path] = bytearray(file.read(0, 1 << 30))
                assert file.status.size == len(found[path] or b"")
                file.close()
        return found

    def compare(self, model: Model) -> None:
        assert self.listed() == model
        self.tree.verify()

    @rule()
    def look(self) -> None:
        self.compare(self.now)

    @invariant()
    def objects_stay_bounded(self) -> None:
        if hasattr(self, "tree"):
            count = sum(1 for name in self.disk.view_names if name.startswith("journal-"))
            assert count == 1


TestPrograms = Programs.TestCase
TestPrograms.settings = settings(
    stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


numbers = st.integers(1, 2**32)
names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 255)
times = st.integers(-(2**63), 2**63 - 1)
modes = st.integers(0, 0o7777)
object_ids = st.binary(min_size=16, max_size=16)
targets = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
entries = st.lists(st.binary(min_size=43, max_size=43), min_size=1, max_size=3).map(
    lambda found: b"".join(b"\0" + entry for entry in found)
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[tuple[int, bytes], ...]:
    found = []
    at = 0
    for _ in range(draw(st.integers(0, 3))):
        at += draw(st.integers(0, 10))
        run = draw(entries)
        found.append((at, run))
        at += len(run) // 44
    return tuple(found)


operations = st.one_of(
    st.builds(MakeFile, numbers, numbers, names, modes, times, object_ids),
    st.builds(MakeDirectory, numbers, numbers, names, modes, times),
    st.builds(MakeLink, numbers, numbers, names, targets, times),
    st.builds(Remove, numbers, names, times),
    st.builds(Move, numbers, names, numbers, names, times),
    st.builds(SetAttributes, numbers, modes, times, times),
    st.builds(SetContents, numbers, st.integers(0, 9), st.integers(0, 2**40), times, times, runs()),
)


@given(st.lists(operations, max_size=5))
def test_operations_come_back_and_their_bytes_are_canonical(found: list[Operation]) -> None:
    data = b"".join(map(encode, found))
    assert decode_all(data) == found
    for length in range(len(data)):
        try:
            cut = decode_all(data[:length])
        except FormatError:
            continue
        assert cut == found[: len(cut)]


@given(st.lists(operations, max_size=4), st.data())
def test_changed_operations_are_others_or_refused_and_never_crash(
    found: list[Operation], data: st.DataObject
) -> None:
    encoded = bytearray(b"".join(map(encode, found)))
    if not encoded:
        return
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        others = decode_all(bytes(encoded))
    except FormatError:
        return
    assert b"".join(map(encode, others)) == encoded


@given(st.binary(max_size=300))
def test_any_bytes_are_operations_or_refused(data: bytes) -> None:
    for act in (lambda: decode_all(data), lambda: decode_checkpoint([data]), lambda: parse_head(data)):
        with contextlib.suppress(FormatError):
            act()


@given(st.lists(operations, max_size=30))
def test_operations_that_cannot_follow_are_refused_and_nothing_else_is_raised(found: list[Operation]) -> None:
    state = State(SEGMENT, 0)
    for operation in found:
        with contextlib.suppress(FormatError):
            apply(state, operation)
    parts = list(encode_checkpoint(Checkpoint(state, 5, bytes(32), {3: bytes(32)})))
    again = decode_checkpoint(parts)
    assert list(encode_checkpoint(again)) == parts
    assert (again.version, dict(again.heads)) == (5, {3: bytes(32)})


def a_state(chance: random.Random) -> State:
    """A state that has something of everything."""
    state = State(SEGMENT, 0)
    folders = [1]
    for number in range(2, 40):
        parent, name = chance.choice(folders), f"n{number}"
        match chance.randrange(3):
            case 0:
                apply(state, MakeDirectory(number, parent, name, 0o700, number))
                folders.append(number)
            case 1:
                apply(state, MakeLink(number, parent, name, "x", number))
            case _:
                apply(state, MakeFile(number, parent, name, 0o600, number, chance.randbytes(16)))
                entry = b"\0" + chance.randbytes(43)
                first = chance.randrange(2000)
                size = (first + 2) * SEGMENT
                apply(state, SetContents(number, 0, size, number, number, ((first, entry * 2),)))
    return state


@given(chances, st.data())
@settings(max_examples=60)
def test_a_changed_or_cut_checkpoint_is_refused_or_another_canonical_one(
    chance: int, data: st.DataObject
) -> None:
    state = a_state(random.Random(chance))
    whole = b"".join(encode_checkpoint(Checkpoint(state, 9, bytes(32), {1: bytes(32), 9: bytes(32)})))
    # In whatever pieces it comes.
    at = data.draw(st.integers(0, len(whole)))
    assert b"".join(encode_checkpoint(decode_checkpoint([whole[:at], b"", whole[at:]]))) == whole
    if at < len(whole):
        with pytest.raises(FormatError):
            decode_checkpoint([whole[:at]])
        changed = bytearray(whole)
        changed[at] ^= data.draw(st.integers(1, 255))
        with contextlib.suppress(FormatError):
            decode_checkpoint([bytes(changed)])
    with pytest.raises(FormatError):
        decode_checkpoint([whole, b"\0"])
