"""Sealing a directory straight into an object store, or anywhere that fsspec writes to: no sealed copy on this disk.

Sealed files go first, then the signature, then the index: until that is there the place is no sealed directory. Refuses a
place that holds anything. What an error leaves is removed where the store lets us; nothing ever reads it. An upload
does not go on where it stopped: its files are streams that cannot be looked at. Formats: as seal.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from cloister.errors import CloisterError, UsageError
from cloister.sealing.check import check_body
from cloister.sealing.descriptors import open_regular, read_into
from cloister.sealing.envelope import erase
from cloister.sealing.files import Entropy
from cloister.sealing.filesystem_remote import RemoteStore
from cloister.sealing.filesystem_stores import Store
from cloister.sealing.index import INDEX_NAME, SIGNATURE_NAME, Index, IndexEntry, sign_index, verify_index
from cloister.sealing.key_file import KeyFile
from cloister.sealing.seal import as_usage, files_below, same_source
from cloister.sealing.segments import SEGMENT_SIZE
from cloister.sealing.signing import SigningKey
from cloister.sealing.uri import parse_key_uri
from cloister.sealing.workers import Progress, Tally, cpus, share
from cloister.sealing.writer import SealedWriter


def store_at(url: str) -> tuple[Store, str]:
    """The store that an fsspec URL names, and the path there. Raises :class:`~cloister.errors.UsageError`."""
    from fsspec.core import url_to_fs  # noqa: PLC0415 -- only uploads need it

    scheme = url.partition("://")[0]
    try:
        filesystem, path = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"nothing here writes to {scheme}:// ({type(error).__name__})",
            todo="install what fsspec needs for it, for S3 `pip install s3fs`",
        ) from None
    return RemoteStore(filesystem), path.rstrip("/")


def upload_directory(
    source: Path,
    store: Store,
    place: str,
    *,
    key_uri: str,
    kek: bytes,
    signing_key: SigningKey,
    after: Index | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    verify: bool = False,
    verifying: Progress | None = None,
    entropy: Entropy = os.urandom,
) -> Index:
    """Seal every file below ``source`` into ``place`` of ``store``.

    Arguments as of :func:`~cloister.sealing.seal.seal_directory`.
    Raises :class:`~cloister.errors.UsageError`, :class:`~cloister.errors.NetworkError`, what the store's file system
    raises, and with ``verify`` the errors of sealing.
    """
    with as_usage():
        uri = str(parse_key_uri(key_uri))
        sources = files_below(source)
    _refuse_occupied(store, place)
    paths = list(sources)
    tally = Tally(sum(status.st_size for status in sources.values()), progress)
    entries: dict[str, IndexEntry] = {}

    def upload(number: int) -> None:
        path = paths[number]
        entries[path] = _upload(
            source / path, sources[path], store, place, uri=uri, kek=kek, tally=tally, entropy=entropy
        )

    try:
        with store.locked(place):
            share(len(paths), lambda: upload, workers=workers or cpus())
            if verify:
                _verify(
                    store,
                    place,
                    entries,
                    KeyFile(kek, uri),
                    Tally(sum(entry.size for entry in entries.values()), verifying),
                    workers,
                )
            tree = entropy(32) if after is None else after.tree
            version = 1 if after is None else after.version + 1
            with as_usage():
                data, signature = sign_index(entries, key=signing_key, tree=tree, version=version)
            store.write(f"{place}/{SIGNATURE_NAME}", signature, directory=place)
            store.write(f"{place}/{INDEX_NAME}", data, directory=place)
    except BaseException:
        _remove(store, place, entries)
        raise
    return verify_index(data, signature, signers=[signing_key.public_key])


def _upload(
    plain: Path,
    status: os.stat_result,
    store: Store,
    place: str,
    *,
    uri: str,
    kek: bytes,
    tally: Tally,
    entropy: Entropy,
) -> IndexEntry:
    body = store.body(place)
    clear = bytearray(min(SEGMENT_SIZE, status.st_size))
    try:
        with (
            open_regular(plain, UsageError) as descriptor,
            memoryview(clear) as view,
            SealedWriter(body, key_uri=uri, kek=kek, name=plain.name, entropy=entropy) as writer,
        ):
            while count := read_into(descriptor, view, writer.tell()):
                writer.write(view[:count])
                tally.add(count)
            if writer.tell() != status.st_size or not same_source(plain, status):
                raise UsageError(f"{plain} changed while it was sealed", todo="seal again when it is at rest")
        body.keep(f"{place}/{writer.file_name}")
    except BaseException:
        body.discard()
        raise
    finally:
        erase(clear)
    return writer.entry


def _verify(
    store: Store,
    place: str,
    entries: Mapping[str, IndexEntry],
    keys: KeyFile,
    tally: Tally,
    workers: int | None,
) -> None:
    paths = list(entries)

    def make_worker() -> Callable[[int], None]:
        def work(number: int) -> None:
            path = paths[number]
            source = store.source(f"{place}/{entries[path].file_name}")
            try:
                check_body(
                    source.read_into, source.size, name=path, expected=entries[path], keys=keys, tally=tally
                )
            finally:
                source.close()

        return work

    share(len(paths), make_worker, workers=workers or cpus())


def _refuse_occupied(store: Store, place: str) -> None:
    try:
        names = store.names(place) if store.is_directory(place) else []
    except FileNotFoundError:
        names = []
    if names:
        raise UsageError(
            f"{place} holds files already",
            todo="name a new folder, or remove what an interrupted upload left there",
        )


def _remove(store: Store, place: str, entries: Mapping[str, IndexEntry]) -> None:
    for name in (INDEX_NAME, SIGNATURE_NAME, *(entry.file_name for entry in list(entries.values()))):
        try:
            store.remove(f"{place}/{name}")
        except (OSError, CloisterError):
            return  # who cannot write there any more cannot remove either
