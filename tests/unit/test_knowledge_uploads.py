from __future__ import annotations

import hashlib

import pytest

from cloister.errors import DocumentRefused
from cloister.inference.api_errors import RequestRefused
from cloister.knowledge.uploads import MAX_ALTOGETHER, MAX_DOCUMENTS, MAX_OF_USER, PART, SECONDS, Uploads


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def test_parts_in_any_order_become_the_document_once() -> None:
    uploads, content = Uploads(Clock()), b"x" * PART + b"y"
    uploads.put("alice", digest(content), 1, content[PART:])
    assert uploads.there("alice", digest(content)) == [1]
    uploads.put("alice", digest(content), 0, content[:PART])
    assert uploads.there("bob", digest(content)) == []
    assert uploads.take("alice", digest(content), 2) == content
    with pytest.raises(RequestRefused, match="missing"):
        uploads.take("alice", digest(content), 2)


def test_a_document_with_a_hole_is_not_taken_and_stays() -> None:
    uploads, content = Uploads(Clock()), b"abc"
    uploads.put("alice", digest(content), 0, content)
    with pytest.raises(RequestRefused, match="missing") as refusal:
        uploads.take("alice", digest(content), 2)
    assert refusal.value.status == 409
    assert uploads.take("alice", digest(content), 1) == content


def test_content_of_another_digest_is_refused() -> None:
    uploads = Uploads(Clock())
    uploads.put("alice", digest(b"a"), 0, b"b")
    with pytest.raises(DocumentRefused, match="not that of its digest"):
        uploads.take("alice", digest(b"a"), 1)


@pytest.mark.parametrize(("number", "data"), [(0, b""), (0, b"x" * (PART + 1)), (-1, b"x"), (32, b"x")])
def test_parts_out_of_bounds_are_refused(number: int, data: bytes) -> None:
    with pytest.raises(RequestRefused, match="A part has"):
        Uploads(Clock()).put("alice", bytes(32), number, data)


def test_nobody_fills_the_memory_alone_or_with_others() -> None:
    uploads, part = Uploads(Clock()), b"x" * PART
    for number in range(MAX_OF_USER // PART):
        uploads.put("alice", bytes([number // 32] * 32), number % 32, part)
    with pytest.raises(RequestRefused) as refusal:
        uploads.put("alice", b"\xff" * 32, 0, part)
    assert (refusal.value.status, refusal.value.retry_after) == (503, 10)
    uploads.put("alice", bytes(32), 0, part)  # the same part again takes no more room
    others = MAX_ALTOGETHER // MAX_OF_USER - 1
    for other in range(others):
        for number in range(MAX_OF_USER // PART):
            uploads.put(f"user-{other}", bytes([number // 32] * 32), number % 32, part)
    with pytest.raises(RequestRefused):
        uploads.put("late", bytes(32), 0, part)


def test_many_small_parts_are_bounded_by_their_number() -> None:
    uploads = Uploads(Clock())
    for number in range(MAX_DOCUMENTS):
        uploads.put("alice", bytes([number] * 32), 0, b"x")
    with pytest.raises(RequestRefused):
        uploads.put("alice", b"\xff" * 32, 0, b"x")
    with pytest.raises(DocumentRefused):
        uploads.take("alice", bytes(32), 1)
    uploads.put("alice", b"\xff" * 32, 0, b"x")
    uploads.put("bob", bytes(32), 0, b"x")


def test_what_nobody_finishes_is_forgotten() -> None:
    clock = Clock()
    uploads = Uploads(clock)
    uploads.put("alice", bytes(32), 0, b"x")
    clock.now = SECONDS + 1
    assert uploads.there("alice", bytes(32)) == []
