"""Documents as attackers write them, and what their reader could be made to do: each ends in one refusal, and in time.

Every document is read as the product reads it: in a process of its own, confined, which is started for it.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from docx import Document
from msgspec import structs
from pypdf import PdfWriter
from pypdf.generic import NameObject, NumberObject

from cloister.errors import DocumentRefused, WorkloadError
from cloister.knowledge import reader
from cloister.knowledge.reader import read_document
from cloister.workload import linux
from cloister.workload.enter import start

CANARY = "Zugzwangquark"


def pdf(*objects: bytes, root: int = 1) -> bytes:
    """A file of these objects, numbered from 1, with a table of where they are."""
    body, places = b"%PDF-1.7\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + b"".join(
        b"%010d 00000 n \n" % place for place in places
    )
    trailer = b"trailer\n<< /Size %d /Root %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        root,
        len(body),
    )
    return body + table + trailer


CATALOG, FONT = (
    b"<< /Type /Catalog /Pages 2 0 R >>",
    b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
)
PAGE = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>"


def stream(data: bytes, more: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), more, data)


def page_of(content: bytes, more: bytes = b"", catalog: bytes = CATALOG) -> bytes:
    return pdf(catalog, b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", PAGE, stream(content, more), FONT)


def said(text: str) -> bytes:
    return f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()


def bomb() -> bytes:
    """Four gigabytes of spaces in a few megabytes: one compressed megabyte again and again."""
    packer = zlib.compressobj(9)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    part = packer.compress(b" " * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return page_of(head + part * 4096 + packer.flush(), b"/Filter /FlateDecode")


def nested_bomb() -> bytes:
    data = zlib.compress(b" " * (64 << 20), 9)
    for _ in range(4):
        data = zlib.compress(data, 9)
    return page_of(data, b"/Filter [" + b"/FlateDecode " * 5 + b"]")


def own_kid() -> bytes:
    return pdf(CATALOG, b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 2 >>")


def deep_kids() -> bytes:
    kids = [
        b"<< /Type /Pages /Parent %d 0 R /Kids [%d 0 R] /Count 1 >>" % (number - 1, number + 1)
        for number in range(2, 5000)
    ]
    return pdf(CATALOG, *kids, b"<< /Type /Page /Parent 4999 0 R >>")


def many_pages() -> bytes:
    kids = b" ".join(b"%d 0 R" % number for number in range(3, 10_003))
    return pdf(
        CATALOG,
        b"<< /Type /Pages /Kids [%s] /Count 10000 >>" % kids,
        *[b"<< /Type /Page /Parent 2 0 R >>"] * 10_000,
    )


def own_length() -> bytes:
    return pdf(
        CATALOG,
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        PAGE,
        b"<< /Length 4 0 R >>\nstream\nx\nendstream",
        FONT,
    )


def deep_array() -> bytes:
    return page_of(b"[" * 200_000 + b"]" * 200_000)


def encrypted() -> bytes:
    writer = PdfWriter()
    writer.add_blank_page(10, 10)
    writer.encrypt("secret")
    data = io.BytesIO()
    writer.write(data)
    return data.getvalue()


def claims_pages() -> bytes:
    writer = PdfWriter()
    writer.add_blank_page(10, 10)
    writer.root_object["/Pages"][NameObject("/Count")] = NumberObject(2_000_000_000)
    data = io.BytesIO()
    writer.write(data)
    return data.getvalue()


def docx(**members: bytes) -> bytes:
    """A Word document in which these members have another content."""
    whole, changed = io.BytesIO(), io.BytesIO()
    document = Document()
    document.add_paragraph(CANARY)
    document.save(whole)
    names = {name: name for name in members} | {"document": "word/document.xml"}
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as target:
        replaced = {names[name]: data for name, data in members.items()}
        for one in source.namelist():
            target.writestr(one, replaced.pop(one, None) or source.read(one))
        for name, data in replaced.items():
            target.writestr(name, data)
    return changed.getvalue()


def billion_laughs() -> bytes:
    entities = b'<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY %c "%s">' % (letter, b"&%c;" % (letter - 1) * 10) for letter in range(ord("b"), ord("m"))
    )
    space = b"http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    return docx(
        document=b"<!DOCTYPE d ["
        + entities
        + b']><w:document xmlns:w="'
        + space
        + b'"><w:body><w:p><w:r><w:t>&l;</w:t></w:r></w:p>'
        b"</w:body></w:document>"
    )


def outside_entity() -> bytes:
    space = b"http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    return docx(
        document=b'<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><w:document xmlns:w="' + space
        + b'"><w:body><w:p><w:r><w:t>&x;</w:t></w:r></w:p></w:body></w:document>'
    )  # fmt: skip


def said_to_be(size: int, content: bytes) -> bytes:
    """A Word document whose text is ``content`` and is said to have another size."""
    data = bytearray(docx(document=content))
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        local = archive.getinfo("word/document.xml").header_offset
    central = data.rindex(b"word/document.xml") - 46
    assert data[central : central + 4] == b"PK\x01\x02"
    for place in (local + 22, central + 24):
        data[place : place + 4] = size.to_bytes(4, "little")
    return bytes(data)


def deep_html() -> bytes:
    return b"<div>" * 300_000 + CANARY.encode() + b"</div>" * 300_000


REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a PDF that unfolds to gigabytes": ("a.pdf", bomb, "PDF|memory|time|text"),
    "a PDF whose pages are their own parents": ("a.pdf", own_kid, "PDF|time"),
    "a PDF of 10,000 pages": ("a.pdf", many_pages, "10000 pages"),
    "a PDF with a password": ("a.pdf", encrypted, "encrypted"),
    "a PDF that is cut off": ("a.pdf", lambda: page_of(said(CANARY))[:200], "PDF"),
    "a Word document whose part unfolds to a gigabyte": (
        "a.docx",
        lambda: said_to_be(1 << 30, b"x"),
        "unfolds",
    ),
    "one whose part unfolds to far more than it is": (
        "a.docx",
        lambda: docx(document=b" " * (8 << 20)),
        "far more",
    ),
    "one that says that it does not": ("a.docx", lambda: said_to_be(1000, b" " * (8 << 20)), "Word"),
    "one with a member outside": ("a.docx", lambda: docx(**{"../../etc/cron.d/x": b"x"}), "leads out"),
    "one with an absolute member": ("a.docx", lambda: docx(**{"/etc/cron.d/x": b"x"}), "leads out"),
    "an archive of nothing": ("a.docx", lambda: b"PK\x03\x04" + bytes(100), "archive"),
    "a picture that is called a PDF": ("a.pdf", lambda: b"\x89PNG\r\n" + bytes(2000), "not what"),
    "a program": ("a.exe", lambda: b"MZ", "are not read"),
    "a name without an ending": ("README", lambda: b"x", "are not read"),
    "text that is none": ("a.txt", lambda: b"\xff\x00\x80" * 10, "UTF-8|UTF-16|bytes"),
    "text with zeros": ("a.md", lambda: b"a\0b", "bytes that no text has"),
    "a document over its bound": ("a.txt", lambda: bytes(reader.MAX_CONTENT + 1), "MiB"),
    "a table without end": ("a.csv", lambda: b"a," * 2_000_000, "columns|values"),
}


@pytest.mark.parametrize("attack", REFUSED)
def test_a_hostile_document_is_refused_in_one_line_and_in_time(attack: str) -> None:
    name, make, words = REFUSED[attack]
    content = make()
    began = time.monotonic()
    with pytest.raises(DocumentRefused, match=words) as refused:
        read_document(name, content)
    assert time.monotonic() - began < reader.SECONDS
    assert len(str(refused.value).splitlines()) == 1
    assert CANARY not in str(refused.value)


SCRIPTED = b"<< /Type /Catalog /Pages 2 0 R /OpenAction << /S /JavaScript /JS (app.alert\\(1\\)) >> >>"
PAGE_OF_OTHERS = (
    f"<script>{CANARY}</script><iframe src=http://evil.example></iframe><img src=http://evil.example/x>"
    "<p onload=evil()>shown</p><template>hidden</template>"
)
MAIL = (
    "Subject: s\nContent-Type: multipart/mixed; boundary=x\n\n--x\n\nshown\n--x\nContent-Type: application/x-dosexec\n"
    'Content-Disposition: attachment; filename="../../evil.exe"\n\nMZ\n--x--\n'
)
READ: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a PDF with a script that starts by itself": (
        "a.pdf",
        lambda: page_of(said(CANARY), catalog=SCRIPTED),
        CANARY,
    ),
    "a page that nests": ("a.html", deep_html, ""),
    "a page with scripts, frames and pictures from elsewhere": ("a.html", PAGE_OF_OTHERS.encode, "shown"),
    "a mail with an attachment that is a program": ("a.eml", MAIL.encode, "shown"),
    "Markdown with HTML": ("a.md", f"shown <script>{CANARY}</script>\n\n<iframe>".encode, "shown"),
    "a Word document that asks for a file of this machine": ("a.docx", outside_entity, ""),
    "a Word document of entities in entities": ("a.docx", billion_laughs, ""),
    "a Word document that is none inside": ("a.docx", lambda: docx(document=b"<x/>"), ""),
    "a PDF that claims two thousand million pages": ("a.pdf", claims_pages, ""),
}


@pytest.mark.parametrize("document", READ)
def test_what_a_document_brings_beside_its_text_does_nothing(document: str) -> None:
    name, make, words = READ[document]
    try:
        text = "\n".join(block.text for block in read_document(name, make()).blocks)
    except DocumentRefused:
        assert not words
        return
    assert words in text
    assert "root:" not in text
    assert "alert" not in text
    assert "hidden" not in text


@pytest.mark.parametrize(
    "make", [nested_bomb, deep_kids, own_length, deep_array], ids=lambda one: one.__name__
)
def test_a_malformed_document_ends_in_blocks_or_in_a_refusal(make: Callable[[], bytes]) -> None:
    began = time.monotonic()
    with contextlib.suppress(DocumentRefused):
        read_document("a.pdf", make())
    assert time.monotonic() - began < reader.SECONDS


def test_a_name_that_leads_elsewhere_is_a_name_and_no_path(tmp_path: Path) -> None:
    """It says what the document is, and what it is called if it has no heading."""
    found = read_document("../../etc/passwd/../" + "x" * 400 + "\x1b[2J\n.txt", b"shown")
    assert found.blocks[0].text == "shown"
    assert len(found.title) <= 300
    assert "\n" not in found.title


# What a parser could be made to do.

TRIES = {
    "write a file": "open({there!r}, 'w')",
    "read another document": "open({secret!r}).read()",
    "look at other processes": "open('/proc/{parent}/environ', 'rb').read()",
    "ask a server": "socket.create_connection(('127.0.0.1', {port}), 2)",
    "trace another process": "os.kill({parent}, 9)",
    "start a shell that writes": "subprocess.run(['/bin/sh', '-c', 'echo x > {there}'], check=True)",
    "leave memory to others": "open('/dev/shm/{name}', 'w')",
}


@pytest.mark.skipif(
    linux.landlock_abi() < 3 and not os.environ.get("CI"),
    reason="this kernel has no Landlock that holds files",
)
@pytest.mark.parametrize("attempt", TRIES)
def test_a_reader_that_was_taken_over_reaches_nothing(attempt: str, tmp_path: Path) -> None:
    secret = tmp_path / "another document"
    secret.write_text(CANARY)
    there = tmp_path / "written"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen(["/bin/sleep", "60"]) as bystander,
    ):
        words = TRIES[attempt].format(
            there=str(there),
            secret=str(secret),
            parent=bystander.pid,
            port=server.getsockname()[1],
            name=tmp_path.name,
        )
        code = f"import os, socket, subprocess, sys\ntry:\n    {words}\nexcept Exception:\n    sys.exit(7)"
        entry = reader._entry("text")
        entry = structs.replace(entry, argv=(entry.program, "-I", "-c", code))
        process = start(entry, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        output, _ = process.communicate(timeout=30)
        assert bystander.poll() is None
        bystander.kill()
    assert (process.returncode, output) == (7, b"")
    assert not there.exists()
    assert not Path("/dev/shm", tmp_path.name).exists()


def test_a_datagram_of_a_reader_that_was_taken_over_arrives_nowhere() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(1.0)
        address = server.getsockname()
        code = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', {address!r})"
        entry = reader._entry("text")
        entry = structs.replace(entry, argv=(entry.program, "-I", "-c", code))
        start(entry, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait(30)
        with pytest.raises(TimeoutError):
            server.recv(16)


def test_a_reader_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    real = reader._entry

    def silent(kind: str) -> object:
        entry = real(kind)
        return structs.replace(entry, argv=(entry.program, "-I", "-c", "import time; time.sleep(600)"))

    monkeypatch.setattr(reader, "_entry", silent)
    monkeypatch.setattr(reader, "SECONDS", 2.0)
    began = time.monotonic()
    with pytest.raises(DocumentRefused, match="takes over 2 s"):
        read_document("a.txt", b"x")
    assert time.monotonic() - began < 30


BLOCKS = [
    '["paragraph","x",1,null]', '["script","x",1,null,""]', '["paragraph",7,1,null,""]', '["heading","x",9,null,""]',
    '["paragraph","x",1,-1,""]', '["paragraph","x",true,null,""]', '["paragraph","x",1,1.5,""]',
    '["paragraph","x",1,null,0]',
]  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "{}",
        "[]",
        "null",
        "x" * 100,
        '{"blocks":[],"blocks":[]}',
        *(f'{{"blocks":[{one}]}}' for one in BLOCKS),
    ],
)
def test_what_a_reader_answers_is_not_believed(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = reader._entry

    def lying(kind: str) -> object:
        entry = real(kind)
        return structs.replace(entry, argv=(entry.program, "-I", "-c", f"print({answer!r}, end='')"))

    monkeypatch.setattr(reader, "_entry", lying)
    with pytest.raises(DocumentRefused, match=r"no blocks|reader failed"):
        read_document("a.txt", b"x")


def test_a_machine_that_cannot_confine_a_reader_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = reader._entry

    def unheard(kind: str) -> object:
        entry = real(kind)
        isolation = structs.replace(entry.isolation, read=("/nowhere at all",), landlock="require")
        return structs.replace(entry, isolation=isolation)

    monkeypatch.setattr(reader, "_entry", unheard)
    with pytest.raises(WorkloadError, match="nowhere"):
        read_document("a.txt", b"x")
