"""The key store in a token, with a real SoftHSM2."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pkcs11
import pytest

from cloister.broker.keystores import Keystore, pkcs11_token
from cloister.broker.keystores.pkcs11 import Pkcs11Keystore
from cloister.broker.keystores.pkcs11_token import write
from cloister.broker.keystores.records import CLAIM_ENDS, CLAIM_SECONDS, VersionRecord, claimed, made
from cloister.errors import KeystoreError, KeystoreUnavailable
from keystore_contract import AAD, NOW, OWNER, SECRET, KeystoreContract, is_one_line, refuses
from real_parts import absent
from spec_vectors import spec_vectors

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = b"739184-canary"
SO_PIN = "so-902138"


def require_softhsm() -> None:
    """Skip where SoftHSM2 is not installed; with ``CI=true`` that is a failure."""
    if MODULE.exists() and shutil.which("softhsm2-util") is not None:
        return
    reason = "SoftHSM2 not found: install softhsm2"
    absent(reason)


require_softhsm()


@dataclass(frozen=True)
class SoftToken:
    """A directory of tokens. ``unplug`` and ``plug`` move it away and back."""

    directory: Path
    label: str

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SOFTHSM2_CONF": str(self.directory / "softhsm2.conf")}

    def initialize(self, label: str, pin: bytes = PIN) -> None:
        """Make a token. softhsm2-util takes PINs as arguments only; these open nothing else."""
        subprocess.run(
            [
                "softhsm2-util",
                "--init-token",
                "--free",
                "--label",
                label,
                "--so-pin",
                SO_PIN,
                "--pin",
                pin.decode(),
            ],
            env=self.environment,
            check=True,
            capture_output=True,
            timeout=60,
        )

    def open(self, pin: bytes = PIN, label: str = "") -> Pkcs11Keystore:
        return Pkcs11Keystore(MODULE, label or self.label, pin)

    def unplug(self) -> None:
        (self.directory / "tokens").rename(self.directory / "away")

    def plug(self) -> None:
        (self.directory / "away").rename(self.directory / "tokens")

    def python(self, code: str, *, stdin: bytes = PIN) -> subprocess.Popen[bytes]:
        """Another process with ``store`` at hand; the PIN goes in by its standard input."""
        head = (
            "import sys; from pathlib import Path\n"
            "from cloister.broker.keystores.pkcs11 import Pkcs11Keystore\n"
            f"store = Pkcs11Keystore(Path({str(MODULE)!r}), {self.label!r}, sys.stdin.buffer.readline().strip())\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", head + code],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(stdin + b"\n")
        process.stdin.flush()
        return process


@pytest.fixture
def soft_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftToken]:
    token = SoftToken(tmp_path, f"t{secrets.token_hex(4)}")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(
        f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    token.initialize(token.label)
    pkcs11.lib(
        str(MODULE)
    ).finalize()  # SoftHSM reads its configuration when it starts, maybe for an earlier test
    yield token
    pkcs11.lib(str(MODULE)).finalize()


class TestContract(KeystoreContract):
    @pytest.fixture
    def open_store(self, soft_token: SoftToken) -> Callable[[], Keystore]:
        return soft_token.open


def test_a_key_cannot_leave_the_token(soft_token: SoftToken) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    store.close()
    token = next(iter(pkcs11.lib(str(MODULE)).get_tokens(token_label=soft_token.label)))
    with token.open(user_pin=PIN.decode()) as session:
        (key,) = session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY})
        assert key[pkcs11.Attribute.LABEL] == "cloister/k/1"
        assert key[pkcs11.Attribute.VALUE_LEN] == 32
        for name in (
            "SENSITIVE",
            "ALWAYS_SENSITIVE",
            "NEVER_EXTRACTABLE",
            "LOCAL",
            "PRIVATE",
            "ENCRYPT",
            "DECRYPT",
        ):
            assert key[pkcs11.Attribute[name]] is True, name
        for name in ("EXTRACTABLE", "WRAP", "UNWRAP", "SIGN", "DERIVE", "MODIFIABLE"):
            assert key[pkcs11.Attribute[name]] is False, name
        with pytest.raises(pkcs11.AttributeSensitive):
            key[pkcs11.Attribute.VALUE]


def test_a_destroyed_key_is_gone_from_the_token(soft_token: SoftToken) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    store.destroy("k", 1)
    store.close()
    token = next(iter(pkcs11.lib(str(MODULE)).get_tokens(token_label=soft_token.label)))
    with token.open(user_pin=PIN.decode()) as session:
        assert list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY})) == []


def test_the_wrap_of_the_page_opens_under_its_key(soft_token: SoftToken) -> None:
    vectors = spec_vectors("keystores.md")
    store = soft_token.open()
    with pytest.raises(KeystoreError):
        store.describe(vectors["key_id"])  # leaves the mark
    store.close()
    token = next(iter(pkcs11.lib(str(MODULE)).get_tokens(token_label=soft_token.label)))
    attribute = pkcs11.Attribute
    with token.open(rw=True, user_pin=PIN.decode()) as session:
        session.create_object(
            {
                attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,
                attribute.KEY_TYPE: pkcs11.KeyType.AES,
                attribute.TOKEN: True,
                attribute.ID: bytes(range(16)),
                attribute.LABEL: "cloister/models/1",
                attribute.VALUE: bytes.fromhex(vectors["key"]),
                attribute.DECRYPT: True,
            }
        )
        session.create_object(
            {
                attribute.CLASS: pkcs11.ObjectClass.DATA,
                attribute.TOKEN: True,
                attribute.PRIVATE: True,
                attribute.APPLICATION: "cloister",
                attribute.LABEL: f"cloister/{vectors['key_id']}",
                attribute.VALUE: vectors["record"].encode(),
            }
        )
    wrapped = bytes.fromhex(vectors["pkcs11"]["wrapped"])
    opened = store.unwrap(vectors["key_id"], wrapped, bytes.fromhex(vectors["aad"]))
    assert opened.hex() == vectors["plaintext"]


def test_what_one_process_did_another_sees(soft_token: SoftToken) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    lost = store.wrap("k", SECRET, AAD)
    store.rotate("k", now=NOW + 1)
    kept = store.wrap("k", SECRET, AAD)
    store.destroy("k", 1)
    code = f"""
from cloister.errors import KeystoreError
try:
    store.unwrap("k", bytes.fromhex("{lost.hex()}"), bytes.fromhex("{AAD.hex()}"))
except KeystoreError as error:
    print(error)
print(store.unwrap("k", bytes.fromhex("{kept.hex()}"), bytes.fromhex("{AAD.hex()}")).hex())
print([(one.version, one.state, one.owner, one.created) for one in store.describe("k")])
"""
    out, err = soft_token.python(code).communicate(timeout=60)
    refusal, secret, versions = out.decode().splitlines()
    assert "version 1 of the key k was destroyed" in refusal, err
    assert bytes.fromhex(secret) == SECRET
    assert versions == str([(1, "destroyed", OWNER, NOW), (2, "active", OWNER, NOW + 1)])


def test_a_wrong_pin_is_one_clear_line_without_it_and_is_tried_once(
    soft_token: SoftToken, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = b"wrong-pin-5550123"
    store = soft_token.open(wrong)
    for _ in range(20):
        with pytest.raises(KeystoreError) as refusal:
            store.describe("k")
        assert not isinstance(refusal.value, KeystoreUnavailable)
        assert "PIN" in str(refusal.value)
        assert soft_token.label in str(refusal.value)
        is_one_line(refusal.value, wrong)
        assert (
            wrong.decode()
            not in f"{refusal.value!r}{refusal.value.__context__!r}{store!r}{vars(refusal.value)}"
        )
    assert wrong.decode() not in caplog.text
    # Were it tried once more, it would be right by now.
    token = next(iter(pkcs11.lib(str(MODULE)).get_tokens(token_label=soft_token.label)))
    with token.open(rw=True, user_pin=PIN.decode()) as session:
        session.set_pin(PIN.decode(), wrong.decode())
    with pytest.raises(KeystoreError, match="refused the PIN"):
        store.describe("k")
    assert soft_token.open(wrong).generate("k", owner=OWNER, now=NOW).version == 1


def test_a_pin_is_never_in_a_repr(soft_token: SoftToken) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    assert PIN.decode() not in repr(store)
    assert SECRET.hex() not in repr(store)


def test_a_pin_that_is_no_text_is_refused_without_it() -> None:
    with pytest.raises(KeystoreError) as refusal:
        Pkcs11Keystore(MODULE, "t", b"\xff\xfe-pin")
    assert refusal.value.__context__ is None
    assert "fe" not in repr(refusal.value.__cause__)


def test_a_token_of_another_name_does_not_answer(soft_token: SoftToken) -> None:
    with pytest.raises(KeystoreUnavailable, match="no token elsewhere"):
        soft_token.open(label="elsewhere").describe("k")


def test_another_token_with_the_same_pin_has_other_keys(soft_token: SoftToken) -> None:
    soft_token.initialize("other")
    store, other = soft_token.open(), soft_token.open(label="other")
    store.generate("k", owner=OWNER, now=NOW)
    wrapped = store.wrap("k", SECRET, AAD)
    refuses(other, "k", wrapped)
    other.generate("k", owner="bob", now=NOW)
    refuses(other, "k", wrapped)
    assert [one.owner for one in store.describe("k")] == [OWNER]
    assert store.unwrap("k", wrapped, AAD) == SECRET


def test_two_tokens_of_one_name_are_refused(soft_token: SoftToken) -> None:
    soft_token.initialize(soft_token.label)
    with pytest.raises(KeystoreError, match="2 tokens are called"):
        soft_token.open().describe("k")


@pytest.mark.parametrize("module", ["/nonexistent/module.so", "/bin/true"])
def test_what_is_no_module_is_refused(module: str) -> None:
    with pytest.raises(KeystoreError, match="does not load as a PKCS#11 module"):
        Pkcs11Keystore(Path(module), "t", PIN).describe("k")


def test_a_token_pulled_out_in_the_middle_loses_nothing(soft_token: SoftToken) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    wrapped: list[bytes] = []
    failures = 0
    for number in range(20):
        if number == 7:
            soft_token.unplug()
        if number == 14:
            soft_token.plug()
        try:
            wrapped.append(store.wrap("k", SECRET, AAD))
        except KeystoreUnavailable as error:
            is_one_line(error, PIN)
            failures += 1
    assert (len(wrapped), failures) == (13, 7)
    assert all(store.unwrap("k", one, AAD) == SECRET for one in wrapped)
    assert [one.state for one in store.describe("k")] == ["active"]


@pytest.mark.parametrize("at", ["generate", "rotate", "wrap", "unwrap", "describe", "destroy"])
def test_a_token_that_is_gone_is_never_taken_for_an_empty_one(soft_token: SoftToken, at: str) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    wrapped = store.wrap("k", SECRET, AAD)
    before = store.describe("k")
    calls: dict[str, Callable[[], object]] = {
        "generate": lambda: store.generate("k", owner="eve", now=NOW),
        "rotate": lambda: store.rotate("k", now=NOW),
        "wrap": lambda: store.wrap("k", SECRET, AAD),
        "unwrap": lambda: store.unwrap("k", wrapped, AAD),
        "describe": lambda: store.describe("k"),
        "destroy": lambda: store.destroy("k", 1),
    }
    soft_token.unplug()
    for _ in range(2):
        with pytest.raises(KeystoreUnavailable) as gone:
            calls[at]()
        is_one_line(gone.value, PIN)
    soft_token.plug()
    assert store.describe("k") == before
    assert store.unwrap("k", wrapped, AAD) == SECRET
    with pytest.raises(KeystoreError, match="already"):
        store.generate("k", owner="eve", now=NOW)


def test_stores_over_one_module_outlive_a_new_start_by_one_of_them(soft_token: SoftToken) -> None:
    soft_token.initialize("other")
    store, other = soft_token.open(), soft_token.open(label="other")
    store.generate("k", owner=OWNER, now=NOW)
    wrapped = store.wrap("k", SECRET, AAD)
    with pytest.raises(KeystoreUnavailable):
        soft_token.open(label="none").describe("k")  # starts the module anew, in vain
    other.generate("k", owner="bob", now=NOW)
    assert store.unwrap("k", wrapped, AAD) == SECRET
    assert [one.owner for one in other.describe("k")] == ["bob"]
    other.close()
    assert store.unwrap("k", wrapped, AAD) == SECRET


def test_threads_survive_a_token_that_comes_and_goes(soft_token: SoftToken) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    done = threading.Event()

    def work(_: int) -> list[bytes]:
        wrapped: list[bytes] = []
        while not done.is_set():
            try:
                wrapped.append(store.wrap("k", SECRET, AAD))
            except KeystoreUnavailable as error:
                is_one_line(error, PIN)
            done.wait(0.001)
        return wrapped

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, number) for number in range(4)]
        for _ in range(5):
            done.wait(0.05)
            soft_token.unplug()
            done.wait(0.05)
            soft_token.plug()
        done.set()
        wrapped = [one for work in working for one in work.result()]
    assert wrapped
    assert {store.unwrap("k", one, AAD) for one in wrapped} == {SECRET}
    assert [one.version for one in store.describe("k")] == [1]


def test_a_process_killed_in_the_middle_of_rotations_leaves_a_usable_key(soft_token: SoftToken) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    wrapped = store.wrap("k", SECRET, AAD)
    for attempt in range(3):
        now = NOW + attempt * CLAIM_ENDS  # so what the one before was killed in is over
        code = f'print("go", flush=True)\nwhile True:\n    store.rotate("k", now={now})\n    print("r", flush=True)'
        with ended(soft_token.python(code)) as process:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(3)] == [b"go\n", b"r\n", b"r\n"]
            stop_between_logins(process, soft_token)
        versions = store.describe("k")
        assert [one.version for one in versions] == list(range(1, len(versions) + 1))
        assert [one.state for one in versions] == ["retired"] * (len(versions) - 1) + ["active"]
        assert store.unwrap("k", store.wrap("k", SECRET, AAD), AAD) == SECRET
    assert store.unwrap("k", wrapped, AAD) == SECRET


def stop_between_logins(process: subprocess.Popen[bytes], soft_token: SoftToken) -> None:
    """SoftHSM empties the token's file at each login and writes it anew: who is killed there leaves no token."""
    (file,) = soft_token.directory.glob("tokens/*/token.object")
    for _ in range(1000):
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        if file.stat().st_size:
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    raise AssertionError("the token's file is always empty")


def keys_in(soft_token: SoftToken) -> int:
    token = next(iter(pkcs11.lib(str(MODULE)).get_tokens(token_label=soft_token.label)))
    with token.open() as session:  # logged in is the process
        return len(list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY})))


def claims_of(store: Pkcs11Keystore) -> list[VersionRecord]:
    return [one for one in store._records("k", certain=True) if one.state == "claimed"]


class StagedKeystore(Pkcs11Keystore):
    """``stage`` happens once, right after a record of that state was written."""

    state = "claimed"
    time = 0.0

    def __init__(self, token: SoftToken) -> None:
        super().__init__(MODULE, token.label, PIN, clock=lambda: self.time)
        self.stage: Callable[[], None] | None = None

    def _write(self, record: VersionRecord, *, may: Callable[[], None] = lambda: None) -> None:
        super()._write(record, may=may)
        if self.stage is not None and record.state == self.state:
            stage, self.stage = self.stage, None
            stage()


def test_a_version_that_another_broker_wrapped_under_is_never_taken_back(soft_token: SoftToken) -> None:
    store, other, third = StagedKeystore(soft_token), StagedKeystore(soft_token), soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    wrapped: list[bytes] = []

    def between() -> None:
        # A rival that read before the claim was there, and writes its own before the other one looks.
        name = other._create("k", 2)
        wrapped.append(third.wrap("k", SECRET, AAD))
        with pytest.raises(KeystoreUnavailable, match="at the latest in 10 minutes"):
            third.rotate("k", now=NOW)
        other._write(claimed("k", 2, OWNER, NOW, name))

    store.stage = between
    with pytest.raises(KeystoreUnavailable, match="at the same moment") as refusal:
        store.rotate("k", now=NOW)
    is_one_line(refusal.value, PIN)
    (rival,) = claims_of(store)
    assert other._read_alone("k", rival)[-1].number == 1  # it is alone now, and goes on
    other._write(made("k", 2, OWNER, NOW, rival.object))
    other._remove(rival)
    wrapped.append(third.wrap("k", SECRET, AAD))
    assert wrapped[1][:4] == (2).to_bytes(4, "big")
    assert soft_token.open().rotate("k", now=NOW).version == 3
    assert {soft_token.open().unwrap("k", one, AAD) for one in wrapped} == {SECRET}
    assert not claims_of(store)
    assert keys_in(soft_token) == 3


def test_the_claim_of_a_broker_that_crashed_stands_in_the_way_for_ten_minutes_and_is_then_cleared(
    soft_token: SoftToken,
) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    wrapped = store.wrap("k", SECRET, AAD)
    store._write(claimed("k", 2, OWNER, NOW, store._create("k", 2)))
    (version,) = store._read("k")
    store._write(claimed("k", 1, OWNER, NOW, version.handle))  # crashed after it made this one: its key stays
    with pytest.raises(KeystoreUnavailable, match="at the latest in 10 minutes"):
        soft_token.open().rotate("k", now=NOW + CLAIM_ENDS - 1)
    assert store.wrap("k", SECRET, AAD)[:4] == (1).to_bytes(4, "big")
    assert soft_token.open().rotate("k", now=NOW + CLAIM_ENDS).version == 2
    assert not claims_of(store)
    assert keys_in(soft_token) == 2
    assert store.unwrap("k", wrapped, AAD) == SECRET


def test_a_broker_that_is_too_slow_takes_its_claim_back(soft_token: SoftToken) -> None:
    store = StagedKeystore(soft_token)
    store.generate("k", owner=OWNER, now=NOW)
    store.stage = lambda: setattr(store, "time", CLAIM_SECONDS + 1.0)
    with pytest.raises(KeystoreUnavailable, match="took too long"):
        store.rotate("k", now=NOW)
    assert not claims_of(store)
    assert keys_in(soft_token) == 1
    assert store.rotate("k", now=NOW).version == 2


@pytest.mark.parametrize("state", ["claimed", "made", "destroyed"])
def test_a_token_pulled_out_after_a_record_is_gone_on_with(soft_token: SoftToken, state: str) -> None:
    store = StagedKeystore(soft_token)
    store.generate("k", owner=OWNER, now=NOW)
    store.state, store.stage = state, soft_token.unplug
    if state == "destroyed":
        with pytest.raises(KeystoreUnavailable):  # a key that is not found there is not said to be destroyed
            store.destroy("k", 1)
    elif state == "claimed":
        with pytest.raises(KeystoreUnavailable):
            store.rotate("k", now=NOW)
    else:
        assert store.rotate("k", now=NOW).version == 2
    soft_token.plug()
    if state == "claimed":
        assert store.rotate("k", now=NOW).version == 2
    elif state == "destroyed":
        store.destroy("k", 1)
    store.describe("k")
    assert keys_in(soft_token) == (0 if state == "destroyed" else 2)
    store.rotate("k", now=NOW + CLAIM_ENDS)
    assert not claims_of(store)


def test_processes_that_rotate_at_one_moment_never_share_a_number(soft_token: SoftToken) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    store.describe("k")
    code = f"""
from cloister.errors import KeystoreUnavailable
store.describe("k")
print("ready", flush=True)
sys.stdin.buffer.readline()
for _ in range(30):
    try:
        store.rotate("k", now={NOW})
    except KeystoreUnavailable as error:
        print(error)
"""
    with contextlib.ExitStack() as ends:
        processes = [ends.enter_context(ended(soft_token.python(code))) for _ in range(2)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        wrapped = []
        while any(process.poll() is None for process in processes):
            with contextlib.suppress(KeystoreUnavailable):
                wrapped.append(store.wrap("k", SECRET, AAD))
        for process in processes:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    assert len(claims_of(store)) <= len(
        processes
    )  # each takes its own back, but for what its last attempt left
    store.rotate("k", now=NOW + CLAIM_ENDS)
    assert not claims_of(store)
    versions = store.describe("k")
    assert [one.version for one in versions] == list(range(1, len(versions) + 1))
    assert len(versions) > 1
    assert {store.unwrap("k", one, AAD) for one in wrapped} == {SECRET}
    assert keys_in(soft_token) == len(versions)


def test_a_key_whose_making_was_not_answered_is_made_again_under_a_name_of_its_own(
    soft_token: SoftToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    names: list[bytes] = []

    def generate(session: pkcs11.Session, label: str, name: bytes) -> None:
        pkcs11_token.generate(session, label, name)
        names.append(name)
        if len(names) == 1:
            raise pkcs11_token.Lost("the answer")

    monkeypatch.setattr("cloister.broker.keystores.pkcs11.generate", generate)
    assert store.rotate("k", now=NOW).version == 2
    assert len(set(names)) == 2
    wrapped = store.wrap("k", SECRET, AAD)
    assert wrapped[:4] == (2).to_bytes(4, "big")
    assert store.unwrap("k", wrapped, AAD) == SECRET


def test_a_search_that_missed_a_record_is_not_believed(
    soft_token: SoftToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    store.rotate("k", now=NOW)
    store.describe("k")
    searches: list[int] = []

    def recorded(session: pkcs11.Session, key: str) -> list[VersionRecord]:
        found = pkcs11_token.recorded(session, key)
        searches.append(len(found))
        return [one for one in found if one.version != 1] if len(searches) == 1 else found

    monkeypatch.setattr("cloister.broker.keystores.pkcs11.recorded", recorded)
    assert [one.version for one in store.describe("k")] == [1, 2]
    assert len(searches) > 1


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """``process``, which nothing is left of, whatever goes wrong."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_a_claim_is_seen_that_the_module_takes_for_seen(soft_token: SoftToken) -> None:
    """SoftHSM, with a change of its own, takes one of another process for seen until there is a third."""
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    store.describe("k")
    theirs, ours = (claimed("k", 2, OWNER, NOW, number * 32) for number in "ab")
    code = f"""
from cloister.broker.keystores.records import claimed
store._write(claimed("k", 2, {OWNER!r}, {NOW}, {theirs.object!r}))
"""
    with ended(soft_token.python(code)) as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    store._write(ours)
    with pytest.raises(KeystoreUnavailable, match="at the same moment"):
        store._read_alone("k", ours)
    assert set(claims_of(store)) == {theirs, ours}


@pytest.mark.parametrize("search", ["first", "second"])
@pytest.mark.parametrize("counted", [True, False])
def test_a_claim_that_becomes_a_version_while_it_is_searched_for_is_not_lost(
    soft_token: SoftToken, monkeypatch: pytest.MonkeyPatch, search: str, counted: bool
) -> None:
    """A search looks at one object after the other: it may come too late for the claim and too early for the version."""
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    store.describe("k")
    (count,) = soft_token.directory.glob("tokens/*/generation")
    code = f"""
from cloister.broker.keystores.records import claimed, made
name = store._create("k", 2)
claim = claimed("k", 2, {OWNER!r}, {NOW}, name)
store._write(claim)
print("claimed", flush=True)
sys.stdin.buffer.readline()
store._write(made("k", 2, {OWNER!r}, {NOW}, name))
store._remove(claim)
"""
    searches: list[str] = []
    ours = claimed("k", 2, OWNER, NOW, "aa" * 16)

    with ended(soft_token.python(code)) as process:

        def recorded(session: pkcs11.Session, key: str) -> list[VersionRecord]:
            searches.append("second" if searches else "first")
            found = pkcs11_token.recorded(session, key)
            if searches[-1] != search:
                return found
            before = count.read_bytes()
            _, errors = process.communicate(b"go\n", timeout=60)
            assert process.returncode == 0, errors
            if (
                not counted
            ):  # SoftHSM reads and writes it under two locks: of two changes at once, one is lost
                count.write_bytes(before)
            return [one for one in found if one.state == "made" or one == ours]

        assert process.stdout is not None
        assert process.stdout.readline() == b"claimed\n"
        store._write(ours)
        monkeypatch.setattr("cloister.broker.keystores.pkcs11.recorded", recorded)
        if search == "first":
            assert store._read_alone("k", ours)[-1].number == 2
        else:
            with pytest.raises(KeystoreUnavailable, match="at the same moment"):
                store._read_alone("k", ours)
    assert searches == ["first", "second"]


def test_a_claim_that_became_a_version_out_of_sight_is_not_cleared_with_its_key(
    soft_token: SoftToken,
) -> None:
    store = soft_token.open()
    for key in ("k", "other"):
        store.generate(key, owner=OWNER, now=NOW)
    code = f"""
from cloister.broker.keystores.records import claimed, made
name = store._create("k", 2)
store._write(claimed("k", 2, {OWNER!r}, {NOW}, name))
print("claimed", flush=True)
sys.stdin.buffer.readline()
store._write(made("k", 2, {OWNER!r}, {NOW}, name))
"""
    with ended(soft_token.python(code)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"claimed\n"
        assert len(claims_of(store)) == 1
        _, errors = process.communicate(
            b"go\n", timeout=60
        )  # it makes the version, and crashes with its claim there
        assert process.returncode == 0, errors
    store._create("other", 99)  # a change of our own, by which the module takes theirs for seen
    assert store.rotate("k", now=NOW + CLAIM_ENDS, number=3).version == 3
    assert store.describe("k")[1].state == "retired"
    assert soft_token.open()._decrypt("k", store._read("k")[1], _wrapped_under(store, 2), AAD) == SECRET


def _wrapped_under(store: Pkcs11Keystore, number: int) -> bytes:
    return store._encrypt("k", store._read("k")[number - 1], SECRET, AAD)


def test_what_another_broker_made_is_seen_although_the_module_takes_it_for_seen(
    soft_token: SoftToken,
) -> None:
    store = soft_token.open()
    for key in ("k", "other"):
        store.generate(key, owner=OWNER, now=NOW)
    store.describe("k")
    with ended(soft_token.python(f'print(store.rotate("k", now={NOW}).version)')) as process:
        out, errors = process.communicate(timeout=60)
        assert out == b"2\n", errors
    store._create("other", 99)
    assert store.wrap("k", SECRET, AAD)[:4] == (2).to_bytes(4, "big")


@pytest.mark.parametrize("where", ["behind another call into the module", "before it read"])
def test_a_version_whose_broker_waited_too_long_is_not_made(soft_token: SoftToken, where: str) -> None:
    store = StagedKeystore(soft_token)
    store.generate("k", owner=OWNER, now=NOW)
    ask = store._ask

    def late(work: Callable[[object], object], *, anew: bool = False) -> object:
        if where == "before it read" or claims:
            store.time = CLAIM_SECONDS + 1.0
        return ask(work, anew=anew)

    claims: list[str] = []
    store.stage = lambda: claims.append("there")
    store._ask = late  # type: ignore[assignment]
    with pytest.raises(KeystoreUnavailable, match="took too long"):
        store.rotate("k", now=NOW)
    store._ask = ask  # type: ignore[method-assign]
    assert not claims_of(store)
    assert [one.version for one in store.describe("k")] == [1]


def test_a_record_never_leads_to_another_key(soft_token: SoftToken) -> None:
    store = soft_token.open()
    store.generate("victim", owner=OWNER, now=NOW)
    store.generate("forged", owner=OWNER, now=NOW)
    wrapped = store.wrap("victim", SECRET, AAD)
    (victim,) = store._read("victim")
    store._ask(lambda session: write(session, made("forged", 2, OWNER, NOW, victim.handle)))
    with pytest.raises(KeystoreError, match="0 keys for version 2"):
        store.unwrap("forged", (2).to_bytes(4, "big") + wrapped[4:], AAD)
    with pytest.raises(KeystoreError, match="0 keys for version 2"):
        store.wrap("forged", SECRET, AAD)
    store.destroy("forged", 2)
    assert store.unwrap("victim", wrapped, AAD) == SECRET


def test_a_destruction_that_a_crash_cut_short_is_refused_and_finished(soft_token: SoftToken) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    wrapped = store.wrap("k", SECRET, AAD)
    store.close()
    token = next(iter(pkcs11.lib(str(MODULE)).get_tokens(token_label=soft_token.label)))
    attribute, kind = pkcs11.Attribute, pkcs11.ObjectClass
    with token.open(rw=True, user_pin=PIN.decode()) as session:
        (record,) = session.get_objects({attribute.CLASS: kind.DATA, attribute.LABEL: "cloister/k"})
        session.create_object(
            {
                attribute.CLASS: kind.DATA,
                attribute.TOKEN: True,
                attribute.PRIVATE: True,
                attribute.APPLICATION: "cloister",
                attribute.LABEL: "cloister/k",
                attribute.VALUE: record[attribute.VALUE].replace(b'"made"', b'"destroyed"'),
            }
        )
    refuses(store, "k", wrapped)
    assert [one.state for one in store.describe("k")] == ["destroyed"]
    store.close()
    with token.open(user_pin=PIN.decode()) as session:
        assert list(session.get_objects({attribute.CLASS: kind.SECRET_KEY})) == []


RECORDS = {
    "not JSON": b"{",
    "an unknown field": b'{"created":1,"extra":1,"format":"cloister/keystore-record/v1","key":"k","object":"00",'
    b'"owner":"ada","state":"made","version":2}',
    "of another key": b'{"created":1,"format":"cloister/keystore-record/v1","key":"other","object":"00",'
    b'"owner":"ada","state":"made","version":2}',
    "another format": b'{"created":1,"format":"cloister/keystore-record/v2","key":"k","object":"00",'
    b'"owner":"ada","state":"made","version":2}',
    "a gap": b'{"created":1,"format":"cloister/keystore-record/v1","key":"k","object":"00",'
    b'"owner":"ada","state":"made","version":3}',
    "destroyed before it was made": b'{"created":1,"format":"cloister/keystore-record/v1","key":"k","object":"00",'
    b'"owner":"ada","state":"destroyed","version":2}',
    "version 0": b'{"created":1,"format":"cloister/keystore-record/v1","key":"k","object":"00",'
    b'"owner":"ada","state":"made","version":0}',
    "twice the same version": b'{"created":1,"format":"cloister/keystore-record/v1","key":"k","object":"00",'
    b'"owner":"eve","state":"made","version":1}',
    "two kilobytes": b" " * 2048,
}


@pytest.mark.parametrize("attack", RECORDS)
def test_a_record_that_is_not_ours_is_refused(soft_token: SoftToken, attack: str) -> None:
    store = soft_token.open()
    store.generate("k", owner=OWNER, now=NOW)
    wrapped = store.wrap("k", SECRET, AAD)
    store.close()
    token = next(iter(pkcs11.lib(str(MODULE)).get_tokens(token_label=soft_token.label)))
    attribute = pkcs11.Attribute
    with token.open(rw=True, user_pin=PIN.decode()) as session:
        session.create_object(
            {
                attribute.CLASS: pkcs11.ObjectClass.DATA,
                attribute.TOKEN: True,
                attribute.PRIVATE: True,
                attribute.APPLICATION: "cloister",
                attribute.LABEL: "cloister/k",
                attribute.VALUE: RECORDS[attack],
            }
        )
    with pytest.raises(KeystoreError) as refusal:
        store.unwrap("k", wrapped, AAD)
    is_one_line(refusal.value)
