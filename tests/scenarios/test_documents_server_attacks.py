"""Named attacks on a server that keeps documents, and on the way to it: it is who the rules name, or is told nothing."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import mesh_parts as mesh
from cloister.broker.mesh_request import dns_name
from cloister.errors import KnowledgeError, NetworkError, UsageError
from cloister.knowledge.passages import Passage
from cloister.knowledge.pgvector import store as store_module
from cloister.knowledge.pgvector import tables
from cloister.knowledge.pgvector.link import Link, reached
from cloister.knowledge.pgvector.store import PgvectorStore
from knowledge_parts import SIZE, document, put, texts, vectors
from mesh_parts import APPLICATION, Member
from pgvector import SERVER, Front, fresh, fronted, pgvector_server, place
from ports import free_port
from postgres import Postgres, postgres_server

CANARY = "Zugzwangquark"
OWN = mesh.member("assistant", version=2)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with pgvector_server() as running:
        yield running


@pytest.fixture(scope="module")
def front(server: Postgres) -> Iterator[Front]:
    with fronted(server, mesh.member(SERVER, version=2).server()) as one:
        yield one


def opened(front: Front, database: str, *, model: str = "mini", own: Member = OWN) -> PgvectorStore:
    return PgvectorStore.open(place(front, database, own), model=model, dimensions=SIZE)


def self_made() -> ssl.SSLContext:
    """Of an attacker's own mesh, which has the same names."""
    other = mesh.member(SERVER, application="elsewhere")
    return other.server()


IMPOSTORS: dict[str, Callable[[], ssl.SSLContext]] = {
    "another workload of the mesh": lambda: mesh.member("scorer", version=2).server(),
    "the same workload of a manifest that was replaced": lambda: mesh.member(SERVER, version=1).server(),
    "a workload of another application": self_made,
    "one whose certificate is over": lambda: mesh.member(
        SERVER, version=2, now=mesh.NOW - 7200, lifetime=3600
    ).server(),
}


@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_an_impostor_is_told_nothing(server: Postgres, impostor: str) -> None:
    with fronted(server, IMPOSTORS[impostor]()) as front, pytest.raises(NetworkError) as refused:
        opened(front, fresh(server))
    assert "does not answer" in str(refused.value)


def test_a_server_that_speaks_no_tls_is_told_nothing() -> None:
    told = bytearray()
    with listening(lambda line: told.extend(answered(line, b"N"))) as port:
        link = Link(place(port, "documents", OWN))
        with pytest.raises(NetworkError, match="speaks no TLS"):
            reached(link)
    assert bytes(told) == b"\0\0\0\x08\x04\xd2\x16\x2f"  # it was asked for TLS, and that was all


def answered(line: socket.socket, answer: bytes) -> bytes:
    told = line.recv(8)
    line.sendall(answer)
    line.settimeout(2)
    with contextlib.suppress(OSError):
        told += line.recv(4096)
    return told


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as line:
                serve(line)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def test_whoever_shows_no_certificate_of_the_manifest_in_force_reaches_no_server(
    front: Front, server: Postgres
) -> None:
    name = fresh(server)
    with pytest.raises(NetworkError):
        opened(front, name, own=mesh.member("assistant", version=1))
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(NetworkError):
        PgvectorStore.open(place(front, name, lambda: anybody), model="mini", dimensions=SIZE)


def test_a_line_that_is_cut_costs_one_question_at_most_and_loses_nothing(
    front: Front, server: Postgres
) -> None:
    store = opened(front, fresh(server))
    put(store, "Asthma.", name="a.md")
    front.cut()
    assert texts(store, store.by_words("asthma", ["clinic"], 5)) == ["Asthma."]
    server.stop()  # as a crash
    with pytest.raises(KnowledgeError, match="does not answer"):
        put(store, "Thirst.", name="b.md", seed=1)
    server.start()
    put(store, "Thirst.", name="b.md", seed=1)
    assert [one.name for one in store.documents(["clinic"])] == ["a.md", "b.md"]
    store.close()


def test_what_is_cut_in_the_middle_of_a_change_is_not_there(front: Front, server: Postgres) -> None:
    store = opened(front, fresh(server))
    put(store, "old words", seed=1)
    many = 2000
    timer = threading.Timer(0.3, front.cut)
    timer.start()
    with contextlib.suppress(KnowledgeError):
        more = [Passage(f"fresh {CANARY} words {number}") for number in range(many)]
        store.add(document(digest=b"n" * 32, passages=many), more, vectors(many))
    timer.join()
    (held,) = store.documents(["clinic"])
    found = texts(store, store.by_words("words", ["clinic"], 1000))
    assert found == ["old words"] if held.passages == 1 else len(found) == 1000
    store.close()


def test_what_a_server_says_of_an_error_is_not_repeated(front: Front, server: Postgres) -> None:
    name = fresh(server)
    store = opened(front, name)
    with server.connect(name) as behind:
        behind.execute("ALTER TABLE cloister.documents ADD CHECK (title <> 'Title of bad.md')")
    with pytest.raises(KnowledgeError) as refused:
        store.add(document("bad.md"), [Passage(CANARY)], vectors(1))
    assert "SQLSTATE 23514" in str(refused.value)
    assert "bad.md" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    assert store.documents(["clinic"]) == []
    store.close()


def test_vectors_of_another_model_are_not_mixed_in(front: Front, server: Postgres) -> None:
    name = fresh(server)
    opened(front, name).close()
    with pytest.raises(UsageError, match="was made with the model"):
        opened(front, name, model="another")
    with pytest.raises(UsageError, match="was made with the dimensions"):
        PgvectorStore.open(place(front, name, OWN), model="mini", dimensions=SIZE * 2)


def test_services_that_share_a_database_do_not_mix_their_changes(front: Front, server: Postgres) -> None:
    name = fresh(server)
    stores = [opened(front, name) for _ in range(3)]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(6):
                # All write one document, and one of their own whose collection comes and goes.
                common = document(digest=bytes([number, turn]) * 16, passages=2)
                stores[number].add(common, [Passage(f"by {number}")] * 2, vectors(2, turn))
                put(stores[number], "here", name="own.md", collection="shared", seed=turn)
                stores[number].by_words("here by", ["clinic", "shared"], 10)
                stores[number].remove("shared", "own.md")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [error for error in errors if not isinstance(error, AssertionError)] == []
    (held,) = stores[0].documents(["clinic", "shared"])
    assert held.passages == len(stores[1].by_words("by", ["clinic"], 10)) == 2
    with server.connect(name) as behind:
        counted = behind.execute("SELECT passages, tokens > 0 FROM cloister.collections").fetchall()
    assert counted == [(2, True)]
    for store in stores:
        store.close()


def test_a_document_that_goes_while_it_is_asked_for_is_no_error(
    front: Front, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = fresh(server)
    store, other = opened(front, name), opened(front, name)
    put(store, *["asthma"] * 50, name="many.md")
    put(store, "asthma", name="one.md", seed=1)
    scored = store_module._scored

    def meanwhile(*given: Any) -> Any:
        other.remove("clinic", "many.md")
        return scored(*given)

    monkeypatch.setattr(store_module, "_scored", meanwhile)
    assert len(store.by_words("asthma", ["clinic"], 100)) == 1
    for one in (store, other):
        one.close()


def test_a_long_document_holds_up_no_question(front: Front, server: Postgres) -> None:
    name = fresh(server)
    store = opened(front, name)
    put(store, "asthma", name="one.md")
    with server.connect(name) as behind, behind.transaction():
        behind.execute("SELECT pg_advisory_xact_lock(%s)", [tables._CHANGES])  # somebody is in a long change
        adding = threading.Thread(target=put, args=(store, "later"), kwargs={"name": "two.md", "seed": 2})
        adding.start()
        server.until_locked_out(name)
        assert len(store.by_words("asthma", ["clinic"], 5)) == 1
    adding.join(20)
    assert len(store.documents(["clinic"])) == 2
    store.close()


def test_a_store_that_was_left_is_not_entered_again(front: Front, server: Postgres) -> None:
    store = opened(front, fresh(server))
    store.close()
    with pytest.raises(KnowledgeError, match="was left"):
        store.documents(["clinic"])


def test_a_turn_that_does_not_come_is_an_error_in_time(front: Front, server: Postgres) -> None:
    link = Link(place(front, fresh(server), OWN), patience=0.2)
    with link.turn(), pytest.raises(KnowledgeError, match="busy"), link.turn():
        raise AssertionError("there is one connection")
    link.close()


def test_another_certificate_is_another_connection(front: Front, server: Postgres) -> None:
    contexts = [OWN.client(), OWN.client()]
    used = contexts[:1] * 2 + contexts[1:] * 2
    link = Link(place(front, fresh(server), iter(used).__next__))
    seen = []
    for _ in used:
        with link.turn() as run:
            seen.append(run("SELECT pg_backend_pid()")[0][0])
    link.close()
    assert seen[0] == seen[1] != seen[2] == seen[3]


@pytest.mark.parametrize("answer", [b"\xff", b"S", b"X" * 64, b"E\0\0\0\x04"])
def test_an_answer_that_is_none_is_an_error_of_the_line(answer: bytes) -> None:
    with (
        listening(lambda line: answered(line, answer)) as port,
        pytest.raises(NetworkError, match="does not answer"),
    ):
        reached(Link(place(port, "documents", OWN)))


def test_what_is_removed_is_in_no_table(front: Front, server: Postgres) -> None:
    name = fresh(server)
    store = opened(front, name)
    put(store, f"{CANARY} was here", name="a.md")
    put(store, "stays", name="b.md", seed=3)
    assert store.remove("clinic", "a.md")
    with server.connect(name) as behind:
        tables = behind.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'cloister'").fetchall()
        held = [
            str(behind.execute(f'SELECT * FROM cloister."{table}"').fetchall())  # type: ignore[call-overload]  # noqa: S608
            for (table,) in tables
        ]
    assert len(held) >= 5
    assert CANARY.lower()[:8] not in " ".join(held).lower()
    store.close()


# The same over PostgreSQL's own TLS, with the files that `cloister run` gives a program.


def pem(*certificates: bytes) -> bytes:
    return b"".join(x509.load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in certificates)


@pytest.fixture(scope="module")
def tls_server() -> Iterator[Postgres]:
    own = mesh.member(SERVER, version=2)
    with postgres_server() as running:
        files = {
            "certificate.pem": pem(*own.chain),
            "key.pem": own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "ca-with-root.pem": pem(*own.bundle.intermediates, own.bundle.root),
            "pg_hba.conf": b"local all all trust\nhostssl documents all 127.0.0.1/32 cert\n",
        }
        for name, content in files.items():
            running.write(name, content)
        running.listen(
            free_port(), ssl="on", ssl_cert_file="certificate.pem", ssl_key_file="key.pem",
            ssl_ca_file="ca-with-root.pem", ssl_min_protocol_version="TLSv1.3",
        )  # fmt: skip
        with running.connect("postgres") as behind:
            behind.execute("CREATE ROLE assistant LOGIN")
            behind.execute("CREATE DATABASE documents OWNER assistant")
        yield running


def test_postgresql_s_own_tls_lets_in_the_workload_that_its_certificate_names(tls_server: Postgres) -> None:
    where = place(tls_server.port, "documents", OWN, user="assistant")
    link = Link(where)
    with link.turn() as run:
        assert run("SELECT current_user, ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [
            ["assistant", True, "TLSv1.3"]
        ]
    link.close()
    for changes, own in (
        ({"user": "assistant"}, mesh.member("scorer", version=2)),
        ({"user": "cloister"}, OWN),
    ):
        other = Link(place(tls_server.port, "documents", own, **changes))
        with pytest.raises(KnowledgeError, match="does not let this workload in"):
            reached(other)
    impostor = Link(
        place(tls_server.port, "documents", OWN, user="assistant", name=dns_name("other", APPLICATION))
    )
    with pytest.raises(NetworkError, match="not the workload that the rules name"):
        reached(impostor)


def test_a_server_without_pgvector_says_what_is_missing(tls_server: Postgres) -> None:
    where = place(tls_server.port, "documents", OWN, user="assistant")
    with pytest.raises(KnowledgeError, match="no pgvector"):
        PgvectorStore.open(where, model="mini", dimensions=SIZE)
