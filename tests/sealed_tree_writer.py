"""A program that writes into a sealed tree and says on standard output what was acknowledged, until it is killed.

Each round it writes one numbered record at a random place of one of several files, appends to a log, now and then renames a
file over another, and syncs; then it prints the number of the round, and only then goes on.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from cloister.sealing.tree import open_tree
from sealing_samples import Keys

FILES = 4
RECORD = 3000
SLOTS = 12


def record(number: int) -> bytes:
    """What round ``number`` writes: itself, over and over."""
    return number.to_bytes(8, "big") * (RECORD // 8)


def plan(number: int) -> tuple[int, int, bool]:
    """Which file, which place in it, and whether it is replaced by a rename: the same for the test that looks."""
    chance = random.Random(number)
    return chance.randrange(FILES), chance.randrange(SLOTS), chance.random() < 0.2


def expected(acknowledged: int) -> tuple[dict[str, bytes], bytes]:
    """The files and the log after so many rounds."""
    files: dict[str, bytearray] = {}
    log = bytearray()
    for number in range(1, acknowledged + 1):
        which, slot, replaced = plan(number)
        contents = files.setdefault(f"file{which}", bytearray())
        if replaced:
            contents.clear()
        contents.extend(bytes(max(0, slot * RECORD - len(contents))))
        contents[slot * RECORD : (slot + 1) * RECORD] = record(number)
        log += number.to_bytes(8, "big")
    return {name: bytes(contents) for name, contents in files.items()}, bytes(log)


def main() -> None:
    tree = open_tree(Path(sys.argv[1]), Keys(), writable=True)
    number = 0 if "log" not in tree.names("") else tree.status("log").size // 8
    log = tree.open("log", write=True) if number else tree.create("log", 0o600)
    while True:
        number += 1
        which, slot, replaced = plan(number)
        name = f"file{which}"
        if replaced:
            file = tree.create("new", 0o600)
            file.write(slot * RECORD, record(number))
            tree.rename("new", name)
        else:
            there = name in tree.names("")
            file = tree.open(name, write=True) if there else tree.create(name, 0o600)
            file.write(slot * RECORD, record(number))
        log.write((number - 1) * 8, number.to_bytes(8, "big"))
        file.sync()
        file.close()
        os.write(1, number.to_bytes(8, "big"))
        if number % 50 == 0:
            tree._ledger.compact(over=0)


if __name__ == "__main__":
    main()
