"""The serving workload: measure, attest, get the key, unseal into memory, answer.

The order is the point. The launch is measured before the first quote; the model's key comes only after the broker
was verified and has verified us; the port opens only when everything behind it stands.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cloister.attester import Attester, DeviceAttester
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway
from cloister.inference.app import create_app
from cloister.inference.configuration import ServeConfiguration
from cloister.inference.engines import open_engine
from cloister.inference.model import Model
from cloister.inference.openai_requests import MAX_BODY
from cloister.sealing import KeySource

if TYPE_CHECKING:
    from cloister.inference.api_keys import ApiKeys

MAX_REQUEST: Final = MAX_BODY + 64 * 1024
"""Bytes of an opened request: the largest body and its head. Many may be received at once, by anybody."""

Progress = Callable[[str, str], None]
"""Called with (step, fact) as each step is done."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything that stands behind the port."""

    gateway: SealedGateway
    close: Callable[[], None]


def start(
    configuration: ServeConfiguration,
    *,
    model: Model,
    attester: Attester,
    keys: KeySource | None,
    api_keys: ApiKeys,
    threads: int | None,
    replica: str,
    progress: Progress,
    devices: DeviceAttester | None = None,
    manifest: Callable[[], bytes | None] | None = None,
) -> Workload:
    """Bring a serving workload up, attested with its ``devices``. Raises what its parts raise; nothing is left open then.

    ``manifest`` gives the newest signed manifest for clients that accept workloads by it.
    """
    with ExitStack() as undo:
        descriptor = model.open(keys)
        progress("model", f"opened in memory, index {model.digest.hex()[:16]}…")
        try:
            engine = open_engine(
                configuration.engine,
                descriptor,
                context_length=configuration.context_length,
                slots=configuration.slots,
                threads=threads,
            )
        finally:
            os.close(descriptor)  # what the engine mapped stays; nobody else finds it under /proc/self/fd
        undo.callback(engine.close)
        progress("engine", configuration.engine)
        app = create_app(engine, model_name=configuration.model_name, api_keys=api_keys)
        keyring = KeyRing(replica=replica)
        undo.callback(keyring.close)
        evidence = EvidenceService(attester, keyring, devices=devices)
        gateway = SealedGateway(
            app, keyring=keyring, evidence=evidence, max_request=MAX_REQUEST, manifest=manifest
        )
        return Workload(gateway=gateway, close=undo.pop_all().close)
