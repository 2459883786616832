"""Where the vendors' services are. The defaults are the vendors' own; an operator may name mirrors.

Nothing is trusted because of where it came from: what is fetched is verified against the vendors' roots later. An
address must be https all the same (who listens learns which machines are attested, and who answers could withhold
the newest lists), unless it is on this machine or plain http is allowed in so many words.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from cloister.errors import UsageError

INTEL_PCS: Final = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
AMD_KDS: Final = "https://kdsintf.amd.com"
NVIDIA_RIM: Final = "https://rim.attestation.nvidia.com"
NVIDIA_OCSP: Final = "https://ocsp.ndis.nvidia.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Base addresses, without a trailing slash. Raises :class:`~cloister.errors.UsageError` when made of others."""

    intel: str = INTEL_PCS
    """The PCS, or a PCCS that mirrors it: what stands in front of ``/sgx/certification/v4/…``."""
    intel_root_crl: str = ""
    """The whole address of the root's revocation list. Empty: Intel's distribution point for the PCS, and
    ``/sgx/certification/v4/rootcacrl`` of a PCCS."""
    intel_update: Literal["standard", "early"] = "standard"
    """``early``: the newest TCB evaluation as soon as it exists, before the time that Intel gives to deploy it."""
    intel_evaluation_number: int | None = None
    """Ask for this ``tcbEvaluationDataNumber``; it excludes ``early``."""
    amd: str = AMD_KDS
    nvidia_rim: str = NVIDIA_RIM
    nvidia_ocsp: str | None = NVIDIA_OCSP
    """None: OCSP is not asked; a verifier then reports that revocation was not checked, and the policy decides."""
    allow_http: bool = False
    """Plain http also beyond this machine."""

    def __post_init__(self) -> None:
        addresses = {"intel": self.intel, "amd": self.amd, "nvidia_rim": self.nvidia_rim}
        if self.intel_root_crl:
            addresses["intel_root_crl"] = self.intel_root_crl
        if self.nvidia_ocsp is not None:
            addresses["nvidia_ocsp"] = self.nvidia_ocsp
        for name, address in addresses.items():
            check_address(address, name=name, allow_http=self.allow_http)
        if self.intel_update not in ("standard", "early"):
            raise UsageError("intel_update must be standard or early")
        if self.intel_evaluation_number is not None and self.intel_update == "early":
            raise UsageError("early and a TCB evaluation number exclude each other", todo="name one of them")
        if self.intel_evaluation_number is not None and not 0 <= self.intel_evaluation_number < 1 << 31:
            raise UsageError("the TCB evaluation number is out of its range")


def check_address(address: str, *, name: str, allow_http: bool) -> None:
    """Raise :class:`~cloister.errors.UsageError` unless ``address`` is an https base address."""
    try:
        url = urlsplit(address)
        host, _ = url.hostname, url.port
    except ValueError:
        host, url = None, urlsplit("")
    plain = address.isascii() and address.isprintable() and not any(mark in address for mark in "?#@ \\")
    if url.scheme not in ("https", "http") or not host or not plain or address.endswith("/"):
        raise UsageError(
            f"the address of {name} is not https://host[:port][/path]", todo="leave out a trailing slash"
        )
    if url.scheme == "http" and not allow_http and not _on_this_machine(host):
        raise UsageError(
            f"the address of {name} is plain http beyond this machine",
            todo="use https, or allow http in words",
        )


def _on_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
