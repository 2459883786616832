"""A key store in a hardware security module, by PKCS#11 (``cloister[hsm]``).

AES-256 keys are made inside the token and cannot leave it; a token that would let them out, or has no AES-GCM, is refused.
Beside each key the token holds records of its versions (:mod:`~cloister.broker.keystores.records`). A token that was pulled
out may answer as one that is empty, so finding nothing means nothing until the store's own mark is seen in that session.
A wrong PIN is tried once: tokens lock after a few.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from cloister.broker.keystores import MAX_PLAINTEXT
from cloister.broker.keystores.pkcs11_token import (
    ID_SIZE,
    STORE,
    TAG_SIZE,
    Lost,
    decrypt,
    encrypt,
    erase,
    error_name,
    generate,
    key_label,
    key_of,
    mark,
    recorded,
    remove,
    translated,
    write,
)
from cloister.broker.keystores.records import RecordedKeystore, VersionRecord
from cloister.broker.keystores.versioned import ForeignVersion
from cloister.channel.keyring import seconds_since_boot
from cloister.errors import KeystoreError, KeystoreUnavailable

if TYPE_CHECKING:
    from pkcs11 import Session, Token

T = TypeVar("T")

NONCE_SIZE: Final = 12
PAUSES: Final = (0.05, 0.2, 1.0)
"""Seconds before the module is started once more. SoftHSM writes a file at each login, and shows no token meanwhile."""


@dataclass
class _Module:
    """C_Initialize is of the whole process: stores over one module take turns, and a new start ends every session."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    starts: int = 0
    changed: bool = False
    """Whether this process has changed a token since the start."""


_MODULES: Final[dict[str, _Module]] = {}
_MODULES_LOCK: Final = threading.Lock()


class Pkcs11Keystore(RecordedKeystore):
    """A :class:`~cloister.broker.keystores.Keystore` over one token. The first call opens it."""

    algorithm = "AES-256-GCM"
    label = "cloister/pkcs11-wrap/v1"
    store = STORE

    def __init__(
        self,
        module: Path,
        token: str,
        pin: bytes,
        *,
        entropy: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = seconds_since_boot,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(clock)
        self._sleep = sleep
        self._path = str(module)
        self._token = token
        self._pin = _text(pin)
        self._entropy = entropy
        self._session: Session | None = None
        self._start = 0
        self._pin_refused = ""
        with _MODULES_LOCK:
            self._module = _MODULES.setdefault(self._path, _Module())

    def __repr__(self) -> str:
        return f"Pkcs11Keystore(module={self._path!r}, token={self._token!r})"

    def close(self) -> None:
        """End the session; the next call opens another."""
        with self._module.lock:
            self._current()
            self._drop()

    def _records(self, key: str, *, certain: bool = False) -> list[VersionRecord]:
        def search(*, anew: bool) -> list[VersionRecord]:
            return self._ask(lambda session: recorded(session, key), anew=anew)

        with self._module.lock:
            if not (certain or self._module.changed):
                return search(anew=False)
            # A module may answer from memory. SoftHSM counts changes, loses count where two come at once, and takes others'
            # for seen with one of its own: only a start forgets. And it looks at one object after the other, so that a claim
            # that becomes a version meanwhile may be in neither form. What is a version before the second search is found
            # there, since versions stay; a claim that is none by then was there throughout the first.
            return list(dict.fromkeys(search(anew=True) + search(anew=True)))

    def _create(self, key: str, number: int) -> str:
        def work(session: Session) -> str:
            # Another one each time: what was not answered may be done, or be done yet.
            name = self._entropy(ID_SIZE)
            generate(session, key_label(key, number), name)
            return name.hex()

        return self._change(work)

    def _write(self, record: VersionRecord, *, may: Callable[[], None] = lambda: None) -> None:
        def work(session: Session) -> None:
            may()  # here, where nobody waits any more
            write(session, record)

        self._change(work)

    def _remove(self, record: VersionRecord) -> None:
        self._change(lambda session: remove(session, record))

    def _erase(self, key: str, number: int, name: str) -> None:
        self._change(lambda session: erase(session, key, number, name))

    def _change(self, work: Callable[[Session], T]) -> T:
        def changing(session: Session) -> T:
            self._module.changed = True
            return work(session)

        return self._ask(changing)

    def _encrypt(self, key: str, version: ForeignVersion, plaintext: bytes, aad: bytes) -> bytes:
        nonce = self._entropy(NONCE_SIZE)
        bound = self._bound(key, version, aad)
        body = self._ask(lambda session: encrypt(key_of(session, key, version), plaintext, nonce, bound))
        if len(body) != len(plaintext) + TAG_SIZE:
            raise KeystoreError(f"the token {self._token} does not do AES-GCM with a tag of {TAG_SIZE} bytes")
        return nonce + body

    def _decrypt(self, key: str, version: ForeignVersion, body: bytes, aad: bytes) -> bytes:
        nonce, sealed = body[:NONCE_SIZE], body[NONCE_SIZE:]
        plaintext = None
        if TAG_SIZE < len(sealed) <= MAX_PLAINTEXT + TAG_SIZE:
            bound = self._bound(key, version, aad)
            plaintext = self._ask(
                lambda session: decrypt(session, key_of(session, key, version), sealed, nonce, bound)
            )
        if plaintext is None:
            raise KeystoreError(
                f"this is no wrap of the key {key} for that record", todo="restore the record from a backup"
            )
        return plaintext

    def _ask(self, work: Callable[[Session], T], *, anew: bool = False) -> T:
        """In the session at hand, else in a new one, else after starting the module anew, which ``anew`` does at once.

        ``work`` may run several times.
        """
        with self._module.lock:
            starts = [self._reopen] if anew else [self._current, self._open, self._reopen]
            for start, pause in [(one, 0.0) for one in starts] + [(self._reopen, one) for one in PAUSES]:
                if pause:
                    self._sleep(pause)
                try:
                    return translated(work, start() or self._open())
                except Lost as lost:
                    why = lost.why
                    self._drop()
        raise KeystoreUnavailable(
            f"the token {self._token} does not answer as it should ({why})",
            todo="see that it is connected and whole, then ask again",
        )

    def _current(self) -> Session | None:
        # A handle of an earlier start may by now be the handle of another store's session: it is not even closed.
        if self._start != self._module.starts:
            self._session = None
        return self._session

    def _reopen(self) -> Session:
        return self._open(anew=True)

    def _open(self, *, anew: bool = False) -> Session:
        import pkcs11  # noqa: PLC0415 -- only who has a token needs it

        if self._pin_refused:
            raise self._wrong_pin()
        self._drop()
        try:
            library = pkcs11.lib(self._path)
        except (pkcs11.PKCS11Error, OSError) as error:
            if type(error) is not pkcs11.PKCS11Error:
                raise Lost(error_name(error)) from None
            raise KeystoreError(
                f"{self._path} does not load as a PKCS#11 module",
                todo="name the library of the token's vendor",
            ) from None
        try:
            if anew:
                self._module.starts += 1
                library.reinitialize()
                self._module.changed = False
            session = self._login(self._one(list(library.get_tokens(token_label=self._token))))
        except pkcs11.PKCS11Error as error:
            raise Lost(error_name(error)) from None
        self._session, self._start = session, self._module.starts
        if anew and translated(mark, session):
            self._module.changed = True
        return session

    def _one(self, tokens: list[Token]) -> Token:
        import pkcs11  # noqa: PLC0415

        if not tokens:
            raise Lost(f"no token {self._token}")
        if len(tokens) > 1:
            raise KeystoreError(
                f"{len(tokens)} tokens are called {self._token}", todo="give each its own label"
            )
        mechanisms = tokens[0].slot.get_mechanisms()
        for needed in (pkcs11.Mechanism.AES_GCM, pkcs11.Mechanism.AES_KEY_GEN):
            if needed not in mechanisms:
                raise KeystoreError(
                    f"the token {self._token} has no CKM_{needed.name}",
                    todo="use a token or firmware that has it",
                )
        return tokens[0]

    def _login(self, token: Token) -> Session:
        import pkcs11  # noqa: PLC0415

        try:
            return token.open(rw=True, user_pin=self._pin)
        except pkcs11.UserAlreadyLoggedIn:
            return token.open(rw=True)  # logged in is the process, not the session
        except (
            pkcs11.PinIncorrect,
            pkcs11.PinLocked,
            pkcs11.PinExpired,
            pkcs11.PinInvalid,
            pkcs11.PinLenRange,
        ) as error:
            self._pin_refused = error_name(error)
        raise self._wrong_pin()

    def _wrong_pin(self) -> KeystoreError:
        return KeystoreError(
            f"the token {self._token} refused the PIN ({self._pin_refused})",
            todo="correct the PIN file and start again: it is not tried twice, tokens lock after a few",
        )

    def _drop(self) -> None:
        import pkcs11  # noqa: PLC0415

        session, self._session = self._session, None
        if session is not None:
            with suppress(pkcs11.PKCS11Error):
                session.close()


def _text(pin: bytes) -> str:
    try:
        text = pin.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise KeystoreError(
            "the PIN of the token is empty or not UTF-8", todo="write it into its file as one line"
        )
    return text
