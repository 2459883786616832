"""The serving workload: measure, attest, get the key, unseal into memory, answer.

The order is the point. The launch is measured before the first quote; the model's key comes only after the broker
was verified and has verified us; the port opens only when everything behind it stands.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cloister.attester import Attester, DeviceAttester
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway
from cloister.errors import FormatError, InferenceError
from cloister.inference.adapter import Adapter
from cloister.inference.admission import MAX_WAITING
from cloister.inference.app import create_app
from cloister.inference.configuration import ServeConfiguration
from cloister.inference.engine_choice import engine_for
from cloister.inference.engines import Engine, EngineSettings, open_engine
from cloister.inference.machine import Machine, read_machine
from cloister.inference.model import Model, OpenedModel
from cloister.inference.model_files import ModelFiles
from cloister.inference.openai_requests import MAX_BODY
from cloister.inference.rooms import OpenRoom
from cloister.inference.token_count import Count, counter_of
from cloister.inference.tuning import ModelShape, shape_of, tuned
from cloister.sealing import KeySource

if TYPE_CHECKING:
    from cloister.inference.api_keys import ApiKeys

MAX_REQUEST: Final = MAX_BODY + 64 * 1024
"""Bytes of an opened request: the largest body and its head. Many may be received at once, by anybody."""

SMALL_REQUESTS: Final = 64
"""Requests that may be open beside those that compute or wait: lists of models, health, evidence."""

MAPPING: Final = frozenset({"llamacpp"})
"""Engines that compute on the model's files in place; others make a copy in their own form."""

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
    model: Model | None,
    attester: Attester,
    keys: KeySource | None,
    api_keys: ApiKeys,
    threads: int | None,
    replica: str,
    progress: Progress,
    draft: Model | None = None,
    devices: DeviceAttester | None = None,
    adapter: Adapter | None = None,
    manifest: Callable[[], bytes | None] | None = None,
    room: Callable[[Count, ExitStack], OpenRoom] | None = None,
) -> Workload:
    """Bring a serving workload up, attested with its ``devices``. Raises what its parts raise; nothing is left open then.

    ``adapter`` and ``draft`` are those that ``configuration`` names; ``model`` is None with an upstream. ``manifest`` gives
    the newest signed manifest for clients that accept workloads by it. ``room`` opens what is added to the API, given the
    model's count of tokens and where to put what closes it.
    """
    measured = None if configuration.adapter is None else configuration.adapter.digest
    for what, found, expected in (("adapter", adapter, measured), ("draft", draft, configuration.draft)):
        if (None if found is None else found.digest.hex()) != expected:
            raise InferenceError(f"the {what} is not the one that was measured")
    with ExitStack() as undo:
        opened = [
            _opened(what, one, keys, undo, progress)
            for what, one in (("model", model), ("draft", draft))
            if one is not None
        ]
        count = None if room is None else counter_of(opened[0].files if opened else None)
        name, engine = _engine(configuration, opened, adapter, keys, threads, progress)
        undo.callback(engine.close)
        # The engine has loaded them meanwhile; nothing of this workload can be seen or asked before this line.
        for one in opened:
            one.confirm()
        progress("engine", name)
        added = None if room is None or count is None else room(count, undo)
        app = create_app(engine, model_name=configuration.model_name, api_keys=api_keys, room=added)
        keyring = KeyRing(replica=replica, receipts=True)
        undo.callback(keyring.close)
        evidence = EvidenceService(attester, keyring, devices=devices)
        gateway = SealedGateway(
            app,
            keyring=keyring,
            evidence=evidence,
            max_request=MAX_REQUEST,
            # Who finds the queue full is told so by the queue, which knows when to come again.
            max_open=configuration.slots + MAX_WAITING + SMALL_REQUESTS,
            manifest=manifest,
        )
        return Workload(gateway=gateway, close=undo.pop_all().close)


def _opened(
    what: str, model: Model, keys: KeySource | None, undo: ExitStack, progress: Progress
) -> OpenedModel:
    opened = model.open(keys)
    undo.callback(opened.discard)
    progress(what, f"opened in memory, index {model.digest.hex()[:16]}…")
    return opened


def _engine(
    configuration: ServeConfiguration,
    opened: Sequence[OpenedModel],
    adapter: Adapter | None,
    keys: KeySource | None,
    threads: int | None,
    progress: Progress,
) -> tuple[str, Engine]:
    """Its name and the engine, loaded. No descriptor of the model is open then; what it mapped stays."""
    with ExitStack() as closing:
        for one in opened:
            closing.callback(one.files.close)
        added = None if adapter is None else adapter.open(keys)
        if adapter is not None:
            progress("adapter", f"opened in memory, {adapter.digest.hex()[:16]}…")
        files = opened[0].files if opened else None
        machine = read_machine()
        name, settings = engine_for(
            configuration,
            files,
            fingerprint=machine.fingerprint,
            threads=threads,
            adapter=added,
            draft=opened[1].files if len(opened) > 1 else None,
        )
        if files is not None:
            settings = _fitted(machine, name, files, settings, progress)
        return name, open_engine(name, files, settings)


def _fitted(
    machine: Machine, name: str, files: ModelFiles, settings: EngineSettings, progress: Progress
) -> EngineSettings:
    """What the operator left to this machine. Raises UsageError where slots and context do not fit its memory."""
    shape: ModelShape | None = None
    with suppress(InferenceError, FormatError):  # what is no model, the engine says best
        shape = shape_of(files)
    fitted = tuned(machine, files.size, settings, shape=shape, mapped=name in MAPPING)
    for reason in fitted.reasons:
        progress("tuning", reason)
    if fitted.cpus is not None:
        os.sched_setaffinity(0, fitted.cpus)
    return fitted.settings
