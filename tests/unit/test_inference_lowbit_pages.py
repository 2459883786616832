"""Which mappings of a process are put into huge pages."""

from __future__ import annotations

from cloister.inference.lowbit.huge_pages import PAGE, anonymous, gather

MAPS = """\
555555554000-555555555000 r--p 00000000 fe:00 131 /usr/bin/python3
555555600000-555556600000 rw-p 00000000 00:00 0                          [heap]
7f0000001000-7f0001001000 rw-p 00000000 00:00 0
7f1000000000-7f1000100000 rw-p 00000000 00:00 0
7f2000000000-7f2001000000 r--p 00000000 00:00 0
7f3000000000-7f3001000000 rw-s 00000000 00:01 22 /memfd:model (deleted)
7f4000000000-7f4001000000 rw-p 00000000 fe:00 140 /lib/libtorch.so
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]
not a line
"""


def test_large_private_anonymous_mappings_are_found_in_whole_pages() -> None:
    assert list(anonymous(MAPS)) == [
        (0x555555600000, 16 << 20),
        (0x7F0000200000, 14 << 20),
    ]
    assert all(start % PAGE == 0 and size % PAGE == 0 for start, size in anonymous(MAPS))


def test_gathering_says_how_much_the_kernel_agreed_to_and_changes_no_content() -> None:
    content = bytearray(range(256)) * (1 << 16)
    before = bytes(content[:4096])
    assert gather() >= 0
    assert bytes(content[:4096]) == before
    assert content[-1] == 255
