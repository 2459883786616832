"""What every test shares: a loud line when vectors were not there, and a quiet Hypothesis profile."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from shared_data import MISSING, SHARED

settings.register_profile(
    "cloister",
    max_examples=int(os.environ.get("CLOISTER_EXAMPLES", "100" if os.environ.get("CI") == "true" else "50")),
    deadline=None,  # the machine is shared: a slow example is not a wrong one
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("cloister")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MISSING:
        names = ", ".join(sorted(MISSING))
        terminalreporter.section("NOT RUN", red=True)
        terminalreporter.line(f"Not found below {SHARED}, so tests on captured data did not run: {names}")
