"""Documents of each kind as blocks: headings, paragraphs, items, rows and code in their order, with their pages.

The readers are called here as such; that they run confined is shown by tests/scenarios/test_document_attacks.py.
"""

from __future__ import annotations

import io
from typing import Any

import pytest
from docx import Document
from openpyxl import Workbook
from pptx import Presentation
from pptx.util import Inches

from cloister.errors import DocumentRefused
from cloister.knowledge.passages import Block
from cloister.knowledge.reader import KINDS, kind_of, read_document
from cloister.knowledge.reading.__main__ import READERS
from cloister.knowledge.reading.markup import read_html, read_mail
from cloister.knowledge.reading.office import read_docx, read_pdf, read_pptx, read_xlsx
from cloister.knowledge.reading.texts import decoded, read_markdown, read_text, read_values


def saved(document: Any) -> bytes:
    data = io.BytesIO()
    document.save(data)
    return data.getvalue()


def pdf(*pages: str, title: str = "") -> bytes:
    """One text object a page; ``\\n`` begins another line."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for page in pages:
        text = (
            "BT /F1 12 Tf 14 TL 20 180 Td " + " ".join(f"({line}) Tj T*" for line in page.split("\n")) + " ET"
        )
        objects.append(f"<< /Length {len(text)} >>\nstream\n{text}\nendstream")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 200] /Contents {len(objects)} 0 R "
            "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    objects.append(f"<< /Title ({title}) >>")
    body, places = "%PDF-1.7\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{one}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    end = f"trailer\n<< /Size {size} /Root 1 0 R /Info {size - 1} 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return (body + f"xref\n0 {size}\n0000000000 65535 f \n" + table + end).encode()


def test_text_is_its_paragraphs() -> None:
    assert list(read_text(b"One\nline.\r\n\r\n \t\nTwo.\n\n\n\nThree.")) == [
        Block("One line."),
        Block("Two."),
        Block("Three."),
    ]
    assert list(read_text(b"  \n\n ")) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_that_says_its_encoding_is_read(encoding: str) -> None:
    assert decoded("Grüße 糖".encode(encoding)) == "Grüße 糖"


@pytest.mark.parametrize("content", [b"\xe9t\xe9", b"\xff\xfe\x00", b"a\0b"])
def test_text_in_another_encoding_is_refused(content: bytes) -> None:
    with pytest.raises(DocumentRefused):
        decoded(content)


def test_markdown_keeps_its_structure() -> None:
    text = (
        "# One\n\nA *b* [c](http://x) `d`\ne.\n\n## Two\n\n- i\n- j\n  more\n\n```sh\nx\n  y\n```\n\n"
        "| k | v |\n|---|---|\n| 1 | 2 |\n"
    )
    assert list(read_markdown(text.encode())) == [
        Block("One", "heading", 1), Block("A b c d e."), Block("Two", "heading", 2), Block("i", "item"),
        Block("j more", "item"), Block("x\n  y\n", "code"), Block("k | v", "row", head="k | v"),
        Block("1 | 2", "row", head="k | v"),
    ]  # fmt: skip


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_values_are_rows_under_their_head(mark: str) -> None:
    text = f'name{mark}dose\n"a, b; c"{mark}1\n\nx{mark}2\n'
    assert [block.text for block in read_values(text.encode())] == ["name | dose", "a, b; c | 1", "x | 2"]
    assert {block.head for block in read_values(text.encode())} == {"name | dose"}


def test_html_keeps_its_structure() -> None:
    page = (
        b"<html><head><title>T</title><style>p{}</style></head><body><nav>menu</nav><h2>A</h2><p>b <b>c</b><br>d</p>e"
        b"<ul><li>f<li>g <i>h</i></ul><table><tr><th>k<th>v<tr><td>1<td>2</table><pre>x\n y</pre><div>z<p>w</p>v</div>"
    )
    assert list(read_html(page)) == [
        Block("T", "heading", 1), Block("A", "heading", 2), Block("b c d"), Block("e"), Block("f", "item"),
        Block("g h", "item"), Block("k | v", "row", head="k | v"), Block("1 | 2", "row", head="k | v"),
        Block("x\n y", "code"), Block("z"), Block("w"), Block("v"),
    ]  # fmt: skip


def test_mail_is_who_wrote_what_and_what_is_attached() -> None:
    mail = (
        b"From: Ann <a@x.org>\nTo: b@x.org\nDate: Mon, 30 Nov 2026 10:00:00 +0000\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\n"
        b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=x\n\n--x\n"
        b"Content-Type: text/plain; charset=iso-8859-1\n"
        b"Content-Transfer-Encoding: quoted-printable\n\nSch=F6n.\n\nTwo.\n--x\nContent-Type: application/pdf\n"
        b"Content-Disposition: attachment; filename=a.pdf\n\nx\n--x--\n"
    )
    assert [block.text for block in read_mail(mail)] == [
        "Grüße", "From: Ann <a@x.org>", "To: b@x.org", "Date: Mon, 30 Nov 2026 10:00:00 +0000", "Schön.", "Two.",
        "Attached, not read: a.pdf",
    ]  # fmt: skip
    with pytest.raises(DocumentRefused, match="no mail"):
        list(read_mail(b""))


def test_pdf_is_the_paragraphs_of_its_pages() -> None:
    found = list(read_pdf(pdf("One hyphen-\nated word.", "Two.", title="The  title")))
    assert found[0] == Block("The title", "heading", 1)
    assert [(block.text, block.page) for block in found[1:]] == [("One hyphenated word.", 1), ("Two.", 2)]


def test_a_word_document_keeps_its_structure() -> None:
    document = Document()
    document.add_heading("Title", 0)
    document.add_heading("Two", 2)
    document.add_paragraph("Text  of it.")
    document.add_paragraph("one", style="List Bullet")
    table = document.add_table(2, 2)
    for place, text in enumerate(("k", "v", "1", "2")):
        table.cell(*divmod(place, 2)).text = text
    document.add_paragraph("")
    assert list(read_docx(saved(document))) == [
        Block("Title", "heading", 1), Block("Two", "heading", 2), Block("Text of it."), Block("one", "item"),
        Block("k | v", "row", head="k | v"), Block("1 | 2", "row", head="k | v"),
    ]  # fmt: skip


def test_slides_are_pages_under_their_titles() -> None:
    deck = Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[1])
    first.shapes.title.text = "One"
    first.placeholders[1].text = "bullet"
    first.notes_slide.notes_text_frame.text = "said aloud"
    second = deck.slides.add_slide(deck.slide_layouts[6])
    table = second.shapes.add_table(1, 2, Inches(1), Inches(1), Inches(2), Inches(1)).table
    table.cell(0, 0).text, table.cell(0, 1).text = "k", "v"
    assert list(read_pptx(saved(deck))) == [
        Block("One", "heading", 1, 1), Block("bullet", "item", page=1), Block("said aloud", page=1),
        Block("Slide 2", "heading", 1, 2), Block("k | v", "row", page=2, head="k | v"),
    ]  # fmt: skip


def test_sheets_are_pages_of_stored_values() -> None:
    book = Workbook()
    book.active.title = "Doses"
    for row in (["name", "mg"], ["a", 1.5], [None, None], ["b", "=1+1"]):
        book.active.append(row)
    book.create_sheet("More").append(["x"])
    found = list(read_xlsx(saved(book)))
    assert [(block.kind, block.text, block.page) for block in found] == [
        ("heading", "Doses", 1), ("row", "name | mg", 1), ("row", "a | 1.5", 1), ("row", "b | ", 1), ("heading", "More", 2),
        ("row", "x", 2),
    ]  # fmt: skip


def test_every_kind_that_a_name_can_say_has_a_reader() -> None:
    assert set(KINDS.values()) == set(READERS)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.TXT", b"x", "text"),
        ("x/y.Md", b"x", "markdown"),
        ("a.pdf", b"\n\n%PDF-1.4", "pdf"),
        ("a.docx", b"PK\x03\x04", "docx"),
    ],
)
def test_a_name_says_what_a_document_is(name: str, content: bytes, kind: str) -> None:
    assert kind_of(name, content) == kind


def test_a_document_is_read_in_a_process_of_its_own() -> None:
    found = read_document("folder/Report 2026.md", "First words.\n\n## A heading\n\nGrüße 糖".encode())
    assert found.title == "A heading"
    assert found.blocks == (Block("First words."), Block("A heading", "heading", 2), Block("Grüße 糖"))
    assert read_document("folder/Report 2026.txt", b"Words.").title == "Report 2026"
