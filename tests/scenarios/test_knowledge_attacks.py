"""A served knowledge room and who wants in: the operator's disk, the wire, the rules, a user's neighbour.

The service, its users and the documents' reader are the product's own processes over real sockets, in the simulated TEE.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

import cloister
from cloister.client.documents import Documents
from cloister.inference.demo_model import demo_model
from deployment import CLOISTER, KEY_URI, CommandFailedError, Service, deployment, start_service
from deployment import cloister as command
from loopback import LoopbackCapture

pytestmark = pytest.mark.timeout(300)
MARKER = f"canary{secrets.token_hex(12)}"
DOCUMENT = f"# Board\n\nThe clinic is to be sold in spring to {MARKER} Holdings.\n"


@dataclass
class Site:
    """What lies on the operator's machine, and the users' keys beside it."""

    root: Path

    @property
    def host(self) -> Path:
        return self.root / "host"

    @property
    def index(self) -> Path:
        return self.host / "documents.tree"

    @property
    def policy(self) -> Path:
        return self.root / "policy.toml"

    def key(self, user: str) -> Path:
        return self.root / "keys" / user

    def measured(self, rules: Path | None = None) -> list[str | Path]:
        return [
            self.host / "model.gguf",
            "--knowledge",
            rules or self.host / "rules.json",
            "--simulated-tee",
            self.host / "tee",
        ]

    def start(
        self,
        *,
        rules: Path | None = None,
        key_file: str = "index.key",
        log: str = "serve.log",
        index: Path | None = None,
    ) -> Service:
        words = [
            "serve",
            *self.measured(rules),
            "--knowledge-index",
            index or self.index,
            "--key-file",
            self.root / key_file,
        ]
        return start_service([*words, "--port", "0", "--context", "2000"], self.host / log)

    def run(self, user: str, *words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        given = [str(word) for word in words]
        return subprocess.run(
            [CLOISTER, *given, "--policy", str(self.policy), "--service-key-file", str(self.key(user))],
            input=stdin, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site(tmp_path_factory.mktemp("knowledge"))
    site.host.mkdir()
    (site.root / "keys").mkdir()
    shutil.copy(demo_model(), site.host / "model.gguf")
    command("simulate", "init", site.host / "tee")
    for key in ("index.key", "other.key"):
        command("keys", "new", site.root / key)
    rules = site.host / "rules.json"
    for user, right, collection in (
        ("alice", "--write", "board"),
        ("bob", "--read", "clinic"),
        ("carol", "--write", "clinic"),
    ):
        command("knowledge", "grant", rules, user, "--key-file", site.key(user), right, collection)
    command("measure", "serve", *site.measured(), "--context", "2000", "--out", site.policy)
    (site.root / "sale.md").write_text(DOCUMENT)
    (site.root / "lungs.md").write_text("# Lungs\n\nAn inhaler helps against asthma.\n")
    return site


@pytest.fixture(scope="module")
def service(site: Site) -> Iterator[Service]:
    """With what alice added, which the operator has on the disk."""
    service = site.start()
    added = site.run("alice", "knowledge", "add", service.url, site.root / "sale.md", "--collection", "board")
    assert added.returncode == 0, added.stderr
    yield service
    service.stop()


def processes() -> bytes:
    found = b""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for what in ("cmdline", "environ"):
                try:
                    found += (entry / what).read_bytes()
                except OSError:
                    continue
    return found


def test_a_marker_in_a_document_its_name_and_a_question_is_on_no_disk_wire_or_log(site: Site) -> None:
    document = site.root / f"{MARKER}.md"
    document.write_text(DOCUMENT)
    with LoopbackCapture() as capture:
        service = site.start()
        try:
            added = site.run("alice", "knowledge", "add", service.url, document, "--collection", "board")
            assert added.returncode == 0, added.stderr
            asked = site.run(
                "alice",
                "chat",
                service.url,
                "--model",
                "knowledge/board",
                "--json",
                stdin=f"Who buys the clinic? {MARKER}",
            )
            assert json.loads(asked.stdout)["sources"][0]["document"] == document.name
            seen = processes()
            held = b"".join(path.read_bytes() for path in site.host.rglob("*") if path.is_file())
        finally:
            service.stop()
    needles = [
        MARKER.encode(),
        MARKER.encode().hex().encode(),
        *(site.key(user).read_bytes().strip() for user in ("alice", "bob")),
    ]
    after = b"".join(path.read_bytes() for path in site.host.rglob("*") if path.is_file())
    for needle in needles:
        for place, hay in {
            "wire": b"".join(capture.streams()),
            "disk": held,
            "disk afterwards": after,
            "processes": seen,
        }.items():
            assert needle not in hay, f"{needle!r} on {place}"
    assert MARKER in document.read_text()  # what was looked for is what was sent
    document.unlink()


def test_a_user_of_one_collection_learns_nothing_of_another(site: Site, service: Service) -> None:
    assert (
        site.run(
            "carol", "knowledge", "add", service.url, site.root / "lungs.md", "--collection", "clinic"
        ).returncode
        == 0
    )
    listed = site.run("bob", "knowledge", "list", service.url, "--json")
    assert [one["collection"] for one in json.loads(listed.stdout)] == ["clinic"]
    for words, stdin in (
        (("chat", service.url, "--model", "knowledge/board"), "Who buys the clinic?"),
        (("knowledge", "list", service.url, "--collection", "board"), ""),
        (("knowledge", "remove", service.url, "sale.md", "--collection", "board"), ""),
        (("knowledge", "add", service.url, site.root / "lungs.md", "--collection", "board"), ""),
    ):
        refused = site.run("bob", *words, stdin=stdin)
        assert refused.returncode == 2, refused
        assert MARKER not in refused.stdout + refused.stderr
        assert len(refused.stderr.strip().splitlines()) <= 3
        assert "Traceback" not in refused.stderr
    answered = site.run(
        "bob", "chat", service.url, "--model", "knowledge/clinic", "--json", stdin="Who buys the clinic?"
    )
    assert MARKER not in answered.stdout + answered.stderr


@pytest.mark.usefixtures("service")
def test_an_index_that_was_changed_on_the_disk_is_not_opened(site: Site, tmp_path: Path) -> None:
    copy = shutil.copytree(site.index, tmp_path / "documents.tree")
    changed = max((path for path in copy.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    whole = changed.read_bytes()
    place = len(whole) // 2
    changed.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(CommandFailedError, match="sealing: ") as refused:
        site.start(log="changed.log", index=copy)
    assert refused.value.code == 3


@pytest.mark.usefixtures("service")
def test_an_index_that_was_copied_opens_under_no_other_key(site: Site, tmp_path: Path) -> None:
    copy = shutil.copytree(site.index, tmp_path / "documents.tree")
    with pytest.raises(CommandFailedError, match="sealing: "):
        site.start(key_file="other.key", log="other.log", index=copy)


def test_an_index_that_was_rolled_back_is_refused_because_the_broker_knows_a_newer_one(
    tmp_path: Path,
) -> None:
    rules, key, tree = tmp_path / "rules.json", tmp_path / "alice.key", tmp_path / "documents.tree"
    command(
        "knowledge", "grant", rules, "alice", "--key-file", key, "--write", "clinic", "--index-key", KEY_URI
    )
    root = tmp_path / "deployment"
    root.mkdir()
    document = tmp_path / "lungs.md"
    document.write_text("# Lungs\n\nAn inhaler helps against asthma.\n")
    options = ("--knowledge", str(rules))
    with deployment(root, demo_model(), serve_options=options) as it:
        it.prepare()
        it.write_policies()
        it.fill_broker()
        broker = it.start_broker()
        mine = ["--policy", it.policy, "--service-key-file", key]
        service = it.start_inference(broker.url, "--knowledge-index", tree)
        command("knowledge", "add", service.url, document, "--collection", "clinic", *mine)
        service.stop()
        shutil.copytree(tree, tmp_path / "old")
        service = it.start_inference(broker.url, "--knowledge-index", tree, log="second.log")
        command("knowledge", "remove", service.url, "lungs.md", "--collection", "clinic", *mine)
        service.stop()
        shutil.rmtree(tree)
        shutil.copytree(tmp_path / "old", tree)
        with pytest.raises(CommandFailedError, match="is version 3, and version 4 was recorded") as refused:
            it.start_inference(broker.url, "--knowledge-index", tree, log="third.log")
        assert refused.value.code == 3


def test_an_operator_who_adds_a_user_is_another_workload_to_every_client(site: Site) -> None:
    rules = site.host / "edited.json"
    shutil.copy(site.host / "rules.json", rules)
    command("knowledge", "grant", rules, "mallory", "--key-file", site.key("mallory"), "--write", "board")
    service = site.start(rules=rules, log="edited.log", index=site.root / "edited.tree")
    try:
        refused = site.run(
            "alice", "knowledge", "add", service.url, site.root / "sale.md", "--collection", "board"
        )
        assert refused.returncode in (3, 5)
        assert len(refused.stderr.strip().splitlines()) <= 2
        with pytest.raises(cloister.CloisterError):
            cloister.connect(service.url, policy=site.policy)
    finally:
        service.stop()


def test_a_document_that_was_cut_off_on_its_way_goes_on_where_it_stopped(
    site: Site, service: Service
) -> None:
    long = "# Long\n\n" + "\n\n".join(
        f"Paragraph {number} is about the number {number}." for number in range(60)
    )
    content = (long + " " * (2 << 20)).encode()
    document = site.root / "long.md"
    document.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    key = {"authorization": f"Bearer {site.key('carol').read_text().strip()}"}
    with cloister.connect(service.url, policy=site.policy) as client:
        path = f"/v1/knowledge/uploads/{digest}"
        part = {"content-type": "application/octet-stream", **key}
        assert client.put(f"{path}/0", content=content[: 2 << 20], headers=part).json() == {"kept": 2 << 20}
        sent: list[str] = []
        client.event_hooks["request"] = [lambda request: sent.append(f"{request.method} {request.url.path}")]
        added = Documents(client, key).add("clinic", "long.md", document)
        assert (added.what, added.passages > 1) == ("added", True)
        assert [one for one in sent if one.startswith("PUT /v1/knowledge/uploads")] == [f"PUT {path}/1"]
        sent.clear()
        assert Documents(client, key).add("clinic", "long.md", document).what == "unchanged"
        assert not any("uploads" in one and one.startswith("PUT") for one in sent)


def test_what_is_asked_in_the_clear_is_refused(site: Site, service: Service) -> None:
    key = {"authorization": f"Bearer {site.key('alice').read_text().strip()}"}
    answer = httpx2.get(f"{service.url}/v1/knowledge/collections", headers=key)
    assert answer.status_code == 403
    assert "board" not in answer.text
