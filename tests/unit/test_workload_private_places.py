"""Places of a run: the sockets of the machine's services are not among them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

COVERED = """
import json, os, sys
from contextlib import ExitStack
from pathlib import Path
from cloister.workload import namespaces
from cloister.workload.private_places import NAMES, cover_services
place = Path(sys.argv[1])
namespaces.private_mounts()
with ExitStack() as undo:
    cover_services(place, 1 << 20, undo, kept=NAMES)
    found = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
    stub = (place / "systemd" / "resolve" / "stub-resolv.conf").read_text()
    try:
        (place / "systemd" / "resolve" / "planted").write_text("x")
        kept = "writable"
    except OSError as error:
        kept = error.strerror
print(json.dumps({"found": found, "stub": stub, "kept": kept, "after": (place / "docker.sock").exists()}))
"""


def test_of_services_nothing_is_left_but_what_names_are_resolved_with(tmp_path: Path) -> None:
    place = tmp_path.resolve() / "run"
    resolve = place / "systemd" / "resolve"
    resolve.mkdir(parents=True)
    (resolve / "stub-resolv.conf").write_text("nameserver 127.0.0.53\n")
    (place / "systemd" / "private").touch()
    (place / "nscd").symlink_to("/etc")
    listeners = []
    for name in ("docker.sock", "snapd.socket", "systemd/io.systemd.Any"):
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(str(place / name))
    done = subprocess.run(
        [sys.executable, "-c", COVERED, place], capture_output=True, text=True, timeout=30, check=False
    )
    for listener in listeners:
        listener.close()
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["found"] == ["systemd", "systemd/resolve", "systemd/resolve/stub-resolv.conf"]
    assert said["stub"] == "nameserver 127.0.0.53\n"
    assert said["kept"] == "Read-only file system"
    assert said["after"] is True
