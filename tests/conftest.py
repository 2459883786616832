"""What every test shares: a loud line when vectors were not there, and a quiet Hypothesis profile."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator

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


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """The command line quietens a logger of its process; a test or a fixture that calls it in this one leaves no trace."""
    logger = logging.getLogger("cloister.attester")
    logger.setLevel(logging.NOTSET)
    yield
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="module", autouse=True)
def _one_thread_where_little_is_learned(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small models are trained ten times slower where threads of several test processes wait for each other."""
    torch = sys.modules.get("torch")
    if torch is None or not request.module.__name__.rpartition(".")[2].startswith("test_federated"):
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # From the reports, which come from every process that ran tests.
    reasons = [str(report.longrepr) for report in terminalreporter.getreports("skipped")]
    found = {name for reason in reasons for name in re.findall(f"([^ ']+) {MISSING} ", reason)}
    if found:
        names = ", ".join(sorted(found))
        terminalreporter.section("NOT RUN", red=True)
        terminalreporter.line(f"Not found below {SHARED}, so tests on captured data did not run: {names}")
