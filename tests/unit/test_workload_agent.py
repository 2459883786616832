"""The launcher's key agent gives the keys that were measured, to the program's user, over a socket, and no others."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import KeyUnavailable, UsageError
from cloister.workload.agent import (
    MAX_LINE,
    AccessFile,
    AgentKeys,
    KeyAgent,
    access_from_environment,
    write_access_file,
)

URI = "kbs:///default/key/demo"
KEK = bytes(range(32))


class Keys:
    """A key source that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def key(self, uri: str) -> bytes:
        self.asked.append(uri)
        if uri.endswith("lost"):
            raise KeyUnavailable("no such key")
        return KEK


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def agent(tmp_path: Path, keys: Keys) -> Iterator[Path]:
    path = tmp_path / "keys.socket"
    served = KeyAgent(path, keys, [URI, "kbs:///default/key/lost"], user=os.getuid())
    yield path
    served.close()


def test_a_key_that_the_configuration_names_is_given(agent: Path) -> None:
    assert AgentKeys(agent).key(URI) == KEK


def test_a_key_that_it_does_not_name_is_refused_without_asking_the_broker(agent: Path, keys: Keys) -> None:
    with pytest.raises(KeyUnavailable, match="does not name that key"):
        AgentKeys(agent).key("kbs:///default/key/other")
    assert keys.asked == []


def test_what_the_broker_refuses_reaches_the_program_as_a_refusal(agent: Path) -> None:
    with pytest.raises(KeyUnavailable, match="no such key"):
        AgentKeys(agent).key("kbs:///default/key/lost")


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"\n", id="nothing"),
        pytest.param(b'{"key": 1}\n', id="a number"),
        pytest.param(b'{"key": "kbs:///default/key/demo", "more": 1}\n', id="a field too many"),
        pytest.param(b"\xff\xfe\n", id="no text"),
    ],
)
def test_a_request_that_is_none_gets_no_key(agent: Path, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(agent))
        connection.sendall(line)
        answer = connection.recv(MAX_LINE)
    assert b'"key":""' in answer


def test_an_endless_line_ends_the_conversation_within_its_bound(agent: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(agent))
        connection.sendall(b"x" * (3 * MAX_LINE))
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    assert answer.count(b"\n") <= 4
    assert b'"key":""' in answer


def test_many_ask_at_once(agent: Path) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(AgentKeys(agent).key(URI))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [KEK] * 20


def test_only_the_program_s_user_finds_the_socket_open(agent: Path) -> None:
    assert agent.stat().st_mode & 0o777 == 0o600


def test_a_launcher_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(KeyUnavailable, match="does not answer"):
        AgentKeys(tmp_path / "nowhere").key(URI)


def test_the_access_of_a_program_comes_from_the_file_that_the_environment_names(
    agent: Path, tmp_path: Path
) -> None:
    path = tmp_path / "access.json"
    write_access_file(
        path, AccessFile(socket=str(agent), signers=("11" * 32,), output_key=URI, signing_key=URI)
    )
    access = access_from_environment({"CLOISTER_RUN": str(path)}.get)
    assert access.keys.key(URI) == KEK
    assert access.signers == {b"\x11" * 32}
    assert access.output_key == URI
    assert access.signing_key is not None
    assert KEK.hex() not in repr(access)


def test_a_process_that_nobody_launched_has_no_access(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cloister run"):
        access_from_environment({}.get)
    (tmp_path / "access.json").write_text("{}")
    with pytest.raises(UsageError, match="does not name a file"):
        access_from_environment({"CLOISTER_RUN": str(tmp_path / "access.json")}.get)
