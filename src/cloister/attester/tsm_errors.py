"""What each errno of configfs-tsm means, and what to do: by the step that met it.

Sources: drivers/virt/coco/guest/report.c, fs/configfs/file.c, drivers/virt/coco/{tdx-guest,sev-guest} of Linux. The
same number means different things at different steps; one that is not known here is shown as it is.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from cloister.errors import AttesterError

_ROOT: Final = (
    "run as root in the guest, or grant the service CAP_DAC_OVERRIDE: the kernel gives reports to root only"
)
_LOAD: Final = "load the guest driver: `modprobe tdx_guest` (Intel TDX) or `modprobe sev-guest` (AMD SEV-SNP)"
_QGS: Final = (
    "ask the host's operator whether the quote generation service (QGS) runs and the VM has its vsock port"
)

_ANY: Final[dict[int, tuple[str, str]]] = {
    errno.EACCES: ("this user may not", _ROOT),
    errno.EPERM: ("this user may not", _ROOT),
    errno.EROFS: ("it is mounted read-only", "in a container, mount /sys/kernel/config writable"),
    errno.ENXIO: ("the kernel has no report provider, or it is gone", _LOAD),
    errno.ENODEV: ("the guest driver is being unloaded", _LOAD),
    errno.ENOMEM: ("the kernel is out of memory", "give the VM more memory"),
    errno.EINTR: ("a signal interrupted it", "ask again"),
    errno.ENOENT: ("the report was removed meanwhile, or the driver has no such attribute", "ask again"),
}
_STEPS: Final[dict[str, dict[int, tuple[str, str]]]] = {
    "mkdir": {
        errno.ENOENT: (
            "the kernel has no TSM reports here",
            f"kernel 6.7 or later with CONFIG_TSM_REPORTS, configfs mounted on /sys/kernel/config; {_LOAD}",
        ),
    },
    "privlevel": {
        errno.EINVAL: (
            "the privilege level is below the guest's own",
            "read privlevel_floor; under an SVSM the guest is not at VMPL 0",
        ),
        errno.EBUSY: ("its generation has wrapped", "ask again, with a report of its own"),
        errno.ENOENT: ("this provider has no privilege levels", "leave the privilege level out"),
    },
    "inblob": {
        errno.EFBIG: ("it takes less than 64 bytes of report data", "use a kernel of 6.7 or later"),
        errno.EBUSY: ("its generation has wrapped", "ask again, with a report of its own"),
        errno.ETXTBSY: ("it is being read by something else", "find what else works with this report"),
    },
    "outblob": {
        errno.EINVAL: (
            "the provider does not take this report data or privilege level",
            "exactly 64 bytes are needed; on SEV-SNP look at privlevel_floor too",
        ),
        errno.EBUSY: (
            "the provider is still busy with a request that was given up",
            f"wait until the host answers it; {_QGS}",
        ),
        errno.EINTR: ("a signal interrupted the request", "ask again; the host may need a moment to end the first"),
        errno.ETIMEDOUT: ("the host did not make a quote within the kernel's 30 s", _QGS),
        errno.EIO: ("the hypervisor refused to make a quote", _QGS),
        errno.EFBIG: ("the report is larger than the kernel or this attester takes", "update the host's quoting service"),
        errno.ENOTTY: (
            "the guest's key for talking to the AMD firmware is disabled",
            "restart the VM: the kernel wipes the key after an error that it must not repeat",
        ),
    },
}  # fmt: skip


def explain(error: OSError, step: str, reports: Path) -> AttesterError:
    """``error`` in words: ``step`` is ``mkdir`` or the attribute, ``reports`` the directory of reports."""
    number = error.errno or 0
    what, todo = _STEPS.get(step, {}).get(number) or _ANY.get(number) or (os.strerror(number), "")
    name = errno.errorcode.get(number, str(number))
    doing = {"mkdir": f"no report could be made below {reports}"}.get(step, f"{step} of a report failed")
    refused = AttesterError(f"{doing}: {what} ({name})", todo=todo or "see `cloister doctor attestation`")
    refused.__cause__ = error  # diagnosis looks at its number
    return refused
