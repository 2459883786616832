"""Trust roots: who may stand at the end of a certificate chain.

A root is named by the SHA-256 of its DER certificate. Vendors' roots are data files of this package
(``vendors/``, with their origin). A simulated root is made per deployment and is only ever named by a policy:
nothing here, and no environment variable, adds one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from cloister.errors import VerificationError

INTEL_SGX_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
AMD_ARK_SHA256S = {
    "milan": "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
    "genoa": "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
    "turin": "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
}
NVIDIA_DEVICE_ROOT_SHA256 = "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"
NVIDIA_RIM_ROOT_SHA256 = "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1"
VENDOR_ROOT_SHA256S = frozenset(
    {INTEL_SGX_ROOT_SHA256, *AMD_ARK_SHA256S.values(), NVIDIA_DEVICE_ROOT_SHA256, NVIDIA_RIM_ROOT_SHA256}
)


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
AMD_ROOTS = tuple(
    Root(name=f"AMD ARK-{product.capitalize()}", sha256=digest, simulated=False)
    for product, digest in AMD_ARK_SHA256S.items()
)
NVIDIA_DEVICE_ROOT = Root(name="NVIDIA Device Identity CA", sha256=NVIDIA_DEVICE_ROOT_SHA256, simulated=False)
NVIDIA_RIM_ROOT = Root(name="NVIDIA CoRIM signing Root CA", sha256=NVIDIA_RIM_ROOT_SHA256, simulated=False)
_FILES = {
    INTEL_SGX_ROOT_SHA256: "intel-sgx-root-ca.der",
    **{digest: f"amd-ark-{product}.der" for product, digest in AMD_ARK_SHA256S.items()},
    NVIDIA_DEVICE_ROOT_SHA256: "nvidia-device-root.der",
    NVIDIA_RIM_ROOT_SHA256: "nvidia-rim-root.der",
}


def simulated_root(sha256: str) -> Root:
    """The root of a simulated TEE, as a policy names it: ``sha256`` is lower-case hexadecimal."""
    return Root(name="simulated root", sha256=sha256, simulated=True)


def named_root(name: str, sha256: str) -> Root:
    """A root that the policy's author chose, such as the CA of a cloud's TPMs; not simulated, nobody's promise."""
    return Root(name=name, sha256=sha256, simulated=False)


def require_root(certificate: bytes, roots: Sequence[Root]) -> Root:
    """Which of ``roots`` this ``certificate`` (DER, the end of a chain) is.

    Raises :class:`~cloister.errors.VerificationError` when it is none, or when there are none.
    """
    digest = hashlib.sha256(certificate).hexdigest()
    for root in roots:
        if hmac.compare_digest(digest, root.sha256):
            return root
    raise VerificationError(
        f"the chain ends in root {digest}, not in {' or '.join(root.name for root in roots) or 'any known root'}",
        todo="a simulated TEE is only accepted by a policy that names its root's digest",
    )


@cache
def vendor_certificate(root: Root) -> bytes:
    """A vendor's root certificate, DER, from this package's data."""
    name = _FILES[root.sha256]
    data = resources.files("cloister.endorsements").joinpath("vendors").joinpath(name).read_bytes()
    return root.require(data)
