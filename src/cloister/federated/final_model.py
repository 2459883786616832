"""The final model, written by a receiver's workload: sealed to a key of that party, its index vouched for by evidence.

The files are made in memory and sealed onto the disk; nothing of them is ever there in the clear. The index is signed by a
key that is made for it and forgotten: the statement over which the workload shows evidence names it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from cloister.encoding import encode_json
from cloister.errors import FederationError, UsageError
from cloister.federated.messages import ModelOrder, Vouched, Written
from cloister.federated.opening import GivenKeys
from cloister.federated.provenance import SEALED, FilesStated, verify_run
from cloister.federated.workload import Workload
from cloister.sealing.seal import seal_directory
from cloister.sealing.signing import SigningKey


def write_model(
    workload: Workload,
    asked: ModelOrder,
    *,
    memory: Path,
    out: Path | None,
    vouch: Callable[[bytes], Vouched],
    now: Callable[[], int] = lambda: int(time.time()),
) -> Written:
    """Write it below ``out`` (as :data:`~cloister.federated.provenance.SEALED`), by way of the folder ``memory``.

    Raises FederationError for who is no receiver or has not the model, UsageError where it cannot be written.
    """
    order = workload.own(asked.word)
    agreed, training = workload.agreed, workload.training
    if agreed is None or training is None:
        raise FederationError("this workload has no task yet")
    if order.party not in agreed.federation.receivers:
        raise FederationError(f"{order.party} does not receive the model")
    if out is None:
        raise UsageError("this workload was not told where the model goes", todo="start it with --out")
    stated = verify_run(asked.vouched, agreed)
    written = workload.written
    if written is not None and (written.run, written.model) == (stated.run, stated.model):
        # It is asked again where its answer was lost.
        return Written(vouched=vouch(encode_json(structs.replace(written, at=now()))))
    arrays = workload.final_model(stated.model)
    key = GivenKeys(order.keys).key(order.output)
    clear = Path(tempfile.mkdtemp(prefix="model-", dir=memory))
    try:
        training.save(arrays, clear)
        signing = SigningKey(os.urandom(32))
        index = seal_directory(clear, out / SEALED, key_uri=order.output, kek=key, signing_key=signing)
    finally:
        shutil.rmtree(clear, ignore_errors=True)
    files = workload.written = FilesStated(
        federation=agreed.digest, run=stated.run, party=order.party, model=stated.model, index=index.digest.hex(),
        signer=signing.public_key.hex(), at=now(),
    )  # fmt: skip
    return Written(vouched=vouch(encode_json(files)))
