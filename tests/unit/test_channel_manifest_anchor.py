"""The floor of a client: whatever is shown, in whatever order and by how many threads, it never goes down."""

from __future__ import annotations

import contextlib
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.channel.manifest_anchor import Anchored, ManifestAnchor, Seen
from cloister.encoding import encode_json
from cloister.errors import QuorumMissing, SignatureRefused, Superseded, UsageError
from cloister.manifest.draft import key_text
from cloister.manifest.manifest import origin
from cloister.manifest.owner_key import ssh_key_text
from cloister.manifest.signed import encode_signed, sign
from cloister.manifest.ssh import ssh_string
from manifest_parts import keys, manifest, owner, quorum, signed
from ssh_keys import frame, to_be_signed


def anchor(file: Path | None = None, *, floor: int = 1) -> ManifestAnchor:
    return ManifestAnchor(
        origin=origin(manifest()),
        owners=list(keys("alice", "bob", "carol").values()),
        threshold=2,
        workload="inference",
        floor=floor,
        floor_file=file,
    )


@cache
def shown(version: int, fork: int = 0) -> bytes:
    """A version as two owners signed it; another ``fork`` is another document of the same version."""
    previous = "" if version == 1 else "ab" * 32
    document = manifest(version=version, previous=previous, issued=fork)
    return encode_signed(signed(document, "alice", "carol"))


def accept(anchored: Anchored, data: bytes) -> Seen:
    taken = anchored.take(data)
    anchored.keep(taken.seen)
    return taken.seen


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 1), st.integers(0, 2)), max_size=15))
def test_what_several_clients_accept_one_after_the_other_never_goes_down(
    steps: list[tuple[int, int, int]],
) -> None:
    with TemporaryDirectory() as folder:
        clients = [Anchored(anchor(Path(folder) / "floor")) for _ in range(3)]
        taken: list[Seen] = []
        for version, fork, client in steps:
            with contextlib.suppress(Superseded):
                taken.append(accept(clients[client], shown(version, fork)))
        assert [one.version for one in taken] == sorted(one.version for one in taken)
        assert len({one.digest for one in taken}) == len({one.version for one in taken})


@pytest.mark.parametrize("kept", [True, False], ids=["in a file", "in memory"])
def test_twenty_threads_leave_the_highest(tmp_path: Path, kept: bool) -> None:
    anchored = Anchored(anchor(tmp_path / "floor" if kept else None))
    begin = threading.Barrier(20)

    def one(version: int) -> None:
        begin.wait(10)
        with contextlib.suppress(Superseded):
            accept(anchored, shown(version))

    threads = [threading.Thread(target=one, args=(1 + number % 10,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with pytest.raises(Superseded):
        accept(anchored, shown(9))
    assert accept(anchored, shown(10)).version == 10
    assert [path.name for path in tmp_path.iterdir()] == (["floor"] if kept else [])


def test_the_higher_of_the_anchors_floor_and_the_kept_one_counts(tmp_path: Path) -> None:
    file = tmp_path / "floor"
    accept(Anchored(anchor(file)), shown(3))
    with pytest.raises(Superseded):
        accept(Anchored(anchor(file, floor=2)), shown(2))
    with pytest.raises(Superseded):
        accept(Anchored(anchor(file, floor=5)), shown(4))
    assert accept(Anchored(anchor(file, floor=5)), shown(5)).version == 5


def test_a_floor_file_that_was_removed_is_written_again_from_memory(tmp_path: Path) -> None:
    file = tmp_path / "floor"
    anchored = Anchored(anchor(file))
    accept(anchored, shown(3))
    file.unlink()
    with pytest.raises(Superseded):
        accept(anchored, shown(2))
    accept(anchored, shown(3))
    assert b'"version":3' in file.read_bytes()


def test_a_floor_that_cannot_be_kept_stops_the_client(tmp_path: Path) -> None:
    missing = Anchored(anchor(tmp_path / "nowhere" / "floor"))
    with pytest.raises(UsageError, match="floor file"):
        accept(missing, shown(1))


def test_a_refused_manifest_leaves_the_floor_where_it_was(tmp_path: Path) -> None:
    anchored = Anchored(anchor(tmp_path / "floor"))
    document = manifest(version=9, previous="ab" * 32)
    with pytest.raises(QuorumMissing):
        accept(anchored, encode_signed(signed(document, "alice")))
    assert accept(anchored, shown(1)).version == 1


def test_one_owner_is_not_two_by_signing_in_two_forms() -> None:
    point = bytes.fromhex(owner("alice").key.removeprefix("ed25519:"))
    blob = ssh_string(b"ssh-ed25519") + ssh_string(point)

    class BySsh:
        """Alice's own key, used through SSH: the signature is a good one."""

        key = ssh_key_text(blob)

        def sign(self, message: bytes) -> bytes:
            return frame(
                blob, ssh_string(b"ssh-ed25519") + ssh_string(owner("alice").sign(to_be_signed(message)))
            )

    Anchored(anchor()).take(encode_signed(sign("manifest", encode_json(manifest()), [owner("bob"), BySsh()])))
    both = sign("manifest", encode_json(manifest()), [owner("alice"), BySsh()])
    with pytest.raises(SignatureRefused, match="one key signed the manifest twice"):
        Anchored(anchor()).take(encode_signed(both))


def test_pinned_keys_may_be_written_as_people_have_them() -> None:
    written = [key.removeprefix("ed25519:") for key in keys("alice", "bob", "carol").values()]
    mine = ManifestAnchor(origin=origin(manifest()), owners=written, threshold=2, workload="inference")
    assert list(mine.owners) == [key_text(key) for key in written]
    assert Anchored(mine).take(shown(1)).seen.version == 1


def test_a_later_versions_owners_can_be_pinned_instead() -> None:
    later = manifest(
        version=7,
        previous="ab" * 32,
        owners=keys("dora", "emil"),
        update=quorum("dora", "emil"),
        resources={},
    )
    mine = ManifestAnchor(
        origin=origin(later),
        owners=list(keys("dora", "emil").values()),
        threshold=2,
        workload="inference",
        floor=7,
    )
    assert Anchored(mine).take(encode_signed(signed(later, "dora", "emil"))).seen.version == 7
