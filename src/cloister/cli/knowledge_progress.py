"""Documents on their way to a service, as a person or a program sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from cloister.client.documents import Added, Told


class Shown:
    """A bar for all documents and one for the present one; with ``as_json`` a line for each that is done."""

    def __init__(self, documents: int, *, as_json: bool) -> None:
        self._as_json = as_json
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(), console=console, transient=True, disable=as_json or not console.is_terminal,
        )  # fmt: skip
        self._all = self._progress.add_task("documents", total=documents)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def one(self, name: str) -> Iterator[Told]:
        """Progress of one document: bytes while it is sent, passages while it is embedded."""
        task = self._progress.add_task(escape(name[-40:]), total=None)

        def told(what: str, done: int, of: int) -> None:
            self._progress.update(task, description=escape(f"{name[-40:]}: {what}"), completed=done, total=of)

        try:
            yield told
        finally:
            self._progress.remove_task(task)
            self._progress.advance(self._all)

    def added(self, name: str, added: Added) -> None:
        """Tell what became of it."""
        self._line({"document": name, "what": added.what, "passages": added.passages})

    def refused(self, name: str, why: str) -> None:
        """Tell that the service does not take it."""
        self._line({"document": name, "what": "refused", "why": why})

    def _line(self, facts: dict[str, object]) -> None:
        if self._as_json:
            typer.echo(json.dumps(facts))
            return
        more = facts.get("why") or _counted(facts.get("passages"))
        self._progress.console.print(
            f"{facts['document']}: {facts['what']}{f' ({more})' if more else ''}",
            markup=False,
            soft_wrap=True,
        )


def _counted(passages: object) -> str:
    """So many, as people say it; of none nothing."""
    return f"{passages} passage{'' if passages == 1 else 's'}" if passages else ""
