"""Evidence on demand: the nonces that arrive within a window share one quote.

A quote costs milliseconds inside the TEE and there is one quoting engine, so nonces are collected for a moment
and one quote is made over the root of their Merkle tree; each asker gets its inclusion proof. While a quote is
being made, the next nonces wait for the one after it. The queue is bounded and refuses what is over.

The key material is captured once for a quote: the bytes hashed into the binding are the bytes that are sent.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from cloister import merkle
from cloister.attester import Attester, DeviceAttester, RawDeviceEvidence
from cloister.errors import AttesterError, CloisterError, Overloaded, StaleNonce
from cloister.evidence.binding import NONCE_SIZE, device_nonce, report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof

DEFAULT_WINDOW = 0.02
"""Seconds that the first nonce waits for others."""
MAX_TREE = 256
"""Nonces under one quote."""
MAX_WAITING = 4096
QUOTE_TIMEOUT = 30.0
"""Seconds after which a quote counts as failed."""


class KeyMaterialSource(Protocol):
    """Who has keys to show; :class:`~cloister.channel.keyring.KeyRing` is one."""

    def material(self) -> bytes: ...


class EvidenceService:
    """Answers nonces with evidence bundles. Lives in one event loop."""

    def __init__(
        self,
        attester: Attester,
        keyring: KeyMaterialSource,
        *,
        window: float = DEFAULT_WINDOW,
        max_tree: int = MAX_TREE,
        max_waiting: int = MAX_WAITING,
        quote_timeout: float = QUOTE_TIMEOUT,
        devices: DeviceAttester | None = None,
    ) -> None:
        self._attester = attester
        self._devices = devices
        self._keyring = keyring
        self._window = window
        self._max_tree = max_tree
        self._max_waiting = max_waiting
        self._quote_timeout = quote_timeout
        self._pending: list[tuple[bytes, asyncio.Future[EvidenceBundle]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def evidence(self, nonce: bytes) -> EvidenceBundle:
        """A bundle over ``nonce`` (32 bytes) and the current keys.

        Raises :class:`StaleNonce` for another length, :class:`Overloaded`, and what the attester raises.
        """
        if len(nonce) != NONCE_SIZE:
            raise StaleNonce(f"a nonce is {NONCE_SIZE} bytes, not {len(nonce)}", todo="draw a fresh one")
        if len(self._pending) >= self._max_waiting:
            raise Overloaded("too many are waiting for evidence", todo="try again in a moment")
        future: asyncio.Future[EvidenceBundle] = asyncio.get_running_loop().create_future()
        self._pending.append((nonce, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._serve())
        return await future

    async def _serve(self) -> None:
        while self._pending:
            if len(self._pending) < self._max_tree:
                await asyncio.sleep(self._window)
            batch, self._pending = self._pending[: self._max_tree], self._pending[self._max_tree :]
            batch = [(nonce, future) for nonce, future in batch if not future.done()]  # who left, left
            if not batch:
                continue
            try:
                quoting = asyncio.to_thread(self._quote, [nonce for nonce, _ in batch])
                bundles = await asyncio.wait_for(quoting, self._quote_timeout)
            except CloisterError as error:
                self._fail(batch, error)
            except TimeoutError:
                self._fail(batch, AttesterError("no quote came in time", todo="look at the quoting service"))
            except Exception as error:  # whatever a driver raises: the askers must not wait for ever
                self._fail(batch, AttesterError(f"the attester failed ({type(error).__name__})"))
            else:
                for (_, future), bundle in zip(batch, bundles, strict=True):
                    if not future.done():
                        future.set_result(bundle)

    def _quote(self, nonces: list[bytes]) -> list[EvidenceBundle]:
        """One quote, in a thread; a bundle for each nonce, in order."""
        material = self._keyring.material()
        nonce_root, paths = merkle.inclusion_proofs(nonces)
        devices = RawDeviceEvidence(evidence=b"")
        if self._devices is not None:
            # First the devices, over a nonce of the same window and keys; the quote then binds what they said.
            devices = self._devices.collect(device_nonce(nonce_root, material))
        raw = self._attester.quote(report_data(nonce_root, material, devices.evidence))
        return [
            EvidenceBundle(
                tee=raw.tee,
                quote=raw.quote,
                key_material=material,
                nonce_proof=NonceProof(index=index, size=len(nonces), path=path),
                event_log=raw.event_log,
                firmware_log=raw.firmware_log,
                device_evidence=devices.evidence,
                endorsements=raw.endorsements,
                device_endorsements=devices.endorsements,
            )
            for index, path in enumerate(paths)
        ]

    @staticmethod
    def _fail(batch: list[tuple[bytes, asyncio.Future[EvidenceBundle]]], error: CloisterError) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(error)
