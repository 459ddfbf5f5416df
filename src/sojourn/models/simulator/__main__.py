"""`python -m sojourn.models.simulator`: the simulator without the rest of Sojourn.

A person or a bench runs it. The rule: it reads flags and calls `serve`, no more.
"""

import argparse
import sys

import uvloop

from sojourn.errors import SojournError
from sojourn.models.simulator.server import serve

GUIDE = """\
examples:
  python -m sojourn.models.simulator
      the built-in models, at http://127.0.0.1:4010 for both dialects
  curl http://127.0.0.1:4010/v1/chat/completions -d '{"model": "sim-echo",
       "messages": [{"role": "user", "content": "hello"}]}'
  python -m sojourn.models.simulator --script agent.toml --seed 7 --log requests.jsonl
      what the script says, the same each time, and a line for each request

built-in models are words put together, such as sim-steps-3-calls-2-tokens-40:
  echo  tokens-N  think-N  steps-N  calls-N  rate-N  slow  error-STATUS

while it runs: GET /_sim/requests, POST /_sim/script, POST /_sim/reset. docs/simulator.md explains it all.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sojourn.models.simulator",
        description="A model endpoint that says what a script tells it to, over the OpenAI and Anthropic protocols.",
        epilog=GUIDE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument("--port", type=int, default=4010, help="port to listen on, 0 for any (default: 4010)")
    parser.add_argument("--script", metavar="FILE", help="rules and faults, TOML or JSON")
    parser.add_argument("--seed", type=int, help="where all chance comes from (default: the script's, or 0)")
    parser.add_argument("--log", metavar="FILE", help="append a JSON line for each request")
    given = parser.parse_args()
    try:
        uvloop.run(serve(given.host, given.port, script_path=given.script, seed=given.seed, log_path=given.log))
    except SojournError as error:
        print(f"simulator: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
