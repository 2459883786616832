"""``sealed://``: sealed directories on any fsspec filesystem, read at random and written file by file.

    sealed:///data/set.sealed/part.parquet
    sealed://s3://bucket/set.sealed/part.parquet   and chained   sealed::s3://bucket/set.sealed/part.parquet

The sealed directory of a path is its nearest parent with an index. Refused: indexes that no accepted signer signed or
that are older than one seen before, and every change in place (append, ``r+``): suite 1 seals once. Nothing that can open
files is pickled with the filesystem. Guide: docs/how-to/sealed-files-in-python.md.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

from fsspec.implementations.chained import ChainedFileSystem

from cloister.errors import UsageError
from cloister.sealing import KeySource
from cloister.sealing.access import Access, registered
from cloister.sealing.envelope import MAGIC
from cloister.sealing.filesystem_directory import Pins
from cloister.sealing.filesystem_memory import AccessMemory, memory_of
from cloister.sealing.filesystem_places import Place, Places
from cloister.sealing.filesystem_reading import SealedFile, SegmentReader, Verify
from cloister.sealing.filesystem_writing import SealedTransaction, SealedUpload
from cloister.sealing.index import SUFFIX, IndexEntry


class _PerAccess(type(ChainedFileSystem)):  # type: ignore[misc]  # fsspec has no types
    """Gives each access its own instances, and keeps it out of what fsspec pickles and writes as JSON."""

    def __call__(cls, *args: Any, access: Access | None = None, **options: Any) -> Any:
        memory = memory_of(access if access is not None else registered())
        made = super().__call__(*args, access=memory, **options)
        made.storage_options.pop("access", None)
        return made


class SealedFileSystem(ChainedFileSystem, metaclass=_PerAccess):  # type: ignore[misc]  # fsspec has no types
    """Files in sealed directories. ``access`` defaults to what the process registered.

    ``target_options`` go to the filesystem below. ``verify`` is "whole" (before the first byte of a file is handed
    out, all of it is compared with its signed digest) or "segments" (only what is read is fetched and authenticated, by
    the data key alone). ``minimum_version`` and ``tree`` (64 hexadecimal digits) pin the indexes that are accepted,
    ``output_key`` names the key of new files.
    """

    protocol = "sealed"
    root_marker = ""
    transaction_type = SealedTransaction

    def __init__(
        self,
        fo: str | None = None,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        *,
        access: AccessMemory,
        verify: Verify = "whole",
        minimum_version: int = 1,
        tree: str | None = None,
        output_key: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if verify not in ("whole", "segments"):
            raise UsageError(f'verify is "whole" or "segments", not {verify!r}')
        if target_protocol == self.protocol:
            raise UsageError("sealed:// over sealed:// is not a thing that opens")
        try:
            pinned = None if tree is None else bytes.fromhex(tree)
        except ValueError:
            raise UsageError("a tree is named by 64 hexadecimal digits") from None
        self._memory = access
        self._verify: Verify = verify
        self._output_key = output_key
        self._places = Places(target_protocol, target_options or {}, access, Pins(minimum_version, pinned))

    @property
    def keys(self) -> KeySource:
        """The keys of its access; each is asked for once."""
        return self._memory

    def place(self, path: str) -> Place:
        """The sealed directory of a path, its index verified, and its path in there."""
        return self._places.find(cast(str, self._strip_protocol(path)))

    # Looking around.

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """``name``, ``type``, ``size`` (bytes of plaintext) and, of a file in an index, ``ETag``: its digest."""
        path = self._strip_protocol(path)
        place = self._places.find(path)
        if place.index is not None:
            if place.entry is not None:
                return _file_info(path, place.entry)
            if place.is_folder():
                return _folder_info(path)
        elif place.store.is_directory(place.path):
            return _folder_info(path)
        elif self._is_lone(place):
            with self._read(place, path) as file:
                return {"name": path, "type": "file", "size": file.size}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Files and folders of a sealed directory; outside of one the folders that may lead to some."""
        path = self._strip_protocol(path)
        place = self._places.find(path)
        found: dict[str, dict[str, Any]] = {}
        if place.index is not None:
            if place.entry is not None:
                found[path] = _file_info(path, place.entry)
            for name in place.inside():
                first, rest, _deeper = name[len(place.below) :].partition("/")
                shown = place.name(place.below + first)
                found[shown] = _folder_info(shown) if rest else _file_info(shown, place.index.files[name])
        else:
            for inner, is_directory in place.store.names(place.path):
                shown = f"{path}/{inner.rsplit('/', 1)[-1]}"
                if is_directory:
                    found[shown] = _folder_info(shown)
                elif inner.endswith(SUFFIX):
                    with suppress(FileNotFoundError):
                        found[shown] = self.info(shown)
        if not found and not place.is_folder():
            self.info(path)
        return list(found.values()) if detail else list(found)

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **options: Any,
    ) -> Any:
        """As fsspec has it; inside a sealed directory its index answers at once."""
        path = self._strip_protocol(path)
        place = self._places.find(path)
        if place.index is None:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **options)
        found: dict[str, dict[str, Any]] = {}
        if place.entry is not None:
            found[path] = _file_info(path, place.entry)
        elif withdirs and place.is_folder():
            found[path] = _folder_info(path)
        for name in place.inside():
            parts = name[len(place.below) :].split("/")
            if maxdepth is None or len(parts) <= maxdepth:
                found[place.name(name)] = _file_info(place.name(name), place.index.files[name])
            for depth in range(1, min(len(parts), maxdepth + 1 if maxdepth is not None else len(parts))):
                if withdirs:
                    folder = place.name(place.below + "/".join(parts[:depth]))
                    found[folder] = _folder_info(folder)
        return dict(sorted(found.items())) if detail else sorted(found)

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is such a file or folder. What is there and does not verify raises: it is not absent."""
        return self._kind(path) is not None

    def isdir(self, path: str) -> bool:
        return self._kind(path) == "directory"

    def isfile(self, path: str) -> bool:
        return self._kind(path) == "file"

    def _kind(self, path: str) -> str | None:
        try:
            return cast(str, self.info(path)["type"])
        except FileNotFoundError:
            return None

    def invalidate_cache(self, path: str | None = None) -> None:
        """Ask again for keys and indexes. What was seen stays the oldest that is accepted."""
        self._memory.forget_keys()
        self._memory.forget_freshness()
        super().invalidate_cache(path)

    # Reading and writing.

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, autocommit: bool = True, **_: Any
    ) -> Any:
        if mode in ("rb", "r"):
            return self._read(self._places.find(path), path)
        if mode not in ("wb", "w", "xb", "x"):
            raise UsageError(
                f"{path} cannot be opened as {mode!r}: a sealed file is written once, as a whole",
                todo="write a new file, or use `cloister mount`, whose files change in place",
            )
        place = self._places.find(path, new=True)
        if place.entry is not None and mode.startswith("x"):
            raise FileExistsError(path)
        assert place.directory is not None  # noqa: S101 -- for the type checker: `new` names one
        place.directory.check_writable()
        uri = self._output_key or self._memory.access.output_key
        if uri is None:
            raise UsageError(
                f"no key is named under which {path} is to be sealed",
                todo="register an Access with an output_key, or name one in storage_options",
            )
        kek = self._memory.key(uri)
        return SealedUpload(
            place.directory, place.relative, path=path, key_uri=uri, kek=kek, autocommit=autocommit
        )

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes of a file, or of a range of it; negative bounds count from its end."""
        with self.open(path, "rb") as opened:
            file = cast(SealedFile, opened)
            first = 0 if start is None else max(0, file.size + start if start < 0 else start)
            last = file.size if end is None else file.size + end if end < 0 else end
            file.seek(first)
            return file.read(max(0, min(last, file.size) - first))

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Seal what is in a file once more, under another path."""
        if self.isdir(path1):
            return
        with self.open(path1, "rb") as source, self.open(path2, "wb") as target:
            while part := source.read(1 << 22):
                target.write(part)

    def rm_file(self, path: str) -> None:
        """Take a file out of its index, and remove its body. Folders are there as long as files are in them."""
        self.rm(path)

    _rm = rm_file

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        """One new version of the index for all that go."""
        doomed: dict[str, tuple[Place, list[str]]] = {}
        for name in self.expand_path(path, recursive=recursive, maxdepth=maxdepth):
            place = self._places.find(name)
            if place.directory is None or place.index is None:
                raise UsageError(f"{name} is in no sealed directory", todo="remove it where it lies")
            if place.entry is not None:
                doomed.setdefault(place.directory.path, (place, []))[1].append(place.relative)
            elif not recursive:
                raise (IsADirectoryError if place.is_folder() else FileNotFoundError)(name)
        for place, relatives in doomed.values():
            if place.directory is not None:
                place.directory.publish({}, removed=relatives)

    def mv(
        self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **options: Any
    ) -> None:
        """Another path in the index, for a file or a folder; its sealed body stays as it is."""
        old, new = (
            self._places.find(self._strip_protocol(path1)),
            self._places.find(self._strip_protocol(path2), new=True),
        )
        same = (
            old.directory is not None
            and new.directory is not None
            and old.directory.path == new.directory.path
        )
        if not same or old.index is None:
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **options)
            return
        if old.entry is not None:
            into = new.entry is None and (new.is_folder() or not new.relative)
            target = f"{new.below}{old.relative.rsplit('/', 1)[-1]}" if into else new.relative
            moved = {old.relative: target}
        else:
            moved = {name: f"{new.below}{name[len(old.below) :]}" for name in old.inside()}
        if not moved:
            raise FileNotFoundError(path1)
        if old.directory is not None and any(before != after for before, after in moved.items()):
            old.directory.publish({}, moved=moved)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: folders are parts of the paths of files."""

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Nothing, as :meth:`makedirs`."""

    def rmdir(self, path: str) -> None:
        """Nothing to do for a folder without files. Raises :class:`OSError` if there are some."""
        if self.isdir(path) and self.ls(path):
            raise OSError(f"{path} is not empty")

    # How paths are found.

    def _read(self, place: Place, path: str) -> SealedFile:
        entry, verify = place.entry, self._verify
        if entry is None and not self._is_lone(place):
            if place.is_folder():
                raise IsADirectoryError(path)
            raise FileNotFoundError(path)
        body = place.path if entry is None or place.directory is None else place.directory.body_path(entry)
        details = {"name": path, "type": "file"} if entry is None else _file_info(path, entry)
        try:
            source = place.store.source(body)
        except FileNotFoundError:
            if place.directory is not None:
                place.directory.stale()  # another writer may have replaced it
            raise
        try:
            reader = SegmentReader(
                source, self._memory, name=path.rsplit("/", 1)[-1], expected=entry, verify=verify
            )
        except BaseException:
            source.close()
            raise
        return SealedFile(reader, fs=self, path=path, details={**details, "size": reader.layout.size})

    def _is_lone(self, place: Place) -> bool:
        """A sealed file outside of any sealed directory. Nothing but its key vouches for it, so it must ask to be one."""
        if place.index is not None or not place.path.endswith(SUFFIX):
            return False
        try:
            source = place.store.source(place.path)
        except FileNotFoundError:
            return False
        try:
            start = bytearray(len(MAGIC))
            return source.read_into(memoryview(start), 0) == len(MAGIC) and bytes(start) == MAGIC
        finally:
            source.close()


def _file_info(path: str, entry: IndexEntry) -> dict[str, Any]:
    return {"name": path, "type": "file", "size": entry.size, "ETag": entry.digest.hex()}


def _folder_info(path: str) -> dict[str, Any]:
    return {"name": path, "type": "directory", "size": 0}
