"""What a mount answers the kernel, request by request, without a kernel: a real one asks in tests/scenarios/test_mount_*."""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import WorkloadError
from cloister.workload import mount_kernel as kernel
from cloister.workload.mount import Mounted
from cloister.workload.mount_kernel import Opcode, Owner, Set
from memory_files import MemoryFiles

OWNER = Owner(uid=1000, gid=100)
NOW = 1_800_000_000 * 10**9
IN = struct.Struct("=IIQQIIIHH")
ATTRIBUTES = struct.Struct("=6Q10I")
FOREVER = 86_400


class Kernel:
    """Asks as the kernel does."""

    def __init__(self, files: Any = None) -> None:
        self.files = MemoryFiles() if files is None else files
        self.mounted = Mounted(self.files, OWNER, clock=lambda: NOW)
        self.unique = 0

    def raw(self, opcode: int, node: int = 1, body: bytes = b"") -> tuple[int, bytes]:
        """The errno (0: done) and the answer's body."""
        self.unique += 1
        data = IN.pack(IN.size + len(body), opcode, self.unique, node, 1000, 100, 7, 0, 0) + body
        answer = self.mounted.answer(memoryview(data))
        if answer is None:
            return 0, b""
        whole = b"".join(answer)
        length, error, unique = struct.unpack_from("=IiQ", whole)
        assert (length, unique) == (len(whole), self.unique)
        return -error, whole[16:]

    def ask(self, opcode: int, node: int = 1, body: bytes = b"") -> bytes:
        error, answer = self.raw(opcode, node, body)
        assert error == 0, errno.errorcode[error]
        return answer

    def lookup(self, name: str, node: int = 1) -> int:
        identity: int = struct.unpack_from("=Q", self.ask(Opcode.LOOKUP, node, name.encode() + b"\0"))[0]
        return identity

    def create(self, name: str, node: int = 1, mode: int = 0o100644) -> tuple[int, int]:
        """Node and handle."""
        answer = self.ask(
            Opcode.CREATE, node, kernel.CREATE_IN.pack(os.O_RDWR, mode, 0, 0) + name.encode() + b"\0"
        )
        return struct.unpack_from("=Q", answer)[0], struct.unpack_from("=Q", answer, 128)[0]

    def open(self, node: int, flags: int = os.O_RDWR) -> int:
        handle: int = struct.unpack_from("=Q", self.ask(Opcode.OPEN, node, kernel.OPEN_IN.pack(flags, 0)))[0]
        return handle

    def write(self, node: int, handle: int, offset: int, data: bytes) -> int:
        body = kernel.WRITE_IN.pack(handle, offset, len(data), 0, 0, 0, 0) + data
        count: int = struct.unpack_from("=I", self.ask(Opcode.WRITE, node, body))[0]
        return count

    def read(self, node: int, handle: int, offset: int = 0, size: int = 4096) -> bytes:
        return self.ask(Opcode.READ, node, kernel.READ_IN.pack(handle, offset, size, 0, 0, 0, 0))

    def setattr(self, node: int, valid: int, **fields: int) -> tuple[int, bytes]:
        before = [
            "valid",
            "_",
            "handle",
            "size",
            "lock",
            "atime",
            "modified",
            "ctime",
            "_",
            "modified_ns",
            "_",
        ]
        names = [*before, "mode", "_", "uid", "gid", "_"]
        values = [valid if name == "valid" else fields.get(name, 0) for name in names]
        return self.raw(Opcode.SETATTR, node, kernel.SETATTR_IN.pack(*values))

    def attributes(self, node: int) -> tuple[int, ...]:
        return ATTRIBUTES.unpack_from(self.ask(Opcode.GETATTR, node, kernel.GETATTR_IN.pack(0, 0, 0)), 16)

    def size(self, node: int) -> int:
        return self.attributes(node)[1]

    def names(self, node: int = 1, size: int = 4096) -> list[str]:
        handle = struct.unpack_from("=Q", self.ask(Opcode.OPENDIR, node, kernel.OPEN_IN.pack(0, 0)))[0]
        found: list[str] = []
        position = 0
        while True:
            data = self.ask(Opcode.READDIR, node, kernel.READ_IN.pack(handle, position, size, 0, 0, 0, 0))
            if not data:
                break
            while data:
                _, position, length, _ = struct.unpack_from("=QQII", data)
                found.append(data[24 : 24 + length].decode())
                data = data[24 + length + -(24 + length) % 8 :]
        self.ask(Opcode.RELEASEDIR, node, kernel.RELEASE_IN.pack(handle, 0, 0, 0))
        return found


@pytest.fixture
def asking() -> Kernel:
    return Kernel()


def name(text: str) -> bytes:
    return text.encode() + b"\0"


def rename(old: str, new: str, *, to: int = 1, flags: int = 0) -> bytes:
    return kernel.RENAME2_IN.pack(to, flags, 0) + name(old) + name(new)


class TestInit:
    def body(self, *, major: int = 7, minor: int = 45, flags: int = 0xFFFFFFFF) -> bytes:
        return struct.pack("=4I", major, minor, 131072, flags) + bytes(48)

    def test_the_kernel_learns_how_much_may_come_at_once(self, asking: Kernel):
        answer = struct.unpack("=4I2H2I2H2IH22x", asking.ask(Opcode.INIT, body=self.body()))
        assert answer[:2] == (7, 31)
        assert answer[6] == kernel.MAX_TRANSFER

    def test_locks_stay_the_kernels(self, asking: Kernel):
        flags = struct.unpack_from("=I", asking.ask(Opcode.INIT, body=self.body()), 12)[0]
        assert not flags & (1 << 1 | 1 << 10)

    def test_nothing_is_taken_that_the_kernel_does_not_offer(self, asking: Kernel):
        assert struct.unpack_from("=I", asking.ask(Opcode.INIT, body=self.body(flags=1)), 12)[0] == 1

    def test_writes_are_kept_by_the_kernel_only_where_there_are_any(self, asking: Kernel):
        asking.files.writable = False
        reading = Kernel(asking.files)
        for kernel_side, kept in ((Kernel(), True), (reading, False)):
            flags = struct.unpack_from("=I", kernel_side.ask(Opcode.INIT, body=self.body()), 12)[0]
            assert bool(flags & kernel.Capability.WRITEBACK_CACHE) == kept

    @pytest.mark.parametrize(("major", "minor"), [(7, 30), (6, 40), (8, 0)])
    def test_a_kernel_with_another_protocol_is_refused(self, major: int, minor: int):
        with pytest.raises(WorkloadError, match="speaks FUSE"):
            kernel.init_out(memoryview(self.body(major=major, minor=minor)), writable=True)


class TestNames:
    def test_a_missing_name_may_be_remembered_as_missing(self, asking: Kernel):
        answer = asking.ask(Opcode.LOOKUP, body=name("nothing"))
        assert struct.unpack_from("=4Q", answer) == (0, 0, FOREVER, 0)

    def test_everything_belongs_to_the_user_of_the_mount(self, asking: Kernel):
        node, _ = asking.create("file")
        *_, uid, gid, _, _, _ = asking.attributes(node)
        assert (uid, gid) == (OWNER.uid, OWNER.gid)

    def test_others_do_not_get_past_the_root(self, asking: Kernel):
        assert asking.attributes(1)[9] == stat.S_IFDIR | 0o700

    def test_a_folder_is_listed_in_pieces(self, asking: Kernel):
        for number in range(40):
            asking.create(f"file-{number:02}")
        assert asking.names(size=200) == [".", "..", *(f"file-{number:02}" for number in range(40))]

    def test_a_file_removed_while_its_folder_is_listed_is_left_out(self, asking: Kernel):
        asking.create("gone")
        asking.create("here")
        handle = struct.unpack_from("=Q", asking.ask(Opcode.OPENDIR, body=kernel.OPEN_IN.pack(0, 0)))[0]
        asking.ask(Opcode.UNLINK, body=name("gone"))
        listed = asking.ask(Opcode.READDIR, body=kernel.READ_IN.pack(handle, 0, 4096, 0, 0, 0, 0))
        assert b"here" in listed
        assert b"gone" not in listed

    def test_a_moved_folder_takes_what_is_below_it_along(self, asking: Kernel):
        asking.ask(Opcode.MKDIR, body=kernel.MKDIR_IN.pack(0o755, 0) + name("old"))
        folder = asking.lookup("old")
        node, handle = asking.create("file", folder)
        asking.write(node, handle, 0, b"content")
        asking.ask(Opcode.RENAME2, body=rename("old", "new"))
        assert asking.setattr(node, Set.MODE, mode=0o600)[0] == 0
        assert asking.files.status("new/file").mode == 0o600
        assert asking.lookup("file", folder) == node

    def test_a_file_keeps_its_content_when_its_name_goes_to_another(self, asking: Kernel):
        node, handle = asking.create("file")
        asking.write(node, handle, 0, b"the first")
        other, second = asking.create("beside")
        asking.write(other, second, 0, b"the second")
        asking.ask(Opcode.RENAME2, body=rename("beside", "file"))
        assert asking.read(node, handle) == b"the first"
        assert asking.lookup("file") == other

    def test_a_removed_file_that_is_open_is_looked_at_cut_and_dated_as_before(self, asking: Kernel):
        node, handle = asking.create("file")
        asking.write(node, handle, 0, b"content")
        asking.ask(Opcode.UNLINK, body=name("file"))
        assert asking.size(node) == 7
        assert asking.setattr(node, Set.SIZE | Set.HANDLE, size=3, handle=handle)[0] == 0
        assert asking.setattr(node, Set.MTIME, modified=5)[0] == 0
        assert asking.size(node) == 3
        assert asking.attributes(node)[10] == 0, "it has no name any more"

    def test_a_removed_file_that_nobody_has_open_is_stale(self, asking: Kernel):
        node, handle = asking.create("file")
        asking.ask(Opcode.UNLINK, body=name("file"))
        asking.ask(Opcode.RELEASE, node, kernel.RELEASE_IN.pack(handle, 0, 0, 0))
        assert asking.raw(Opcode.GETATTR, node, kernel.GETATTR_IN.pack(0, 0, 0))[0] == errno.ESTALE

    @pytest.mark.parametrize(
        ("flags", "number"),
        [
            pytest.param(1, errno.EEXIST, id="RENAME_NOREPLACE over something"),
            pytest.param(2, errno.EINVAL, id="RENAME_EXCHANGE"),
            pytest.param(4, errno.EINVAL, id="RENAME_WHITEOUT"),
            pytest.param(3, errno.EINVAL, id="both at once"),
        ],
    )
    def test_a_rename_of_another_kind_changes_nothing(self, asking: Kernel, flags: int, number: int):
        node, _ = asking.create("one")
        other, _ = asking.create("two")
        assert asking.raw(Opcode.RENAME2, body=rename("one", "two", flags=flags))[0] == number
        assert (asking.lookup("one"), asking.lookup("two")) == (node, other)

    @pytest.mark.parametrize(
        ("opcode", "body", "number"),
        [
            pytest.param(Opcode.LINK, struct.pack("=Q", 2) + name("new"), errno.EPERM, id="a hard link"),
            pytest.param(
                Opcode.MKNOD,
                kernel.MKNOD_IN.pack(stat.S_IFIFO, 0, 0, 0) + name("pipe"),
                errno.EPERM,
                id="a pipe",
            ),
            pytest.param(
                Opcode.MKNOD,
                kernel.MKNOD_IN.pack(stat.S_IFBLK, 1, 0, 0) + name("disk"),
                errno.EPERM,
                id="a device",
            ),
            pytest.param(22, bytes(16), errno.ENOSYS, id="an extended attribute"),
            pytest.param(43, bytes(32), errno.ENOSYS, id="fallocate"),
            pytest.param(31, bytes(48), errno.ENOSYS, id="a lock"),
            pytest.param(4096, b"", errno.ENOSYS, id="what no kernel asks"),
        ],
    )
    def test_what_is_not_offered_is_refused(self, asking: Kernel, opcode: int, body: bytes, number: int):
        assert asking.raw(opcode, body=body)[0] == number

    def test_the_kernel_may_forget_and_ask_again(self, asking: Kernel):
        node, handle = asking.create("file")
        asking.ask(Opcode.RELEASE, node, kernel.RELEASE_IN.pack(handle, 0, 0, 0))
        assert asking.lookup("file") == node
        asking.raw(Opcode.FORGET, node, kernel.FORGET_IN.pack(1))
        assert asking.lookup("file") == node
        body = kernel.BATCH_FORGET_IN.pack(1, 0) + kernel.FORGET_ONE.pack(node, 2)
        asking.raw(Opcode.BATCH_FORGET, 0, body)
        assert asking.lookup("file") not in (node, 0)

    def test_a_folder_forgotten_before_what_is_below_it_still_has_its_path(self, asking: Kernel):
        asking.ask(Opcode.MKDIR, body=kernel.MKDIR_IN.pack(0o755, 0) + name("folder"))
        folder = asking.lookup("folder")
        node, _ = asking.create("file", folder)
        asking.raw(Opcode.FORGET, folder, kernel.FORGET_IN.pack(2))
        assert asking.setattr(node, Set.MODE, mode=0o600)[0] == 0
        assert asking.files.status("folder/file").mode == 0o600


class TestFiles:
    @given(pieces=st.lists(st.tuples(st.integers(0, 9000), st.binary(min_size=1, max_size=3000)), max_size=8))
    def test_what_was_written_is_read(self, pieces: list[tuple[int, bytes]]):
        asking = Kernel()
        node, handle = asking.create("file")
        model = bytearray()
        for offset, data in pieces:
            assert asking.write(node, handle, offset, data) == len(data)
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + len(data)] = data
        assert asking.read(node, handle, 0, 20_000) == model
        assert asking.size(node) == len(model)

    def test_opening_with_o_trunc_empties_the_file(self, asking: Kernel):
        node, handle = asking.create("file")
        asking.write(node, handle, 0, b"content")
        asking.open(node, os.O_WRONLY | os.O_TRUNC)
        assert asking.size(node) == 0

    def test_creating_what_is_there_is_refused(self, asking: Kernel):
        asking.create("file")
        body = kernel.CREATE_IN.pack(os.O_RDWR | os.O_EXCL, 0o644, 0, 0) + name("file")
        assert asking.raw(Opcode.CREATE, body=body)[0] == errno.EEXIST

    def test_fsync_reaches_the_store(self, asking: Kernel):
        node, handle = asking.create("file")
        asking.ask(Opcode.FSYNC, node, kernel.FSYNC_IN.pack(handle, 0, 0))
        asking.ask(Opcode.FSYNCDIR, 1, kernel.FSYNC_IN.pack(0, 0, 0))
        assert asking.files.syncs == 2

    def test_a_time_set_to_now_is_the_clocks(self, asking: Kernel):
        node, _ = asking.create("file")
        asking.setattr(node, Set.MTIME | Set.MTIME_NOW)
        assert asking.files.status("file").modified_ns == NOW
        asking.setattr(node, Set.MTIME, modified=3, modified_ns=4)
        assert asking.files.status("file").modified_ns == 3_000_000_004

    @pytest.mark.parametrize(
        ("valid", "fields", "number"),
        [
            pytest.param(Set.UID, {"uid": OWNER.uid}, 0, id="to the owner of all"),
            pytest.param(Set.GID, {"gid": OWNER.gid}, 0, id="to the group of all"),
            pytest.param(Set.UID, {"uid": 0}, errno.EPERM, id="to root"),
            pytest.param(Set.GID, {"gid": 0}, errno.EPERM, id="to another group"),
        ],
    )
    def test_owners_do_not_change(self, asking: Kernel, valid: int, fields: dict[str, int], number: int):
        node, _ = asking.create("file")
        assert asking.setattr(node, valid, **fields)[0] == number

    def test_every_handle_is_closed_once(self, asking: Kernel):
        node, handle = asking.create("file")
        second = asking.open(node)
        for number in (handle, second):
            asking.ask(Opcode.RELEASE, node, kernel.RELEASE_IN.pack(number, 0, 0, 0))
        assert asking.files.open_handles == 0
        assert asking.raw(Opcode.RELEASE, node, kernel.RELEASE_IN.pack(handle, 0, 0, 0))[0] == errno.EBADF
        assert asking.raw(Opcode.READ, node, kernel.READ_IN.pack(handle, 0, 9, 0, 0, 0, 0))[0] == errno.EBADF

    def test_a_full_disk_is_told_as_such(self):
        asking = Kernel(MemoryFiles(limit=10))
        node, handle = asking.create("file")
        body = kernel.WRITE_IN.pack(handle, 8, 5, 0, 0, 0, 0) + b"12345"
        assert asking.raw(Opcode.WRITE, node, body)[0] == errno.ENOSPC


class TestRefusals:
    def test_what_does_not_authenticate_is_an_io_error_and_one_line_that_names_the_file(
        self, asking: Kernel, caplog: pytest.LogCaptureFixture
    ):
        node, handle = asking.create("accounts.db")
        asking.write(node, handle, 0, b"a secret")
        asking.files.damaged.add(asking.files.status("accounts.db").number)
        for _ in range(3):
            body = kernel.READ_IN.pack(handle, 0, 9, 0, 0, 0, 0)
            assert asking.raw(Opcode.READ, node, body) == (errno.EIO, b"")
        (record,) = caplog.records
        assert "accounts.db" in record.getMessage()
        assert "secret" not in record.getMessage()

    def test_a_mistake_of_our_own_is_an_io_error_whose_text_is_not_logged(
        self, asking: Kernel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ):
        caplog.set_level(logging.DEBUG)
        node, handle = asking.create("file")

        def fail(*_: object) -> int:
            raise ValueError("what the program wrote")

        monkeypatch.setattr("memory_files.MemoryFile.write", fail)
        body = kernel.WRITE_IN.pack(handle, 0, 1, 0, 0, 0, 0) + b"x"
        assert asking.raw(Opcode.WRITE, node, body)[0] == errno.EIO
        assert "what the program wrote" not in caplog.text
        assert "ValueError" in caplog.text

    def test_an_unknown_node_is_stale(self, asking: Kernel):
        assert asking.raw(Opcode.GETATTR, 999, kernel.GETATTR_IN.pack(0, 0, 0))[0] == errno.ESTALE

    @given(opcode=st.integers(1, 55), node=st.integers(0, 3), body=st.binary(max_size=120))
    def test_no_request_however_garbled_ends_the_mount(self, opcode: int, node: int, body: bytes):
        logging.disable(logging.WARNING)
        try:
            asking = Kernel()
            asking.create("file")
            asking.raw(opcode, node, body)
            assert asking.lookup("file")
        finally:
            logging.disable(logging.NOTSET)

    def test_a_request_of_another_length_than_it_says_is_none(self):
        with pytest.raises(ValueError, match="length"):
            kernel.parse_request(memoryview(IN.pack(99, 1, 1, 1, 0, 0, 0, 0, 0)))
