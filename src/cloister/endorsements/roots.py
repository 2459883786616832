"""Trust roots: who may stand at the end of a certificate chain.

A root is named by the SHA-256 of its DER certificate. Vendors' roots are data files of this package
(``vendors/``, with their origin). A simulated root is made per deployment and is only ever named by a policy:
nothing here, and no environment variable, adds one.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from functools import cache
from importlib import resources

from cloister.errors import VerificationError

INTEL_SGX_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
VENDOR_ROOT_SHA256S = frozenset({INTEL_SGX_ROOT_SHA256})


@dataclass(frozen=True, slots=True)
class Root:
    """A root that a policy trusts."""

    name: str
    sha256: str
    """Lower-case hexadecimal digest of the DER certificate."""
    simulated: bool

    def require(self, certificate: bytes) -> bytes:
        """``certificate`` (DER, the end of a chain) if it is this root.

        Raises :class:`~cloister.errors.VerificationError`.
        """
        digest = hashlib.sha256(certificate).hexdigest()
        if not hmac.compare_digest(digest, self.sha256):
            raise VerificationError(
                f"the chain ends in root {digest}, not in {self.name} ({self.sha256})",
                todo="a simulated TEE is only accepted by a policy that names its root's digest",
            )
        return certificate


INTEL_ROOT = Root(name="Intel SGX Root CA", sha256=INTEL_SGX_ROOT_SHA256, simulated=False)


def simulated_root(sha256: str) -> Root:
    """The root of a simulated TEE, as a policy names it: ``sha256`` is lower-case hexadecimal."""
    return Root(name="simulated root", sha256=sha256, simulated=True)


@cache
def intel_root_certificate() -> bytes:
    """Intel's root certificate, DER, from this package's data."""
    data = resources.files("cloister.endorsements").joinpath("vendors/intel-sgx-root-ca.der").read_bytes()
    return INTEL_ROOT.require(data)
