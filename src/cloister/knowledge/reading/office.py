"""PDF and the Office formats as blocks. Links, macros, scripts and embedded files are not followed, run or opened."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any, Final

from cloister.errors import DocumentRefused
from cloister.knowledge.passages import Block
from cloister.knowledge.reading.texts import rows

MAX_PAGES: Final = 5000
MAX_MEMBERS: Final = 10_000
MAX_UNPACKED: Final = 512 << 20
"""Bytes of all members of an archive."""
MAX_RATIO: Final = 200
"""Of a member over 1 MiB."""


def read_pdf(content: bytes) -> Iterator[Block]:
    """Paragraphs of each page. Raises DocumentRefused."""
    from pypdf import PdfReader  # noqa: PLC0415 -- loaded where it is needed
    from pypdf.errors import PyPdfError  # noqa: PLC0415 -- as above

    try:
        reader = PdfReader(io.BytesIO(content), strict=False)
        if reader.is_encrypted:
            raise DocumentRefused("it is encrypted", todo="save it without a password")
        count = len(reader.pages)
        if count > MAX_PAGES:
            raise DocumentRefused(f"it has {count} pages, and {MAX_PAGES} at most are read", todo="split it")
        title = reader.metadata.title if reader.metadata else None
        if isinstance(title, str) and title.strip():
            yield Block(" ".join(title.split()), "heading", 1)
        for number, page in enumerate(reader.pages, 1):
            for part in page.extract_text().split("\n\n"):
                if part.strip():
                    yield Block(_joined(part), page=number)
    except (
        PyPdfError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OSError,
        RecursionError,
    ) as error:
        raise DocumentRefused(f"it is no PDF that can be read ({type(error).__name__})") from None


def _joined(text: str) -> str:
    """Lines of a paragraph, without the hyphens at their ends."""
    parts: list[str] = []
    for line in text.splitlines():
        words = " ".join(line.split())
        if parts and parts[-1].endswith("-") and parts[-1][-2:-1].isalpha() and words[:1].islower():
            parts[-1] = parts[-1][:-1] + words
        elif words:
            parts.append(words)
    return " ".join(parts)


def check_archive(content: bytes) -> None:
    """Before a library unpacks it. Raises DocumentRefused for what is no archive, or one that unfolds without end."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        raise DocumentRefused("it is no document of its kind: the archive cannot be read") from None
    if len(members) > MAX_MEMBERS or sum(one.file_size for one in members) > MAX_UNPACKED:
        raise DocumentRefused("it unfolds to more than is read")
    for one in members:
        if one.flag_bits & 1:
            raise DocumentRefused("it is encrypted", todo="save it without a password")
        if one.file_size > 1 << 20 and one.file_size > MAX_RATIO * max(1, one.compress_size):
            raise DocumentRefused("a part of it unfolds to far more than it is")
        if one.filename.startswith(("/", "\\")) or ".." in one.filename.replace("\\", "/").split("/"):
            raise DocumentRefused("a part of it is named by a path that leads out of it")


def read_docx(content: bytes) -> Iterator[Block]:
    """Headings by their styles, paragraphs, items and tables in their order."""
    check_archive(content)
    from docx import Document  # noqa: PLC0415 -- loaded where it is needed
    from docx.table import Table  # noqa: PLC0415 -- as above

    with _refused("Word document"):
        document = Document(io.BytesIO(content))
        for part in document.iter_inner_content():
            if isinstance(part, Table):
                yield from rows([cell.text for cell in row.cells] for row in part.rows)
                continue
            style = str(part.style.name if part.style is not None else "")
            text = " ".join(part.text.split())
            if not text:
                continue
            if style == "Title" or style.startswith("Heading"):
                level = style.rpartition(" ")[2]
                yield Block(text, "heading", int(level) if level.isdigit() else 1)
            else:
                yield Block(text, "item" if style.startswith("List") else "paragraph")


def read_pptx(content: bytes) -> Iterator[Block]:
    """Slides are pages; their titles are headings."""
    check_archive(content)
    from pptx import Presentation  # noqa: PLC0415 -- loaded where it is needed

    with _refused("presentation"):
        for number, slide in enumerate(Presentation(io.BytesIO(content)).slides, 1):
            title = slide.shapes.title
            yield Block(
                title.text if title is not None and title.text.strip() else f"Slide {number}",
                "heading",
                1,
                number,
            )
            for shape in slide.shapes:
                if shape == title:
                    continue
                if getattr(shape, "has_table", False):
                    yield from rows(([cell.text for cell in row.cells] for row in shape.table.rows), number)
                elif shape.has_text_frame:
                    for paragraph in shape.text_frame.paragraphs:
                        text = "".join(run.text for run in paragraph.runs)
                        if text.strip():
                            yield Block(" ".join(text.split()), "item", page=number)
            if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
                notes = slide.notes_slide.notes_text_frame.text
                if notes.strip():
                    yield Block(" ".join(notes.split()), page=number)


def read_xlsx(content: bytes) -> Iterator[Block]:
    """Sheets by their names, rows by the values that were stored: nothing is computed."""
    check_archive(content)
    from openpyxl import load_workbook  # noqa: PLC0415 -- loaded where it is needed

    with _refused("workbook"):
        book: Any = load_workbook(io.BytesIO(content), read_only=True, data_only=True, keep_links=False)
        for number, sheet in enumerate(book.worksheets, 1):
            yield Block(str(sheet.title), "heading", 1, number)
            yield from rows(sheet.iter_rows(values_only=True), number)


class _refused:  # noqa: N801 -- reads like a function
    """Whatever a library raises about what others wrote is a refusal."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, DocumentRefused):
            name = type(error).__name__
            raise DocumentRefused(f"it is no {self._what} that can be read ({name})") from None
