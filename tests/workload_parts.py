"""What tests of the launcher share: a configuration in words, and where its pieces lie."""

from __future__ import annotations

from pathlib import Path

SIGNER = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
MINIMAL = """
name = "test"
[broker]
url = "http://127.0.0.1:8100"
policy = "broker-policy.toml"
"""


def written(folder: Path, text: str = "", *, head: str = MINIMAL) -> Path:
    """``workload.toml`` in ``folder``: the least that is one, and ``text`` behind it."""
    path = folder / "workload.toml"
    path.write_text(head + text)
    return path
