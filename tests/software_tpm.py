"""A real software TPM for tests: swtpm, set up by swtpm_setup, with endorsement keys certified by a CA of its own.

Where swtpm or the tpm2-tools are missing, tests that need them are skipped; with ``CI=true`` that is a failure.
Each TPM is a process with a socket and a state directory of its own below a short temporary path.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attester.tpm_transport import SocketTransport
from real_parts import absent

TOOLS = ("swtpm", "swtpm_setup", "swtpm_localca", "tpm2_createek", "tpm2_checkquote", "certtool")


def require_software_tpm() -> None:
    """Skip the calling test (or module) where the tools are missing."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not missing:
        return
    reason = f"{', '.join(missing)} not found: install swtpm, swtpm-tools, gnutls-bin and tpm2-tools"
    absent(reason)


@dataclass(frozen=True)
class LocalAuthority:
    """A vendor of TPMs: swtpm_localca's CA in a directory."""

    directory: Path

    @classmethod
    def create(cls, directory: Path) -> LocalAuthority:
        directory.mkdir(parents=True)
        (directory / "localca.conf").write_text(
            f"statedir = {directory}\nsigningkey = {directory}/signkey.pem\n"
            f"issuercert = {directory}/issuercert.pem\ncertserial = {directory}/certserial\n"
        )
        (directory / "localca.options").write_text(
            "--platform-manufacturer Tests\n--platform-version 1\n--platform-model swtpm\n"
        )
        (directory / "setup.conf").write_text(
            "create_certs_tool = swtpm_localca\n"
            f"create_certs_tool_config = {directory}/localca.conf\n"
            f"create_certs_tool_options = {directory}/localca.options\nactive_pcr_banks = sha256,sha384\n"
        )
        return cls(directory)

    @property
    def chain(self) -> tuple[bytes, ...]:
        """Issuer and root, DER."""
        names = ("issuercert.pem", "swtpm-localca-rootca-cert.pem")
        return tuple(
            x509.load_pem_x509_certificate((self.directory / name).read_bytes()).public_bytes(Encoding.DER)
            for name in names
        )


class SoftwareTpm:
    """One TPM. ``start`` and ``stop`` are its power."""

    def __init__(self, directory: Path, authority: LocalAuthority) -> None:
        self.directory = directory
        self.authority = authority
        self.socket = directory / "tpm.sock"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)
        subprocess.run(
            [
                *("swtpm_setup", "--tpm2", "--tpmstate", str(directory), "--ecc", "--create-ek-cert"),
                *("--config", str(authority.directory / "setup.conf"), "--overwrite"),
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.directory}"),
                *("--server", f"type=unixio,path={self.socket}"),
                *("--ctrl", f"type=unixio,path={self.socket}.ctrl"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while not self.socket.exists():
            assert self._process.poll() is None, "swtpm ended at once"
            assert time.monotonic() < deadline, "swtpm does not come up"
            time.sleep(0.02)

    def stop(self, *, clean: bool = True) -> None:
        """Power off; ``clean`` as a kernel does it, with TPM2_Shutdown(CLEAR) before."""
        if self._process is not None:
            if clean:
                with self.transport() as transport:
                    transport.submit(bytes.fromhex("80010000000c000001450000"))
            self._process.terminate()
            self._process.wait(timeout=20)
            self._process = None
        for path in (self.socket, self.directory / "tpm.sock.ctrl"):
            path.unlink(missing_ok=True)

    def reboot(self, *, clean: bool = True) -> None:
        self.stop(clean=clean)
        self.start()

    @contextlib.contextmanager
    def transport(self) -> Iterator[SocketTransport]:
        """A connection; swtpm serves one at a time."""
        transport = SocketTransport(self.socket)
        try:
            yield transport
        finally:
            transport.close()

    def tool(self, *command: str) -> str:
        """Run one of the tpm2-tools on this TPM in its directory; what it printed."""
        environment = {**os.environ, "TPM2TOOLS_TCTI": f"swtpm:path={self.socket}"}
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command[0]}: {done.stderr}"
        return done.stdout


@contextlib.contextmanager
def software_tpms(count: int = 1, *, authorities: int = 1) -> Iterator[list[SoftwareTpm]]:
    """Running TPMs; the n-th is of authority n modulo ``authorities``."""
    require_software_tpm()
    # A Unix socket's path has at most 107 bytes, so pytest's own directories are too deep.
    with tempfile.TemporaryDirectory(prefix="swtpm-") as root:
        base = Path(root)
        vendors = [LocalAuthority.create(base / f"ca{number}") for number in range(authorities)]
        tpms: list[SoftwareTpm] = []
        try:
            for number in range(count):
                tpm = SoftwareTpm(base / f"tpm{number}", vendors[number % authorities])
                tpms.append(tpm)
                tpm.start()
            yield tpms
        finally:
            for tpm in tpms:
                tpm.stop()
