"""llama.cpp's server as a process that ends with its parent: `python llama_server.py --model PATH ...`."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
ERRORS = 1
"""llama.cpp's level of messages; its warnings and those beyond are about single requests."""
CACHE_MIB = 256
"""Memory for what was read of earlier prompts."""
SPARE_THREADS = 4
"""Threads of its HTTP server beyond two for each request: for checks of its health, and for those that wait."""


def main() -> None:
    """Serves until it is killed."""
    options = _parse()
    end_with(options.parent)
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = str(options.model)
    params.model_alias = {options.name} if isinstance(params.model_alias, set) else [options.name]
    params.hostnames = [str(options.socket)]
    params.n_ctx, params.n_parallel = options.context * options.parallel, options.parallel
    params.kv_unified = False  # so that one request cannot take the context of another
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_threads_http = 2 * options.parallel + SPARE_THREADS
    params.cache_ram_mib = CACHE_MIB
    params.use_jinja, params.ctx_shift, params.fit_params = True, False, False
    params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = params.ui = False
    params.verbosity = ERRORS
    try:
        server = Server(params)
    except RuntimeError as error:
        sys.exit(f"llama.cpp cannot serve {options.model}: {error}")
    signal.pause()
    del server


def end_with(parent: int) -> None:
    """Has this process killed when the process `parent`, which started it, ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        sys.exit("the replica has ended")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llama_server", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--name", required=True)
    for number in ("threads", "context", "parallel", "parent"):
        parser.add_argument(f"--{number}", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
