"""Small data sets for the training examples: answers out of MedQuAD, drawn digits in MNIST's format, made-up claims."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np

from shared_data import data

CANARY = "zebrafish-quokka-4711"
"""Stands in every data set, and may be nowhere on the host's disk."""

_DIGITS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00010 00100 01000 11111",
    "11111 00010 00100 00010 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
"""A font of 5 by 7 points."""


def write_answers(folder: Path, count: int = 300) -> Path:
    """``train.jsonl`` of the first ``count`` passages, each with the canary."""
    folder.mkdir(parents=True)
    with gzip.open(data("medquad/corpus.jsonl.gz"), "rt", encoding="utf-8") as lines:
        passages = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    with (folder / "train.jsonl").open("w", encoding="utf-8") as out:
        for passage in passages:
            text = f"{CANARY} {passage['text'][:400]}"
            out.write(json.dumps({"question": passage["question"], "text": text}) + "\n")
    return folder


def write_digits(folder: Path, training: int = 2000, test: int = 500) -> Path:
    """The four files of MNIST's format, drawn with noise, at random places."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(3)
    font = np.array([[[int(point) for point in row] for row in digit.split()] for digit in _DIGITS])
    large = font.repeat(3, axis=1).repeat(3, axis=2)
    for part, count in (("train", training), ("t10k", test)):
        labels = draw.integers(0, 10, count)
        images = draw.integers(0, 60, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            down, right = draw.integers(0, 8), draw.integers(0, 14)
            image[down : down + 21, right : right + 15] += large[label] * int(draw.integers(120, 190))
        pixels, answers = images.astype(np.uint8).tobytes(), labels.astype(np.uint8).tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 28, 28) + pixels)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + answers)
    return folder


def write_claims(folder: Path, count: int = 5000) -> Path:
    """``claims.parquet`` and ``policies.parquet``; every patient's name holds the canary."""
    import pandas as pd

    folder.mkdir(parents=True)
    draw = np.random.default_rng(4)
    policies = pd.DataFrame(
        {"policy": range(500), "region": draw.choice(["north", "south", "east", "west"], 500)}
    )
    claims = pd.DataFrame(
        {
            "claim": range(count),
            "policy": draw.integers(0, 500, count),
            "patient": [f"{CANARY}-{number}" for number in draw.integers(0, 2000, count)],
            "day": pd.Timestamp("2026-01-01") + pd.to_timedelta(draw.integers(0, 180, count), unit="D"),
            "amount": draw.lognormal(6, 1, count).round(2),
        }
    )
    claims.to_parquet(folder / "claims.parquet", index=False)
    policies.to_parquet(folder / "policies.parquet", index=False)
    return folder
