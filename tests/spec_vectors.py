"""The test vectors that stand in the pages of docs/spec: the pages are what the tests compare with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

SPEC = Path(__file__).resolve().parent.parent / "docs" / "spec"


def spec_vectors(page: str) -> Any:
    """The one JSON block that a page marks as its vectors."""
    blocks = re.findall(r"<!-- vectors -->\n```json\n(.*?)```", (SPEC / page).read_text(), re.DOTALL)
    assert len(blocks) == 1, f"{page} has {len(blocks)} blocks of vectors"
    return json.loads(blocks[0])
