"""``transformers`` without a word on the host's standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_SILENT: Final = 50
"""Of ``logging``, CRITICAL."""


@contextmanager
def quietly() -> Iterator[None]:
    """Without the library's progress bars and advice on standard error: the host reads that."""
    from transformers.utils import logging as theirs  # noqa: PLC0415 -- slow to import

    logging: Any = theirs
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(_SILENT)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
