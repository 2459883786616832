"""What `cloister doctor attestation` tries on this machine: the I/O behind attester/diagnosis.py.

Everything is asked as the serving process would ask it, once, with short timeouts. One quote is made over random
bytes and thrown away. Nothing is changed: no register is extended, nothing is loaded, mounted or stored.
"""

from __future__ import annotations

import os
import secrets
import ssl
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import httpx2

from cloister.attester import RawEvidence
from cloister.attester.diagnosis import Facts, Finding, Options, Probes, diagnose_attestation
from cloister.attester.firmware_log import only_if_it_replays, read_firmware_log
from cloister.attester.gramine import GramineAttester
from cloister.attester.local import THIS_MACHINE, Machine, Places, find_machine
from cloister.attester.nvidia import NvmlAttester
from cloister.attester.rtmr import FIRMWARE_REGISTERS, Registers
from cloister.attester.tsm import TsmAttester
from cloister.encoding import from_hex
from cloister.endorsements.fetch import Fetcher, Limits
from cloister.endorsements.roots import AMD_ROOTS, INTEL_ROOT, simulated_root
from cloister.endorsements.services import INTEL_PCS, Services
from cloister.errors import AttesterError, FormatError, NetworkError, UsageError
from cloister.evidence.binding import REPORT_DATA_SIZE
from cloister.evidence.bundle import TeeKind
from cloister.verifier import intel, snp
from cloister.verifier.claims import Claims
from cloister.verifier.logs import replay_logs
from cloister.verifier.rules import TCB_STATUSES, IntelRules

LIMITS: Final = Limits(total=20.0, attempt=10.0, connect=4.0, read=8.0, attempts=1)
_ROOT: Final = Path("/")
_ANY_STATUS: Final = IntelRules(
    min_tcb_evaluation_number=1,
    accepted_statuses=frozenset(TCB_STATUSES),
    out_of_date_grace=365 * 24 * 3600,
    allow_dynamic_platform=True,
    allow_cached_keys=True,
    allow_smt=True,
)
"""Is it genuine at all? Which TCB status is good enough is for the relying party's policy."""


def check(options: Options) -> tuple[Finding, ...]:
    """The checks of this room, as the entry point group ``cloister.doctor`` offers them."""
    return check_machine(options, transport=trusting(options.ca_file))


def trusting(ca_file: Path | None) -> httpx2.BaseTransport | None:
    """A transport that believes these certificates' TLS alone; None for the usual authorities.

    A PCCS mostly has a certificate of its own. Raises :class:`UsageError` for what is no such file.
    """
    if ca_file is None:
        return None
    try:
        context = ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        reason = getattr(error, "strerror", None) or "it holds no certificates in PEM"
        raise UsageError(f"cannot use {ca_file}: {reason}", todo="check --ca-file") from None
    return httpx2.HTTPTransport(verify=context, trust_env=False)


def check_machine(
    options: Options,
    *,
    places: Places = THIS_MACHINE,
    transport: httpx2.BaseTransport | None = None,
    clock: Callable[[], float] = time.time,
) -> tuple[Finding, ...]:
    """The findings about the machine whose files are at ``places``. Raises :class:`UsageError` for wrong options."""
    services = Services(intel=options.pccs or INTEL_PCS, allow_http=options.allow_http)
    now = int(clock())
    machine = _Machine(places, services, options, transport, clock)
    return diagnose_attestation(gather(places), machine.probes(), now=now)


def gather(places: Places = THIS_MACHINE, *, root: Path = _ROOT) -> Facts:
    """What can be seen without asking a TEE."""
    flags = _text(root / "proc/cpuinfo").partition("flags")[2].partition("\n")[0].split()
    mounts = [line.split()[:3] for line in _text(root / "proc/mounts").splitlines()]
    release = os.uname().release
    return Facts(
        gramine=(places.gramine / "attestation_type").exists(),
        tdx_guest="tdx_guest" in flags or (root / "dev/tdx_guest").exists(),
        snp_guest="sev_snp" in flags or (root / "dev/sev-guest").exists(),
        configfs=any(mount[1:] == ["/sys/kernel/config", "configfs"] for mount in mounts),
        reports=places.reports.is_dir(),
        kernel=release,
        user=os.geteuid(),
        gpus=(root / "proc/driver/nvidia/version").exists(),
    )


class _Machine:
    """The probes over one machine; what one finds out, a later one may need."""

    def __init__(
        self,
        places: Places,
        services: Services,
        options: Options,
        transport: httpx2.BaseTransport | None,
        clock: Callable[[], float],
    ) -> None:
        self._places = places
        self._services = services
        self._options = options
        self._transport = transport
        self._clock = clock

    def probes(self) -> Probes:
        return Probes(
            kind=lambda: self._found().tee,
            quote=self._quote,
            registers=self._registers,
            firmware_log=self._firmware_log,
            service=self._service,
            endorse=self._endorse,
            verify=self._verify,
            devices=lambda: NvmlAttester().collect(secrets.token_bytes(32)),
            offline=self._options.offline,
        )

    def _found(self) -> Machine:
        machine = find_machine(self._places)
        if machine is None:  # it was there a moment ago
            raise AttesterError("the TEE's files are gone", todo="look at the kernel log")
        return machine

    def _quote(self) -> tuple[RawEvidence, float]:
        inside = self._found().tee == "sgx"
        attester = GramineAttester(self._places.gramine) if inside else TsmAttester(self._places.reports)
        began = time.monotonic()
        evidence = attester.quote(secrets.token_bytes(REPORT_DATA_SIZE))
        return evidence, time.monotonic() - began

    def _registers(self) -> str:
        registers = Registers.find(self._places.measurements)
        for name in FIRMWARE_REGISTERS:
            registers.read(name)
        registers.check_writable()
        launched = registers.read("rtmr3")
        if launched.strip(b"\0"):
            value = launched.hex()[:16]
            return f"a launch was measured already ({value}…): only that one can be served until a restart"
        return "readable and writable, RTMR3 is fresh"

    def _firmware_log(self) -> int:
        registers = Registers.find(self._places.measurements)
        log = read_firmware_log(self._places.firmware_log)
        if log and not only_if_it_replays(log, {**registers.firmware(), "rtmr3": registers.read("rtmr3")}):
            raise AttesterError(
                "the firmware log does not replay to this machine's registers",
                todo="evidence goes without it; policies that ask for firmware events will refuse this machine",
            )
        return len(log)

    def _service(self, kind: TeeKind) -> tuple[str, int | None]:
        address = self._services.amd if kind == "snp" else self._services.intel
        try:
            with (
                httpx2.Client(
                    transport=self._transport,
                    timeout=httpx2.Timeout(LIMITS.read, connect=LIMITS.connect),
                    trust_env=False,
                    follow_redirects=False,
                ) as client,
                client.stream("GET", address) as answer,
            ):
                date = answer.headers.get("date")
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError) as error:
            raise NetworkError(
                f"{address} cannot be reached ({type(error).__name__})",
                todo="look at DNS, firewall and proxy; or name a PCCS with --pccs, or carry endorsements along",
            ) from None
        return address, _moment(date)

    def _endorse(self, evidence: RawEvidence) -> bytes:
        if self._options.offline:
            if evidence.endorsements:
                return evidence.endorsements
            raise NetworkError(
                "nothing may be fetched, and the host handed over none",
                todo="leave --offline out, or import some",
            )
        with Fetcher(
            services=self._services, transport=self._transport, limits=LIMITS, clock=self._clock
        ) as fetcher:
            return fetcher.endorsements(evidence.tee, evidence.quote)

    def _verify(self, evidence: RawEvidence, endorsements: bytes) -> Claims:
        now = int(self._clock())
        root = self._options.simulated_root
        if root is not None:
            try:
                from_hex(root, 32, what="--simulated-root")
            except FormatError as error:
                raise UsageError(error.what, todo="`cloister simulate show DIR` prints it") from None
        if evidence.tee == "snp":
            roots = AMD_ROOTS if root is None else (simulated_root(root),)
            return snp.verify(evidence.quote, endorsements, roots=roots, now=now, revocation_required=False)
        one = INTEL_ROOT if root is None else simulated_root(root)
        claims = intel.verify(evidence.quote, endorsements, root=one, now=now, rules=_ANY_STATUS)
        return replay_logs(claims, event_log=evidence.event_log, firmware_log=evidence.firmware_log)


def _moment(date: str | None) -> int | None:
    """A Date header in Unix seconds, or None where there is none that can be read."""
    try:
        return int(parsedate_to_datetime(date).timestamp()) if date and len(date) <= 64 else None
    except (ValueError, TypeError, OverflowError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[: 1 << 20]
    except OSError:
        return ""
