"""OpenVINO's packages, imported so that they report to nobody.

``import openvino`` alone tells the vendor that it happened: its package ``openvino_telemetry`` writes an identity into the
home directory and connects to Google Analytics, unless a file there says no. OpenVINO does without that package where it is
not installed; so for this process it is not. No setting of the user is needed, and none turns it on again.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Final

REPORTER: Final = "openvino_telemetry"


def openvino() -> Any:
    """The package ``openvino``. Raises ImportError where it is not installed."""
    _silence()
    return import_module("openvino")


def genai() -> Any:
    """The package ``openvino_genai``. Raises ImportError as above."""
    _silence()
    return import_module("openvino_genai")


def _silence() -> None:
    # None makes every later import of it fail as if it were absent; what somebody imported before stays his.
    sys.modules.setdefault(REPORTER, None)  # type: ignore[arg-type]
