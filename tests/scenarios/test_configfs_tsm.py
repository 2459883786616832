"""A TD from its kernel's files to a client that believes it: nothing here knows that the files are a stand-in's.

The processes run in a mount namespace in which the stand-in (tests/configfs_tsm.py) lies at the kernel's true paths;
they get no option that names a simulation. Only the clients' policies name the simulated root.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import cloister
from cloister.attester.local import Places, find_machine, open_attester
from cloister.attester.rtmr import Registers
from cloister.attester.simulated import SimulatedPlatform
from cloister.broker.configuration import broker_events
from cloister.channel.keyring import KeyRing
from cloister.errors import AppraisalRefused, AttesterError, EventLogMismatch, VerificationError
from cloister.evidence.eventlog import LaunchEvent, replay
from configfs_tsm import Mounted, at_true_paths, fuse_needed, mounted, namespace_needed
from simulated_evidence import appraised, bundle_of
from vendor_services import VendorServices

CLOISTER = Path(sys.executable).parent / "cloister"
FMSPC = "c1015e000000"
fuse_needed()


@pytest.fixture
def platform(tmp_path: Path) -> SimulatedPlatform:
    return SimulatedPlatform.create(tmp_path / "tee", now=int(time.time()))


@pytest.fixture
def kernel(tmp_path: Path, platform: SimulatedPlatform) -> Iterator[Mounted]:
    with mounted(tmp_path, "--platform", str(tmp_path / "tee")) as running:
        yield running


@pytest.fixture
def pccs(platform: SimulatedPlatform) -> Iterator[VendorServices]:
    with VendorServices() as services:
        services.serve_intel(platform.collateral(int(time.time())), tee="tdx", fmspc=FMSPC, ca="platform")
        yield services
