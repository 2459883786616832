"""The engine's own plaintext HTTP server, with the parameters that `cloister serve` gives it: the yardstick.

Usage: plain_server.py MODEL.gguf CONTEXT SLOTS THREADS. Prints its address as one JSON line; ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import xllamacpp


def main() -> None:
    path, context, slots, threads = sys.argv[1], *map(int, sys.argv[2:5])
    params = xllamacpp.CommonParams()
    params.verbosity = -1
    params.model.path = path
    params.model_alias = {"bench"}
    params.n_ctx = context * slots
    params.n_parallel = slots
    params.fit_params = False
    params.n_batch = params.n_ubatch = max(context, 512)
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads
        cpu.poll = 0
    params.use_jinja = True
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    server = xllamacpp.Server(params)
    print(json.dumps({"listening": server.listening_address}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
