"""The engine's own plaintext HTTP server, with the parameters that `cloister serve` gives it: the yardstick.

Usage: plain_server.py MODEL.gguf CONTEXT SLOTS THREADS. Prints its address as one JSON line; ends with its standard input.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cloister.inference.engines.llamacpp_parameters import server_parameters


def main() -> None:
    path, context, slots, threads = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    # Before xllamacpp is imported: it decides how the engine's threads wait.
    params = server_parameters(
        str(path), context_length=context, slots=slots, threads=threads, embedding=True
    )
    import xllamacpp  # noqa: PLC0415

    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = []
    params.n_threads_http = -1
    server = xllamacpp.Server(params)
    print(json.dumps({"listening": server.listening_address}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
