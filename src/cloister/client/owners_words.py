"""Small records and words that every part of the owners' page is made of. Pure."""

from __future__ import annotations

from typing import Final, Literal

from cloister.encoding import Record
from cloister.errors import CloisterError

MAX_TEXT: Final = 2048
TEES: Final = {
    "tdx": "Intel TDX",
    "sgx": "Intel SGX",
    "snp": "AMD SEV-SNP",
    "az-snp-vtpm": "AMD SEV-SNP on Azure",
    "tpm": "TPM 2.0",
}
Tone = Literal["good", "warn", "bad", ""]


class Notice(Record, frozen=True, kw_only=True):
    """One warning, and what to do about it."""

    tone: Tone
    text: str
    todo: str = ""


class Fact(Record, frozen=True, kw_only=True):
    """One named value; ``code`` is for what is compared letter by letter."""

    name: str
    value: str
    code: bool = False
    tone: Tone = ""


def problem_notice(error: CloisterError, *, before: str = "") -> Notice:
    """An error in one line, with its layer, and what to do."""
    return Notice(tone="bad", text=inert(f"{before}{error.layer}: {error.what}"), todo=inert(error.todo))


def inert(text: str, *, limit: int = MAX_TEXT) -> str:
    """``text`` on one line, with visible escapes for what does not print (also what turns the direction of writing)."""
    shown_text = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text[:limit])
    return shown_text if len(text) <= limit else f"{shown_text}…"


def tee_name(tee: str) -> str:
    """A kind of TEE for people."""
    return TEES.get(tee, inert(tee))


def count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
