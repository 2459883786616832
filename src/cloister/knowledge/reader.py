"""Reads a document of any kind that is known, in a confined process: what a parser could be made to do stays in there.

The process cannot write a file, open a socket, see other processes or read anything but programs, where the kernel can hold
it to that (docs/reference/isolation.md); memory, time and what it may answer are bounded. It is started for one document.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from cloister.encoding import parse_json
from cloister.errors import DocumentRefused, FormatError
from cloister.knowledge.passages import Block
from cloister.workload.enter import Entry, start
from cloister.workload.isolation import Isolation, Network

MAX_CONTENT: Final = 64 << 20
"""Bytes of a document."""
MAX_ANSWER: Final = 192 << 20
SECONDS: Final = 120.0
KINDS: Final = {
    ".txt": "text", ".text": "text", ".log": "text", ".md": "markdown", ".markdown": "markdown", ".csv": "values",
    ".tsv": "values", ".html": "html", ".htm": "html", ".xhtml": "html", ".eml": "mail", ".pdf": "pdf", ".docx": "docx",
    ".pptx": "pptx", ".xlsx": "xlsx",
}  # fmt: skip
"""What is read, by how a document's name ends."""
_MARKS: Final = {"pdf": b"%PDF-", "docx": b"PK\x03\x04", "pptx": b"PK\x03\x04", "xlsx": b"PK\x03\x04"}
_BLOCK_KINDS: Final = frozenset(("heading", "paragraph", "item", "row", "code"))
_SYSTEM: Final = (
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/mime.types",
    "/dev/null",
    "/dev/urandom",
)


@dataclass(frozen=True, slots=True)
class Read:
    """A document's blocks, and what it calls itself."""

    title: str
    blocks: tuple[Block, ...]


def kind_of(name: str, content: bytes) -> str:
    """What is to be read. Raises DocumentRefused for what is not known, or not what its name says."""
    suffix = PurePosixPath(name).suffix.lower()
    kind = KINDS.get(suffix)
    if kind is None:
        known = " ".join(sorted(KINDS))
        raise DocumentRefused(
            f"documents that end with {suffix[:16]!r} are not read", todo=f"known are {known}"
        )
    if len(content) > MAX_CONTENT:
        raise DocumentRefused(f"it has over {MAX_CONTENT >> 20} MiB", todo="split it")
    mark = _MARKS.get(kind)
    if mark is not None and mark not in content[: 1024 if kind == "pdf" else len(mark)]:
        raise DocumentRefused(f"it is not what {suffix!r} says")
    return kind


def read_document(name: str, content: bytes, *, clock: Callable[[], float] = time.monotonic) -> Read:
    """Raises DocumentRefused, and WorkloadError where no such process can be had."""
    kind = kind_of(name, content)
    process = start(_entry(kind), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    writer = threading.Thread(target=_hand_over, args=(process.stdin, content), name="document", daemon=True)
    writer.start()
    try:
        answer = _answer(process, until=clock() + SECONDS, clock=clock)
    finally:
        process.kill()
        process.wait()
        writer.join()
    return _told(answer, PurePosixPath(name).stem)


def _entry(kind: str) -> Entry:
    programs = [
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        str(Path(sys.executable).resolve().parent),
        *sys.path,
        *_SYSTEM,
    ]
    read = {str(Path(path).resolve()) for path in programs if path and Path(path).exists()} - {"/"}
    return Entry(
        program=sys.executable,
        argv=(sys.executable, "-I", "-m", "cloister.knowledge.reading", kind),
        environment={"LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
        directory="/",
        isolation=Isolation(
            write=(), read=tuple(sorted(read)), landlock="where-possible", network=Network(access="none"), seccomp=True,
            swap="warn",
        ),
        group="own",
        parent=os.getpid(),
    )  # fmt: skip


def _hand_over(pipe: Any, content: bytes) -> None:
    with contextlib.suppress(OSError), pipe:  # it may have ended before it read all
        pipe.write(content)


def _answer(process: Any, *, until: float, clock: Callable[[], float]) -> bytes:
    found = bytearray()
    with selectors.DefaultSelector() as selector, process.stdout as output:
        selector.register(output, selectors.EVENT_READ)
        while True:
            left = until - clock()
            if left <= 0 or not selector.select(left):
                raise DocumentRefused(f"reading it takes over {SECONDS:.0f} s")
            part = output.read1(1 << 20)
            if not part:
                break
            found += part
            if len(found) > MAX_ANSWER:
                raise DocumentRefused("it holds more text than is read", todo="split it")
    code = process.wait()
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        raise DocumentRefused("reading it takes more time or memory than there is")
    if code != 0 or not found:
        raise DocumentRefused(f"its reader failed (code {code})")
    return bytes(found)


def _told(answer: bytes, name: str) -> Read:
    """The other process is not believed either: what it says has to be blocks."""
    try:
        said = parse_json(answer, what="a document's blocks", limit=MAX_ANSWER)
        if set(said) == {"refused", "todo"}:
            what, todo = (" ".join(str(said[key]).split())[:300] for key in ("refused", "todo"))
            raise DocumentRefused(what, todo=todo)
        blocks = tuple(_block(*fields) for fields in said["blocks"])
    except (FormatError, KeyError, TypeError, ValueError):
        raise DocumentRefused("its reader answered with what are no blocks") from None
    heading = next((one.text for one in blocks[:8] if one.kind == "heading"), "")
    return Read(" ".join((heading or name).split())[:300], blocks)


def _block(kind: Any, text: Any, level: Any, page: Any, head: Any) -> Block:
    numbers = (
        type(level) is int
        and 1 <= level <= 6
        and (page is None or (type(page) is int and 1 <= page < 1 << 31))
    )
    if kind not in _BLOCK_KINDS or type(text) is not str or type(head) is not str or not numbers:
        raise ValueError
    return Block(text, kind, level, page, head)
