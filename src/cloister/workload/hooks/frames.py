"""Sealed paths for ``pandas`` and ``pyarrow.parquet``: both read and write through the ``sealed`` filesystem."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import wrapt

from cloister.workload.hooks.paths import as_file, as_url, located, sealed_url
from cloister.workload.hooks.seams import Around, Seam, argument, replaced, translated

_READERS: Final = {
    "pandas.io.parsers.readers": ("read_csv", "read_table", "read_fwf"),
    "pandas.io.json._json": ("read_json",),
    "pandas.io.parquet": ("read_parquet",),
    "pandas.io.feather_format": ("read_feather",),
    "pandas.io.orc": ("read_orc",),
    "pandas.io.excel._base": ("read_excel",),
    "pandas.io.xml": ("read_xml",),
    "pandas.io.html": ("read_html",),
    "pandas.io.stata": ("read_stata",),
    "pandas.io.sas.sasreader": ("read_sas",),
    "pandas.io.pickle": (
        "read_pickle",
    ),  # the program's own call, as it would be of a plain path; we read none
}
_FIRST: Final = {
    "read_csv": "filepath_or_buffer",
    "read_table": "filepath_or_buffer",
    "read_fwf": "filepath_or_buffer",
    "read_json": "path_or_buf",
    "read_excel": "io",
    "read_xml": "path_or_buffer",
    "read_html": "io",
    "read_stata": "filepath_or_buffer",
    "read_sas": "filepath_or_buffer",
    "read_pickle": "filepath_or_buffer",
}
_REAL: Final = {
    "pandas.io.pytables": ("read_hdf", "path_or_buf"),
    "pandas.io.spss": ("read_spss", "path"),
}
"""Libraries below these open the file themselves."""
_WRITERS: Final = {
    "pandas.core.generic": {
        "NDFrame.to_csv": "path_or_buf",
        "NDFrame.to_json": "path_or_buf",
        "NDFrame.to_pickle": "path",
        "NDFrame.to_excel": "excel_writer",
    },
    "pandas.core.frame": {
        "DataFrame.to_parquet": "path",
        "DataFrame.to_feather": "path",
        "DataFrame.to_orc": "path",
        "DataFrame.to_stata": "path",
        "DataFrame.to_xml": "path_or_buffer",
        "DataFrame.to_html": "buf",
    },
}
_ENCRYPTED: Final = b"PARE"
"""What a Parquet file begins with whose footer is encrypted."""
_DECRYPTS: Final = (
    "read_table",
    "read_metadata",
    "read_schema",
    "ParquetFile.__init__",
    "ParquetDataset.__init__",
)
_ARROW: Final = (
    ("pyarrow.parquet.core", "read_table", 0, "source", False),
    ("pyarrow.parquet.core", "read_metadata", 0, "where", False),
    ("pyarrow.parquet.core", "read_schema", 0, "where", False),
    ("pyarrow.parquet.core", "ParquetFile.__init__", 0, "source", False),
    ("pyarrow.parquet.core", "ParquetDataset.__init__", 0, "path_or_paths", False),
    ("pyarrow.parquet.core", "write_table", 1, "where", True),
    ("pyarrow.parquet.core", "ParquetWriter.__init__", 0, "where", True),
    ("pyarrow.parquet.core", "write_to_dataset", 1, "root_path", True),
    ("pyarrow.dataset", "dataset", 0, "source", False),
    ("pyarrow.dataset", "write_dataset", 1, "base_dir", True),
)
"""Module, function, position and name of its path, whether it writes. All take ``filesystem``."""


def _arrow(position: int, name: str, *, decrypts: bool) -> Around:
    def around(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = argument(args, kwargs, position, name)
        many = isinstance(value, list | tuple)
        urls = [sealed_url(one) for one in (value if many else [value])]
        if kwargs.get("filesystem") is None and urls and None not in urls:
            found = [located(url) for url in urls if url is not None]
            paths = [path for _, path in found]
            args, kwargs = replaced(args, kwargs, position, name, paths if many else paths[0])
            kwargs = {**kwargs, "filesystem": found[0][0]}
        value = argument(args, kwargs, position, name)
        if decrypts and kwargs.get("decryption_properties") is None and _is_encrypted(value, kwargs):
            kwargs = {**kwargs, "decryption_properties": _decryption()}
        return wrapped(*args, **kwargs)

    return around


def _is_encrypted(value: Any, kwargs: dict[str, Any]) -> bool:
    """Whether it is a Parquet file with an encrypted footer; False for what cannot be looked into here."""
    filesystem = kwargs.get("filesystem")
    if hasattr(value, "read") and hasattr(value, "seek") and hasattr(value, "tell"):
        before = value.tell()
        start = value.read(len(_ENCRYPTED))
        value.seek(before)
        return bool(start == _ENCRYPTED)
    if not isinstance(value, str | os.PathLike):
        return False
    if filesystem is None:
        path = Path(value)
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_ENCRYPTED)) == _ENCRYPTED
    if getattr(filesystem, "protocol", "") != "sealed" or not filesystem.isfile(os.fspath(value)):
        return False
    with filesystem.open(os.fspath(value), "rb") as file:
        return bool(file.read(len(_ENCRYPTED)) == _ENCRYPTED)


def _decryption() -> Any:
    from cloister.sealing.access import registered  # noqa: PLC0415
    from cloister.sealing.parquet import decryption_properties  # noqa: PLC0415

    return decryption_properties(registered().keys)


def register_filesystem_when_imported() -> None:
    """``sealed`` is a protocol of fsspec, also where the package's entry points are not looked at."""

    def register(module: Any) -> None:
        module.register_implementation("sealed", "cloister.sealing.filesystem.SealedFileSystem", clobber=True)

    wrapt.register_post_import_hook(register, "fsspec")


SEAMS: Final = (
    *(
        Seam(module, name, translated(as_url, (0, _FIRST.get(name, "path"))))
        for module, names in _READERS.items()
        for name in names
    ),
    *(Seam(module, name, translated(as_file, (0, first))) for module, (name, first) in _REAL.items()),
    *(
        Seam(module, name, translated(as_url, (0, first)), writes=True)
        for module, functions in _WRITERS.items()
        for name, first in functions.items()
    ),
    *(
        Seam(module, name, _arrow(position, first, decrypts=name in _DECRYPTS), writes=writes)
        for module, name, position, first, writes in _ARROW
    ),
)
