"""The environment of a program: measured, and nothing of whoever starts it that the configuration does not name.

Variables steer programs (``LD_PRELOAD``, ``PYTHONPATH``, proxies), so the operator's own do not come along. No value is a
secret: secrets are files, and their paths stand here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.workload.agent import VARIABLE
from cloister.workload.configuration import WorkloadFile
from cloister.workload.optimizers import VARIABLE as OPTIMIZE

STARTUP: Final = Path(__file__).resolve().parent / "startup"
"""Holds the ``sitecustomize`` that lets Python libraries open sealed paths."""
_TERMINAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}", re.ASCII)
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class PrivateFolders:
    """Where things lie in the private tmpfs at ``root``."""

    root: Path

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def identity(self) -> Path:
        return self.root / "identity"

    @property
    def measured(self) -> Path:
        """Copies of what was measured."""
        return self.root / "measured"

    @property
    def home(self) -> Path:
        """``HOME``, and caches: gone when the program ends."""
        return self.root / "home"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def opened(self) -> Path:
        """Sealed directories that a library needed as files."""
        return self.root / "opened"

    @property
    def access(self) -> Path:
        return self.root / "access.json"

    @property
    def socket(self) -> Path:
        return self.root / "keys.socket"


def search_path() -> str:
    """``PATH`` of programs: the folder of this interpreter, so that ``python`` is the one that Cloister is installed in."""
    return f"{Path(sys.executable).parent}:{SYSTEM_PATH}"


def program_environment(file: WorkloadFile, folders: PrivateFolders, *, loose: bool) -> dict[str, str]:
    """What is measured of the environment: the defaults, and the configuration's own, which prevail.

    ``loose``: nothing measured holds the folder that Python would import from first; then it imports nothing from there.
    """
    home, temporary = str(folders.home), str(folders.temporary)
    found = {
        "PATH": search_path(),
        "LANG": "C.UTF-8",
        "HOME": home,
        "XDG_CACHE_HOME": f"{home}/.cache",
        "XDG_CONFIG_HOME": f"{home}/.config",
        "XDG_DATA_HOME": f"{home}/.local/share",
        "TMPDIR": temporary,
        "HF_HOME": f"{home}/.cache/huggingface",
        "TORCH_HOME": f"{home}/.cache/torch",
        "MPLCONFIGDIR": f"{home}/.config/matplotlib",
        "PYTHONDONTWRITEBYTECODE": "1",
        # Telemetry would tell the host what runs, and waits for a network that is not there.
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    if file.network.access == "none":
        found |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if loose:
        # A `json.py` that the host lays beside the script would run before the script does.
        found["PYTHONSAFEPATH"] = "1"
    if file.program.hooks:
        found["PYTHONPATH"] = str(STARTUP)
    if file.program.optimize != "off":
        found[OPTIMIZE] = file.program.optimize
        # Weights are read once for every token: in large pages that is half as fast again.
        found["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    found |= {secret.env: str(folders.secrets / secret.file) for secret in file.secret}
    found |= file.program.environment
    if file.program.hooks and "PYTHONPATH" in file.program.environment:
        found["PYTHONPATH"] = f"{STARTUP}:{file.program.environment['PYTHONPATH']}"
    return {**found, VARIABLE: str(folders.access), "CLOISTER_PRIVATE": str(folders.opened)}


def inherited(file: WorkloadFile, outside: Mapping[str, str]) -> dict[str, str]:
    """What the configuration takes from whoever starts it; ``TERM`` always, if it is a plain name: a terminal is theirs."""
    found = {name: outside[name] for name in sorted(file.program.inherit) if name in outside}
    if _TERMINAL.fullmatch(outside.get("TERM", "")):
        found["TERM"] = outside["TERM"]
    return found
