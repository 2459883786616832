"""A TD from its kernel's files to a client that believes it: nothing here knows that the files are a stand-in's.

The processes run in a mount namespace in which the stand-in (tests/configfs_tsm.py) lies at the kernel's true paths;
they get no option that names a simulation. Only the clients' policies name the simulated root.
"""

from __future__ import annotations

import json
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
from cloister.appraisal.appraise import appraise
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.result import AttestationResult
from cloister.attester import Attester
from cloister.attester.local import Places, find_machine, open_attester
from cloister.attester.rtmr import Registers
from cloister.attester.simulated import SimulatedPlatform
from cloister.attester.simulation.collateral import EVALUATION_NUMBER
from cloister.broker.client import collect
from cloister.errors import (
    AppraisalRefused,
    AttesterError,
    EventLogMismatch,
    VerificationError,
)
from cloister.evidence.bundle import EvidenceBundle, encode_bundle, parse_bundle
from cloister.evidence.eventlog import LaunchEvent, replay
from cloister.inference.demo_model import demo_model
from configfs_tsm import Mounted, at_true_paths, fuse_needed, mounted, namespace_needed
from shared_data import vectors
from vendor_services import VendorServices

CLOISTER = Path(sys.executable).parent / "cloister"
NONCE = bytes(range(32))
KEYS = b"the keys of this workload"
LAUNCH = (
    LaunchEvent(name="cloister.config", payload=b"\x11" * 32),
    LaunchEvent(name="cloister.program", payload=b"\x22" * 32),
)
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
        for ca in ("platform", "processor"):
            services.serve_intel(
                platform.collateral(int(time.time())), tee="tdx", fmspc="c1015e000000", ca=ca
            )
        yield services


def places(kernel: Mounted) -> Places:
    return Places(
        gramine=kernel.mountpoint / "no-gramine",
        reports=kernel.reports,
        measurements=(kernel.measurements,),
        firmware_log=kernel.ccel,
    )


def policy_for(
    kernel: Mounted, platform: SimulatedPlatform, *, simulated: bool = True, **changes: Any
) -> Policy:
    measurements = {**Registers(kernel.measurements).firmware(), "rtmr3": replay(LAUNCH), **changes}
    text = draft_policy(
        tee="tdx",
        measurements=measurements,
        events=LAUNCH,
        min_tcb_evaluation_number=EVALUATION_NUMBER,
        simulated_root=platform.root_sha256 if simulated else None,
    )
    return load_policy(text, name="test")


def believed(bundle: EvidenceBundle, policy: Policy, platform: SimulatedPlatform) -> AttestationResult[bytes]:
    now = int(time.time())
    return appraise(
        bundle,
        nonce=NONCE,
        policy=policy,
        now=now,
        decode=lambda data: data,
        not_after=lambda _: None,
        collateral=bundle.endorsements or platform.collateral(now),
    )


def shown(attester: Attester) -> EvidenceBundle:
    return parse_bundle(encode_bundle(collect(attester, NONCE, KEYS)))


class TestTheWholeWay:
    def test_a_launch_is_measured_quoted_and_believed(
        self, kernel: Mounted, platform: SimulatedPlatform
    ) -> None:
        attester = open_attester(LAUNCH, places=places(kernel))
        result = believed(shown(attester), policy_for(kernel, platform), platform)
        assert result.keys == KEYS
        assert result.claims.simulated
        assert result.claims.events == {event.name: event.payload for event in LAUNCH}
        assert kernel.left == []

    def test_a_restart_of_the_same_launch_is_believed_and_extends_nothing(
        self, kernel: Mounted, platform: SimulatedPlatform
    ) -> None:
        for _ in range(3):
            attester = open_attester(LAUNCH, places=places(kernel))
        assert believed(shown(attester), policy_for(kernel, platform), platform).keys == KEYS

    def test_a_launch_that_was_killed_half_way_is_completed(
        self, kernel: Mounted, platform: SimulatedPlatform
    ) -> None:
        open_attester(LAUNCH[:1], places=places(kernel))
        attester = open_attester(LAUNCH, places=places(kernel))
        assert believed(shown(attester), policy_for(kernel, platform), platform).keys == KEYS

    def test_the_firmwares_log_travels_when_it_replays(
        self, tmp_path: Path, platform: SimulatedPlatform
    ) -> None:
        log = vectors("coco-trustee/CCEL_data_gcp")
        arguments = ["--platform", str(tmp_path / "tee"), "--ccel", str(log), "--booted-by-ccel"]
        with mounted(tmp_path, *arguments) as kernel:
            bundle = shown(open_attester(LAUNCH, places=places(kernel)))
            result = believed(bundle, policy_for(kernel, platform), platform)
        assert len(bundle.firmware_log) == 20_349  # of 262 144 bytes of table
        assert any(event.kind == "EV_EFI_ACTION" for event in result.claims.measured_events)

    def test_a_firmware_log_that_does_not_replay_is_left_out_loudly(
        self, tmp_path: Path, platform: SimulatedPlatform, caplog: pytest.LogCaptureFixture
    ) -> None:
        log = vectors("coco-trustee/CCEL_data_gcp")
        with mounted(tmp_path, "--platform", str(tmp_path / "tee"), "--ccel", str(log)) as kernel:
            bundle = shown(open_attester(LAUNCH, places=places(kernel)))
            assert believed(bundle, policy_for(kernel, platform), platform).keys == KEYS
        assert bundle.firmware_log == b""
        assert "does not replay to rtmr0" in caplog.text


class TestAttacks:
    def test_something_else_was_measured_before(self, kernel: Mounted) -> None:
        Registers(kernel.measurements).extend(3, b"\x99" * 48)
        with pytest.raises(AttesterError, match="something else was measured into it"):
            open_attester(LAUNCH, places=places(kernel))

    def test_another_launch_in_the_same_vm(self, kernel: Mounted) -> None:
        open_attester(LAUNCH, places=places(kernel))
        other = (LAUNCH[0], LaunchEvent(name="cloister.program", payload=b"\x33" * 32))
        with pytest.raises(AttesterError, match="something else was measured into it"):
            open_attester(other, places=places(kernel))

    def test_something_is_measured_after_the_launch(
        self, kernel: Mounted, platform: SimulatedPlatform
    ) -> None:
        attester = open_attester(LAUNCH, places=places(kernel))
        policy = policy_for(kernel, platform, rtmr3="any")
        Registers(kernel.measurements).extend(3, b"\x99" * 48)
        with pytest.raises(EventLogMismatch, match="rtmr3"):
            believed(shown(attester), policy, platform)

    def test_a_policy_for_hardware_never_accepts_the_stand_in(
        self, kernel: Mounted, platform: SimulatedPlatform
    ) -> None:
        attester = open_attester(LAUNCH, places=places(kernel))
        with pytest.raises(VerificationError, match="root"):
            believed(shown(attester), policy_for(kernel, platform, simulated=False), platform)

    def test_other_firmware_than_the_policy_pins(self, kernel: Mounted, platform: SimulatedPlatform) -> None:
        attester = open_attester(LAUNCH, places=places(kernel))
        with pytest.raises(AppraisalRefused, match="rtmr1"):
            believed(shown(attester), policy_for(kernel, platform, rtmr1=b"\x01" * 48), platform)

    def test_a_kernel_without_registers_is_refused_before_anything_is_served(
        self, tmp_path: Path, platform: SimulatedPlatform
    ) -> None:
        with mounted(tmp_path, "--platform", str(tmp_path / "tee"), "--no-registers") as kernel:
            machine = find_machine(places(kernel))
            assert machine is not None
            with pytest.raises(AttesterError, match="no measurement registers") as refused:
                machine.launch(LAUNCH)
        assert "6.16" in refused.value.todo

    @pytest.mark.parametrize("fault", ["ETIMEDOUT", "EIO"])
    def test_a_tee_that_does_not_work_is_no_reason_to_use_another(self, fault: str, kernel: Mounted) -> None:
        kernel.misbehave(outblob=[f"forever:{fault}"])
        attester = open_attester(LAUNCH, places=places(kernel))
        with pytest.raises(AttesterError, match=fault):
            shown(attester)
        kernel.misbehave(mkdir=["EACCES"])
        with pytest.raises(AttesterError, match="this user may not"):
            find_machine(places(kernel))


CHILD = """
import sys
from cloister.attester.local import open_attester
from cloister.broker.client import collect
from cloister.evidence.bundle import encode_bundle
from cloister.evidence.eventlog import LaunchEvent
launch = [LaunchEvent(name=name, payload=bytes.fromhex(payload)) for name, payload in zip(*[iter(sys.argv[3:])] * 2)]
attester = open_attester(launch)
sys.stdout.buffer.write(encode_bundle(collect(attester, bytes.fromhex(sys.argv[1]), sys.argv[2].encode())))
"""


class TestAtTheTruePaths:
    @pytest.fixture(autouse=True)
    def _namespace(self) -> None:
        namespace_needed()

    def test_an_attester_process_is_believed(self, kernel: Mounted, platform: SimulatedPlatform) -> None:
        events = [text for event in LAUNCH for text in (event.name, event.payload.hex())]
        command = at_true_paths(kernel, sys.executable, "-c", CHILD, NONCE.hex(), KEYS.decode(), *events)
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        result = believed(parse_bundle(done.stdout), policy_for(kernel, platform), platform)
        assert result.keys == KEYS

    def test_a_served_model_is_measured_verified_and_asked(
        self, kernel: Mounted, platform: SimulatedPlatform, pccs: VendorServices, tmp_path: Path
    ) -> None:
        options = [str(demo_model()), "--no-api-keys", "--context", "128", "--slots", "1"]
        measured = run(
            kernel, "measure", "serve", *options, "--min-evaluation-number", str(EVALUATION_NUMBER)
        )
        assert measured.returncode == 0, measured.stderr
        # The machine is real to itself; the client alone knows better.
        policy = tmp_path / "policy.toml"
        policy.write_text(f'{measured.stdout}\n[roots]\nsimulated = "{platform.root_sha256}"\n')
        with serving(kernel, "serve", *options, "--pccs", pccs.base) as url:
            client = cloister.connect(url, policy=policy)
            models = client.get(f"{url}/v1/models").json()
            client.close()
        assert models["data"][0]["id"] == demo_model().stem
        assert pccs.asked("/tdx/certification/v4/tcb") == 1
        assert kernel.left == []

    def test_a_broker_is_verified_by_the_policy_that_measure_printed(
        self, kernel: Mounted, platform: SimulatedPlatform, pccs: VendorServices, tmp_path: Path
    ) -> None:
        measured = run(kernel, "measure", "broker", "--min-evaluation-number", str(EVALUATION_NUMBER))
        policy = tmp_path / "policy.toml"
        policy.write_text(f'{measured.stdout}\n[roots]\nsimulated = "{platform.root_sha256}"\n')
        (tmp_path / "passphrase").write_text("correct horse battery staple and more\n")
        (tmp_path / "passphrase").chmod(0o600)
        options = [
            "--state",
            str(tmp_path / "state"),
            "--passphrase-file",
            str(tmp_path / "passphrase"),
            "--init",
        ]
        with serving(kernel, "broker", "serve", *options, "--pccs", pccs.base) as url:
            cloister.connect(url, policy=policy).close()

    def test_measure_wants_the_age_of_tcb_information_decided(self, kernel: Mounted) -> None:
        done = run(kernel, "measure", "broker")
        assert done.returncode == 2
        assert "--min-evaluation-number" in done.stderr

    def test_the_loud_line_says_what_covers_the_launch(self, kernel: Mounted) -> None:
        done = run(kernel, "measure", "broker", "--min-evaluation-number", "1")
        assert done.stderr.startswith("TDX: configuration, program and model are measured into RTMR3.")


def run(kernel: Mounted, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = at_true_paths(kernel, CLOISTER, *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def serving(kernel: Mounted, *arguments: str) -> Iterator[str]:
    """A service in the namespace; it must end by SIGTERM without a complaint."""
    command = at_true_paths(kernel, CLOISTER, *arguments, "--port", "0", "--json")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.communicate(timeout=10)[1]
        yield json.loads(line)["listening"]
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert "Traceback" not in said, said
