"""A process that serves one engine through the project's own API: in the clear, or behind the sealed channel.

Both have the same engine, application and HTTP server, so that their difference is the channel. Its argument is a JSON
object as :mod:`benchmarks.engine_process` takes it, with ``sealed`` and ``folder``, where the policy is written that accepts
exactly this process. It says where it listens and ends with its input. The TEE is the simulated one; nothing is protected.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.engine_process import open_by
from cloister.appraisal.draft import draft_policy
from cloister.attester.launch import launch_events
from cloister.attester.simulated import SimulatedPlatform
from cloister.attester.simulation.collateral import EVALUATION_NUMBER
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway
from cloister.cli.serving import run_server, take_port
from cloister.inference.api_keys import ApiKeys
from cloister.inference.app import create_app
from cloister.inference.workload import MAX_REQUEST

MODEL_NAME = "bench"


def sealed(app: Any, folder: Path) -> SealedGateway:
    platform = SimulatedPlatform.create(folder / "tee", now=int(time.time()))
    launch = launch_events(config=b"\1" * 32, program=b"\2" * 32, model_index=None)
    tee = platform.tee("tdx", launch=launch)
    policy = draft_policy(
        tee="tdx",
        measurements=tee.measurements,
        events=tee.launch,
        min_tcb_evaluation_number=EVALUATION_NUMBER,
        simulated_root=platform.root_sha256,
    )
    (folder / "policy.toml").write_text(policy, "utf-8")
    keyring = KeyRing(replica="bench")
    return SealedGateway(
        app, keyring=keyring, evidence=EvidenceService(tee, keyring), max_request=MAX_REQUEST
    )


def end_with_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    spec = json.loads(sys.argv[1])
    app: Any = create_app(open_by(spec), model_name=MODEL_NAME, api_keys=ApiKeys([spec["api_key"]]))
    if spec["sealed"]:
        app = sealed(app, Path(spec["folder"]))
    threading.Thread(target=end_with_input, daemon=True).start()
    run_server(app, take_port("127.0.0.1", 0), name="bench", as_json=True)


if __name__ == "__main__":
    main()
