"""The few TPM 2.0 commands that attestation needs, marshalled here (TPM 2.0 Library, Part 3; command codes beside them).

Every authorisation is an empty password: the hierarchies' defaults, and what the TCG's templates ask for. Responses
are read strictly; every response code becomes an :class:`~cloister.errors.AttesterError` in words. Nothing here
creates, changes or deletes anything that survives a boot, but for the extension of a PCR.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from cloister.attester.tpm_responses import RETRY_CODES, words
from cloister.attester.tpm_transport import MAX_RESPONSE, TpmTransport
from cloister.errors import AttesterError, EvidenceError
from cloister.evidence.tpm import BANKS
from cloister.evidence.tpm_structures import ALG_NULL, HASH_IDS, PCRS, TpmReader

# Part 2, 7.4: TPM_RH.
NULL: Final = 0x40000007
ENDORSEMENT: Final = 0x4000000B
_PASSWORD: Final = 0x40000009
_OWNER: Final = 0x40000001
_NO_SESSIONS: Final = 0x8001
_SESSIONS: Final = 0x8002
_CONTINUE: Final = 1
_MAX_NV: Final = 16 * 1024
_NV_CHUNK: Final = 512
_NV_OWNER_READ: Final = 1 << 17
_NV_AUTH_READ: Final = 1 << 18
_TRIES: Final = 20
_PAUSE: Final = 0.1


class Tpm:
    """A TPM behind a transport. Not for several threads."""

    def __init__(self, transport: TpmTransport) -> None:
        self._transport = transport

    def exists(self, handle: int) -> bool:
        """Is there an NV index or persistent key ``handle``? (TPM2_GetCapability, 0x17A, TPM_CAP_HANDLES.)"""
        reply = self._run(0x17A, parameters=_u32(1) + _u32(handle) + _u32(1))
        reply.u8()  # whether there are more
        if reply.u32() != 1:
            raise AttesterError("the TPM answered for another capability than handles")
        return reply.u32() > 0 and reply.u32() == handle

    def create_primary(self, hierarchy: int, template: bytes) -> tuple[int, bytes]:
        """TPM2_CreatePrimary (0x131): a key's transient handle and its public area (TPMT_PUBLIC).

        Equal templates give equal keys, boot after boot: the key is derived from the hierarchy's seed.
        """
        sensitive = sized(sized(b"") + sized(b""))
        parameters = sensitive + sized(template) + sized(b"") + _u32(0)
        reply = self._run(0x131, handles=(hierarchy,), parameters=parameters, sessions=1)
        return reply.u32(), _parameters(reply).sized()

    def read_public(self, handle: int) -> bytes:
        """TPM2_ReadPublic (0x173): the public area (TPMT_PUBLIC) of a key."""
        return self._run(0x173, handles=(handle,)).sized()

    def flush(self, handle: int) -> None:
        """TPM2_FlushContext (0x165) of a transient key or session."""
        self._run(0x165, parameters=_u32(handle))

    def read_nv(self, index: int) -> bytes:
        """All of an NV index (TPM2_NV_ReadPublic, 0x169, and TPM2_NV_Read, 0x14E)."""
        public = _nested(self._run(0x169, handles=(index,)).sized())
        public.u32()
        public.u16()
        attributes = public.u32()
        public.sized()
        size = public.u16()
        if size > _MAX_NV:
            raise AttesterError(f"NV index {index:#010x} has {size} bytes, over the bound of {_MAX_NV}")
        authority = index if attributes & _NV_AUTH_READ or not attributes & _NV_OWNER_READ else _OWNER
        data = b""
        while len(data) < size:
            wanted = min(_NV_CHUNK, size - len(data))
            part = self._run(
                0x14E, handles=(authority, index), parameters=_u16(wanted) + _u16(len(data)), sessions=1
            )
            found = _parameters(part).sized()
            if len(found) != wanted:
                raise AttesterError(
                    f"NV index {index:#010x} gave {len(found)} bytes where {wanted} were asked"
                )
            data += found
        return data

    def read_pcrs(self, bank: str, pcrs: Iterable[int]) -> dict[int, bytes]:
        """TPM2_PCR_Read (0x17E), as often as it takes: PCR -> value."""
        missing, values = sorted(set(pcrs)), dict[int, bytes]()
        while missing:
            reply = self._run(0x17E, parameters=selection(bank, missing))
            reply.u32()  # update counter: the quote's digest tells whether anything changed in between
            shown = _selected(reply, bank)
            if not shown or reply.u32() != len(shown) or not set(shown) <= set(missing):
                raise AttesterError(
                    f"the TPM has no PCRs of bank {bank}", todo="allocate the bank in the firmware's settings"
                )
            values |= {number: reply.sized() for number in shown}
            missing = [number for number in missing if number not in values]
        if any(len(value) != BANKS[bank] for value in values.values()):
            raise AttesterError("the TPM gave PCR values of another length than their bank's")
        return values

    def extend(self, pcr: int, digests: Mapping[str, bytes]) -> None:
        """TPM2_PCR_Extend (0x182) with one digest for each bank."""
        parameters = _u32(len(digests)) + b"".join(
            _u16(HASH_IDS[bank]) + digest for bank, digest in digests.items()
        )
        self._run(0x182, handles=(pcr,), parameters=parameters, sessions=1)

    def quote(self, key: int, data: bytes, bank: str, pcrs: Iterable[int]) -> tuple[bytes, bytes]:
        """TPM2_Quote (0x158) by the key's own scheme: TPMS_ATTEST and TPMT_SIGNATURE."""
        parameters = sized(data) + _u16(ALG_NULL) + selection(bank, pcrs)
        reply = _parameters(self._run(0x158, handles=(key,), parameters=parameters, sessions=1))
        attest = reply.sized()
        return attest, reply.take(reply.remaining)

    def activate(self, ak: int, ek: int, blob: bytes, secret: bytes, *, by_policy: bool) -> bytes:
        """TPM2_ActivateCredential (0x147): what was encrypted to ``ek`` for the key ``ak``.

        ``by_policy``: the endorsement key asks for PolicySecret of its hierarchy (the TCG's low-range templates).
        """
        with self._ek_session(by_policy) as session:
            reply = self._run(
                0x147,
                handles=(ak, ek),
                parameters=sized(blob) + sized(secret),
                authorisations=_password() + session,
            )
            return _parameters(reply).sized()

    @contextmanager
    def _ek_session(self, by_policy: bool) -> Iterator[bytes]:
        if not by_policy:
            yield _password()
            return
        # TPM2_StartAuthSession (0x176): unbound and unsalted, so its nonce protects nothing and may be zeros.
        parameters = sized(bytes(16)) + sized(b"") + b"\x01" + _u16(ALG_NULL) + _u16(HASH_IDS["sha256"])
        session = self._run(0x176, handles=(NULL, NULL), parameters=parameters).u32()
        try:
            # TPM2_PolicySecret (0x151) of the endorsement hierarchy.
            empty = sized(b"") * 3 + _u32(0)
            self._run(0x151, handles=(ENDORSEMENT, session), parameters=empty, sessions=1)
            yield _u32(session) + sized(b"") + bytes([_CONTINUE]) + sized(b"")
        finally:
            self.flush(session)

    def _run(
        self,
        code: int,
        *,
        handles: tuple[int, ...] = (),
        parameters: bytes = b"",
        sessions: int = 0,
        authorisations: bytes = b"",
    ) -> TpmReader:
        """Submit one command; its response behind the header, from the handle on where it has one."""
        authorisations = authorisations or _password() * sessions
        area = _u32(len(authorisations)) + authorisations if authorisations else b""
        body = b"".join(map(_u32, handles)) + area + parameters
        tag = _SESSIONS if authorisations else _NO_SESSIONS
        command = _u16(tag) + _u32(10 + len(body)) + _u32(code) + body
        for _ in range(_TRIES):
            response, result = self._submit(command, tag)
            if result == 0:
                return response
            if result not in RETRY_CODES:
                break
            time.sleep(_PAUSE)
        what, todo = words(result)
        raise AttesterError(f"the TPM refused command {code:#05x}: {what}", todo=todo)

    def _submit(self, command: bytes, tag: int) -> tuple[TpmReader, int]:
        data = self._transport.submit(command)
        try:
            reply = TpmResponse(data, "TPM response")
            found_tag, size, result = reply.u16(), reply.u32(), reply.u32()
        except EvidenceError as error:
            raise AttesterError(error.what) from None
        if size != len(data) or size > MAX_RESPONSE or found_tag != (tag if result == 0 else _NO_SESSIONS):
            raise AttesterError("the TPM answered with a malformed header")
        return reply, result


class TpmResponse(TpmReader):
    """As its base, but what is cut short is this machine's fault, not the evidence's."""

    def take(self, size: int) -> bytes:
        try:
            return super().take(size)
        except EvidenceError as error:
            raise AttesterError(error.what) from None


def selection(bank: str, pcrs: Iterable[int]) -> bytes:
    """A TPML_PCR_SELECTION of one bank."""
    bits = sum(1 << number for number in set(pcrs))
    return _u32(1) + _u16(HASH_IDS[bank]) + bytes([PCRS // 8]) + bits.to_bytes(PCRS // 8, "little")


def sized(data: bytes) -> bytes:
    """A TPM2B."""
    return _u16(len(data)) + data


def _selected(reply: TpmReader, bank: str) -> list[int]:
    if reply.u32() != 1 or reply.u16() != HASH_IDS[bank]:
        raise AttesterError("the TPM answered for another bank of PCRs")
    bits = int.from_bytes(reply.take(reply.u8()), "little")
    return [number for number in range(PCRS) if bits >> number & 1]


def _parameters(reply: TpmReader) -> TpmReader:
    """Behind the handles of a response with sessions: its parameters, without the authorisations that follow."""
    return _nested(reply.take(reply.u32()))


def _nested(data: bytes) -> TpmReader:
    return TpmResponse(data, "TPM response")


def _password() -> bytes:
    return _u32(_PASSWORD) + sized(b"") + bytes([_CONTINUE]) + sized(b"")


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")
