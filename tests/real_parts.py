"""What tests need of the machine: a missing real part is a loud skip, and with ``CI=true`` a failure."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def absent(reason: str) -> NoReturn:
    """End the calling test, or a whole module that is being collected."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)
