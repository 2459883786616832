"""``cloister.sealing.open``: a sealed file as a Python file, by local path or URL, for reading or for writing anew.

Refuses what the ``sealed://`` filesystem refuses (filesystem.py): changes in place, unsigned or older indexes, and
everything while the process has no access to sealed files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any, Literal, overload

from cloister.errors import UsageError
from cloister.sealing.access import Access


@overload
def open(  # noqa: A001
    path: str | os.PathLike[str],
    mode: Literal["rb", "wb", "xb"] = "rb",
    *,
    access: Access | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    **options: Any,
) -> IO[bytes]: ...
@overload
def open(  # noqa: A001
    path: str | os.PathLike[str],
    mode: Literal["r", "rt", "w", "wt", "x", "xt"],
    *,
    access: Access | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    **options: Any,
) -> IO[str]: ...
def open(  # noqa: A001 -- it is what it is called: cloister.sealing.open
    path: str | os.PathLike[str],
    mode: str = "rb",
    *,
    access: Access | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    **options: Any,
) -> IO[Any]:
    """Open a file of a sealed directory. Text is UTF-8 unless ``encoding`` says otherwise.

    ``path`` is a local path (``data/set.sealed/part.csv``), a ``sealed://`` URL, a chained one (``sealed::s3://…``) or the
    URL of the filesystem below (``s3://bucket/set.sealed/part.csv``). ``access`` defaults to what the process registered;
    ``options`` are those of :class:`~cloister.sealing.filesystem.SealedFileSystem`. Raises :class:`FileNotFoundError`,
    :class:`~cloister.errors.UsageError`, and the errors of sealing.
    """
    from cloister.sealing.filesystem import SealedFileSystem  # noqa: PLC0415 -- fsspec loads when it is needed

    text = os.fspath(path)
    if "b" not in mode:
        options_of_text = {"encoding": encoding or "utf-8", "errors": errors, "newline": newline}
    elif (encoding, errors, newline) == (None, None, None):
        options_of_text = {}
    else:
        raise UsageError("a file that is opened as bytes has no encoding, errors or newline")
    if "::" in text:
        import fsspec  # noqa: PLC0415
        from fsspec.core import url_to_fs  # noqa: PLC0415

        fsspec.register_implementation("sealed", SealedFileSystem, clobber=True)
        if not text.startswith("sealed::"):
            text = f"sealed::{text}"
        filesystem, inner = url_to_fs(text, access=access, **options)
    else:
        make: Any = SealedFileSystem  # its metaclass takes the Access
        filesystem = make(access=access, **options)
        inner = text.removeprefix("sealed://")
        if "://" not in inner:
            inner = str(Path(inner).absolute())
    file: IO[Any] = filesystem.open(inner, mode, **options_of_text)
    return file
