"""docs/how-to/key-broker.md works as it stands there, command by command, with a restart in the middle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from ports import free_port

PAGE = (Path(__file__).resolve().parents[2] / "docs/how-to/key-broker.md").read_text()
SERVE = "cloister broker serve"


def test_the_how_to_leads_from_keys_to_a_released_key_and_an_audited_log(tmp_path: Path) -> None:
    blocks = re.findall(r"```(console|python)\n(.*?)```", PAGE, re.DOTALL)
    ports = {port: str(free_port()) for port in ("8090", "8095", "8000")}
    script = ["set -euo pipefail"]
    for language, block in blocks:
        text = block
        for port, free in ports.items():
            text = text.replace(f":{port}", f":{free}").replace(f"--port {port}", f"--port {free}")
        if language == "python":
            # What the page says in capital letters is what each reader has of their own.
            script.append("cat > client.py <<'END'\n" + text + "END")
            script.append(
                'sed -i "s/ORIGIN/$ORIGIN/; s/ALICE/$(cloister manifest key --key alice.key)/; '
                's/BOB/$(cloister manifest key --key bob.key)/" client.py && python client.py'
            )
        elif "owner unlock" in text:
            start = next(block for _, block in blocks if SERVE in block)
            start = start.replace(":8095", f":{ports['8095']}").replace("8090", ports["8090"])
            script += [
                "kill -9 $BROKER; while kill -0 $BROKER 2> /dev/null; do sleep 0.1; done",
                start,
                f"until curl -sf http://127.0.0.1:{ports['8090']}/healthz > /dev/null; do sleep 0.2; done",
                text,
                f"curl -sf http://127.0.0.1:{ports['8090']}/readyz",
            ]
        else:
            script.append(text)
            if SERVE in text:
                script.append("BROKER=$!")
    script.append("echo; echo THE-END")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (tmp_path / "log").open("w+") as log:
        shell = subprocess.Popen(
            ["bash", "-c", "\n".join(script)],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            shell.wait(200)
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
        log.seek(0)
        said = log.read()
    assert "THE-END" in said, said[-3000:]
    assert "kbs:///default/key/demo: version 1, rule version 1" in said
    assert re.search(r"release accepted +kbs:///default/key/demo +to inference", said)
    assert "co-signed by wanda" in said
    assert "the broker is open" in said
    assert '{"status":"ready"}' in said
    assert "Traceback" not in said
