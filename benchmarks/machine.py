"""What a figure was measured on: processor, memory, its bandwidth, packages, date. No host name, no paths.

The bandwidth is that of reading, by as many processes as there are cores, each over memory of its own that no cache
holds: what a decoder that reads all its weights for each token cannot exceed.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = (
    "cloister", "torch", "transformers", "xllamacpp", "openvino", "openvino-genai", "torchao", "cryptography",
    "uvicorn", "uvloop", "granian",
)  # fmt: skip
FEATURES: Final = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "sha_ni",
    "vaes",
)  # fmt: skip
_BLOCK: Final = 256 << 20
_READER: Final = (
    "import sys,time\n"
    f"data=b'\\2'*{_BLOCK}\n"
    "data.find(b'\\1')\n"
    "sys.stdout.write('ready\\n');sys.stdout.flush();sys.stdin.readline()\n"
    "end=time.perf_counter()+1.0;began=time.perf_counter();n=0\n"
    "while time.perf_counter()<end:\n"
    " data.find(b'\\1');n+=1\n"
    "print(n*len(data)/(time.perf_counter()-began))\n"
)
"""``find`` of a byte that is not there is the C library's memchr: it reads as fast as the machine can. The block is written
first: pages that nobody wrote are one page of zeros, which the caches hold."""


def describe() -> dict[str, Any]:
    """Everything about this machine that a reader of its figures needs; takes about three seconds."""
    info = Path("/proc/cpuinfo").read_text("utf-8")
    lines = dict(line.split(":", 1) for line in info.split("\n\n", 1)[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = set(fields.get("flags", "").split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": fields.get("model name", platform.machine()),
        "family": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "features": [name for name in FEATURES if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "read_gb_per_s": round(bandwidth() / 1e9, 1),
        "python": platform.python_version(),
        "kernel": platform.release().split("-", maxsplit=1)[0],
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def sentence(machine: dict[str, Any]) -> str:
    """The description in one line."""
    packages = ", ".join(f"{name} {found}" for name, found in machine["packages"].items())
    return (
        f"{machine['date']}: {machine['cores']} cores of {machine['processor']} (family/model "
        f"{machine['family']}; {', '.join(machine['features'])}), {machine['memory_gib']:g} GiB, reads "
        f"{machine['read_gb_per_s']:g} GB/s; Linux {machine['kernel']}, Python {machine['python']}; {packages}."
    )


def bandwidth() -> float:
    """Bytes read per second by all cores together; the better of two tries."""
    return max(_bandwidth_once(), _bandwidth_once())


def _bandwidth_once() -> float:
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", _READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in os.sched_getaffinity(0)
    ]
    for reader in readers:
        assert reader.stdout is not None
        reader.stdout.readline()
    for reader in readers:  # all of them at once
        assert reader.stdin is not None
        reader.stdin.write("go\n")
        reader.stdin.flush()
    return sum(float(reader.communicate(timeout=60)[0]) for reader in readers)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def other_load(seconds: float = 0.5) -> float:
    """Cores that other processes keep busy now: what to look at before believing a figure."""

    def busy() -> float:
        words = Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:]
        ticks = [int(word) for word in words]
        return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")

    before, own = busy(), time.process_time()
    time.sleep(seconds)
    return max(0.0, busy() - before - (time.process_time() - own)) / seconds
