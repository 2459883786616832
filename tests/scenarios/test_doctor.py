"""`cloister doctor attestation` as an operator runs it, on a machine with each link broken in turn.

The command runs in a mount namespace where the stand-in of the kernel's files lies at the true paths; the vendor's
service is a stand-in on a loopback socket. It is told of neither, but for --pccs and --simulated-root.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from cloister.attester.rtmr import Registers
from cloister.attester.simulated import SimulatedPlatform
from configfs_tsm import Mounted, at_true_paths, fuse_needed, mounted, namespace_needed
from shared_data import vectors
from vendor_services import VendorServices, status

CLOISTER = Path(sys.executable).parent / "cloister"
fuse_needed()


@pytest.fixture
def platform(tmp_path: Path) -> SimulatedPlatform:
    return SimulatedPlatform.create(tmp_path / "tee", now=int(time.time()))


@pytest.fixture
def kernel(tmp_path: Path, platform: SimulatedPlatform) -> Iterator[Mounted]:
    namespace_needed()
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


def doctor(kernel: Mounted, *options: str) -> tuple[int, dict[str, Any]]:
    command = at_true_paths(kernel, CLOISTER, "doctor", "attestation", "--json", *options)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def row(document: dict[str, Any], check: str) -> dict[str, Any]:
    return next(one for one in document["findings"] if one["check"] == check)


def test_a_sound_machine_is_sound_from_the_kernel_to_the_verification(
    kernel: Mounted, platform: SimulatedPlatform, pccs: VendorServices
) -> None:
    code, document = doctor(kernel, "--pccs", pccs.base, "--simulated-root", platform.root_sha256)
    assert (code, document["first_failure"]) == (0, None), document
    found = {one["check"]: one["state"] for one in document["findings"]}
    assert found.pop("GPUs") == "not asked"
    assert found.pop("firmware log") == "not asked"
    assert set(found.values()) == {"ok"}
    assert row(document, "verification")["found"] == "SIMULATED root: nothing is protected; UpToDate"
    assert kernel.left == []


def test_nothing_is_changed_by_a_diagnosis(kernel: Mounted) -> None:
    before = {path.name: path.read_bytes() for path in kernel.measurements.iterdir()}
    doctor(kernel, "--offline")
    assert {path.name: path.read_bytes() for path in kernel.measurements.iterdir()} == before
    assert kernel.left == []


FAULTS = {
    "no provider": ({"mkdir": ["forever:ENXIO"]}, "report provider", 1, "modprobe"),
    "not root": ({"mkdir": ["forever:EACCES"]}, "report provider", 1, "CAP_DAC_OVERRIDE"),
    "read-only container": ({"mkdir": ["forever:EROFS"]}, "report provider", 1, "writable"),
    "QGS does not answer": ({"outblob": ["forever:ETIMEDOUT"]}, "quote", 1, "QGS"),
    "hypervisor refuses": ({"outblob": ["forever:EIO"]}, "quote", 1, "vsock"),
    "registers cannot be read": (
        {"register_read": ["forever:EIO"]},
        "measurement registers",
        1,
        "kernel log",
    ),
}


@pytest.mark.parametrize(("faults", "check", "code", "todo"), FAULTS.values(), ids=FAULTS)
def test_the_link_that_is_broken_is_named(
    faults: dict[str, Any],
    check: str,
    code: int,
    todo: str,
    kernel: Mounted,
    platform: SimulatedPlatform,
    pccs: VendorServices,
) -> None:
    kernel.misbehave(**faults)
    found, document = doctor(kernel, "--pccs", pccs.base, "--simulated-root", platform.root_sha256)
    assert (found, document["first_failure"]) == (code, check)
    assert todo in row(document, check)["todo"]


def test_a_service_that_cannot_be_reached_is_a_network_failure(
    kernel: Mounted, platform: SimulatedPlatform
) -> None:
    with socket.socket() as taken:  # bound and never listened on
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, document = doctor(kernel, "--pccs", url, "--simulated-root", platform.root_sha256)
    assert (code, document["first_failure"]) == (4, "vendor's service")
    assert url in row(document, "vendor's service")["found"]
    assert row(document, "endorsements")["state"] == "failed"


def test_a_pccs_with_a_certificate_of_its_own_is_believed_only_when_it_is_named(
    kernel: Mounted, platform: SimulatedPlatform, pccs: VendorServices, tmp_path: Path
) -> None:
    certificate = own_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    pccs._server.socket = context.wrap_socket(pccs._server.socket, server_side=True)
    options = ["--pccs", pccs.base.replace("http:", "https:"), "--simulated-root", platform.root_sha256]
    code, document = doctor(kernel, *options)
    assert (code, document["first_failure"]) == (4, "vendor's service")
    assert doctor(kernel, *options, "--ca-file", str(certificate))[0] == 0


def own_certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a PCCS")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "pccs.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    return file


@pytest.mark.parametrize(("answer", "code"), [(500, 4), (404, 3), (429, 4)])
def test_a_service_that_answers_wrongly_is_named(
    answer: int, code: int, kernel: Mounted, platform: SimulatedPlatform, pccs: VendorServices
) -> None:
    pccs.fail("/tdx/certification", *[status(answer)] * 8)
    found, document = doctor(kernel, "--pccs", pccs.base, "--simulated-root", platform.root_sha256)
    assert (found, document["first_failure"]) == (code, "endorsements")


@pytest.mark.parametrize(("offset", "side"), [(86_400, "behind"), (-86_400, "ahead of")])
def test_a_clock_that_is_off_is_named(
    offset: int, side: str, kernel: Mounted, platform: SimulatedPlatform, pccs: VendorServices
) -> None:
    handler = pccs._server.RequestHandlerClass
    handler.date_time_string = lambda self, timestamp=None: formatdate(time.time() + offset, usegmt=True)
    code, document = doctor(kernel, "--pccs", pccs.base, "--simulated-root", platform.root_sha256)
    assert (code, document["first_failure"]) == (3, "clock")
    assert side in row(document, "clock")["found"]
    assert "chrony" in row(document, "clock")["todo"]


def test_a_machine_that_is_not_the_vendors_does_not_verify(kernel: Mounted, pccs: VendorServices) -> None:
    code, document = doctor(kernel, "--pccs", pccs.base)
    assert (code, document["first_failure"]) == (3, "verification")
    assert "Intel SGX Root CA" in row(document, "verification")["found"]


def test_a_launch_that_was_measured_already_is_told(kernel: Mounted) -> None:
    Registers(kernel.measurements).extend(3, b"\x01" * 48)
    _, document = doctor(kernel, "--offline")
    assert "a launch was measured already" in row(document, "measurement registers")["found"]


def test_a_kernel_without_registers_is_told(tmp_path: Path, platform: SimulatedPlatform) -> None:
    namespace_needed()
    with mounted(tmp_path, "--platform", str(tmp_path / "tee"), "--no-registers") as kernel:
        code, document = doctor(kernel, "--offline")
    assert (code, document["first_failure"]) == (1, "measurement registers")
    assert "6.16" in row(document, "measurement registers")["todo"]


@pytest.mark.parametrize("booted", [True, False])
def test_the_firmwares_log_is_replayed(booted: bool, tmp_path: Path, platform: SimulatedPlatform) -> None:
    namespace_needed()
    arguments = ["--platform", str(tmp_path / "tee"), "--ccel", str(vectors("coco-trustee/CCEL_data_gcp"))]
    with mounted(tmp_path, *arguments, *(["--booted-by-ccel"] if booted else [])) as kernel:
        _, document = doctor(kernel, "--offline")
    assert row(document, "firmware log")["state"] == ("ok" if booted else "failed")


def test_an_snp_guest_is_recognised_and_its_signature_is_checked(tmp_path: Path) -> None:
    namespace_needed()
    report = vectors("coco-trustee/snp/test-report.bin")
    with mounted(tmp_path, "--provider", "sev_guest", "--report", str(report)) as kernel:
        code, document = doctor(kernel, "--offline")
    assert row(document, "report provider")["found"].startswith("SNP")
    assert row(document, "quote")["state"] == "ok"
    assert row(document, "measurement registers")["state"] == "not asked"
    assert (code, document["first_failure"]) == (
        4,
        "endorsements",
    )  # the host gave none, and nothing may be fetched


def test_this_machine_is_told_in_words_what_it_lacks() -> None:
    done = subprocess.run(
        [CLOISTER, "doctor", "attestation", "--offline"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode == 0:
        pytest.skip("this machine has a TEE")
    assert "failed" in done.stdout
    assert "→" in done.stdout
    assert "first" in done.stdout.splitlines()[-1]
    assert done.stderr == ""


def test_without_a_topic_all_are_asked_and_another_is_refused() -> None:
    everything = subprocess.run(
        [CLOISTER, "doctor", "--offline", "--json"], capture_output=True, text=True, check=False, timeout=60
    )
    assert "attestation" in {one["topic"] for one in json.loads(everything.stdout)["findings"]}
    unknown = subprocess.run(
        [CLOISTER, "doctor", "weather"], capture_output=True, text=True, check=False, timeout=60
    )
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("usage: there is no topic 'weather'; known are: ")
    assert "attestation" in unknown.stderr


def test_a_root_that_is_no_digest_is_refused(kernel: Mounted, pccs: VendorServices) -> None:
    code, document = doctor(kernel, "--pccs", pccs.base, "--simulated-root", "zz")
    assert code == 2
    assert "--simulated-root" in row(document, "verification")["found"]


@pytest.mark.parametrize("content", [None, b"", b"no certificate"], ids=["missing", "empty", "text"])
def test_a_file_of_authorities_that_is_none_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    done = subprocess.run(
        [CLOISTER, "doctor", "attestation", "--ca-file", str(file)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--ca-file" in done.stderr
    assert len(done.stderr.splitlines()) == 1
