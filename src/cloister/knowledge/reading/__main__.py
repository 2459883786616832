"""``python -I -m cloister.knowledge.reading KIND``: a document on standard input, its blocks as JSON on standard output.

Documents are hostile input and their parsers are large. So this process is started confined (knowledge/reader.py): it can
write nothing, reach nobody and read nothing but programs; what it takes of memory and time is bounded here, before anything
is read.
"""

from __future__ import annotations

import importlib
import resource
import sys
import warnings
from typing import Final

from cloister.encoding import encode_json
from cloister.errors import CloisterError, DocumentRefused

MEMORY: Final = 3 << 30
"""Bytes of address space."""
SECONDS: Final = 60
"""Of a processor."""
MAX_BLOCKS: Final = 500_000
MAX_CHARACTERS: Final = 32 << 20
READERS: Final = {
    "text": ("texts", "read_text"), "markdown": ("texts", "read_markdown"), "values": ("texts", "read_values"),
    "html": ("markup", "read_html"), "mail": ("markup", "read_mail"), "pdf": ("office", "read_pdf"),
    "docx": ("office", "read_docx"), "pptx": ("office", "read_pptx"), "xlsx": ("office", "read_xlsx"),
}  # fmt: skip


def main(kind: str) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    warnings.simplefilter("ignore")
    module, name = READERS[kind]
    reader = getattr(importlib.import_module(f"cloister.knowledge.reading.{module}"), name)
    blocks: list[list[object]] = []
    characters = 0
    try:
        for block in reader(sys.stdin.buffer.read()):
            # What is half a character in the document is one that says so.
            text = block.text.encode("utf-8", "replace").decode("utf-8")
            head = block.head.encode("utf-8", "replace").decode("utf-8")
            blocks.append([block.kind, text, block.level, block.page, head])
            characters += len(text)
            if len(blocks) > MAX_BLOCKS or characters > MAX_CHARACTERS:
                raise DocumentRefused("it holds more text than is read", todo="split it")
        said: dict[str, object] = {"blocks": blocks}
    except CloisterError as error:
        said = {"refused": error.what, "todo": error.todo}
    except (MemoryError, RecursionError) as error:
        blocks.clear()
        said = {"refused": f"reading it takes more than there is ({type(error).__name__})", "todo": ""}
    sys.stdout.buffer.write(encode_json(said))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
