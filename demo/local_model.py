"""`make demo-local-model`: one tool call by a small real model, offline.

A model of 270 million parameters knows nothing of tool calling. `tool_mode = "json_schema"` makes its server answer in
JSON of one of two shapes, a call or an answer, so that even this one can use a tool. The rule: what is checked is the
call and what came back from the real sandbox; what so small a model says about it is shown as it is.
"""

import json
import sys
from pathlib import Path

from demo import figures
from demo.machinery import SOJOURN, Api, Processes
from demo.run import Story, show, stage

PROVIDER = """
[providers.local]
base_url = "{url}/v1"
key_required = false
tool_mode = "json_schema"
"""
SYSTEM = """Example.
User: How many lines has cats.csv? Use wc -l cats.csv
You: {"tool": "shell", "arguments": {"command": "wc -l cats.csv"}}
User: Result of shell:
37 cats.csv
You: {"answer": "cats.csv has 37 lines."}
User: How many lines has dogs.csv? Use wc -l dogs.csv
You: {"tool": "shell", "arguments": {"command": "wc -l dogs.csv"}}
User: Result of shell:
4012 dogs.csv
You: {"answer": "dogs.csv has 4012 lines."}"""
GOAL = "How many lines has birds.csv? Use wc -l birds.csv"
MODEL = Path(sys.prefix) / "gemma-3-270m-q4_k_m.gguf"


CHECKED = (
    "the model called the tool with the right command",
    "the sandbox ran it on the real data",
    "no process was left behind",
)


def main() -> int:
    return stage(tell, CHECKED)


def tell(story: Story, processes: Processes) -> list[str]:
    """Run the whole story. Returns what did not hold."""
    processes.start("llama", sys.executable, "-m", "demo.llama", str(MODEL))
    url = processes.said("llama", "llama.cpp listens on ")
    story.say(f"the model listens on {url}")
    data = Path(processes.environ["SOJOURN_DATA_DIR"])
    data.mkdir(mode=0o700)
    (data / "sojourn.toml").write_text(PROVIDER.format(url=url))
    processes.start("server", SOJOURN, "serve")
    api = Api(processes.said("server", "Sojourn listens on "), "")
    api.key = (data / "local.key").read_text().strip()
    session = api.call("POST", "/v1/sessions", {})["id"]
    rows = "".join(f"{row['Flight Date']},{row['Wildlife Species']}\n" for row in figures.reports())
    api.put(session, "birds.csv", rows.encode())
    agent = {
        "model": "local:gemma-3-270m",
        "system": SYSTEM,
        "tools": ["shell"],
        "limits": {"steps": 6},
        "params": {"temperature": 0, "max_output_tokens": 120},
    }
    story.say(f"the goal: {GOAL}")
    run = api.call("POST", "/v1/runs", {"agent": agent, "input": GOAL, "session": session})["run_id"]
    events, calls = [], {}
    for event in api.follow(run):
        if not event["type"].startswith("delta."):
            events.append(event)
            show(story, event, calls)
    story.say("so small a model gets its answer wrong more often than right; its call is what is checked")
    api.call("POST", f"/v1/sessions/{session}/close")
    asked = [json.loads(call["arguments"]).get("command", "") for call in calls.values()]
    heard = [event["text"] for event in events if event["type"] == "agent.tool_result"]
    problems = [] if any("wc -l birds.csv" in command for command in asked) else [f"the model called {asked}"]
    return problems if any("10000 birds.csv" in text for text in heard) else [*problems, f"the tool said {heard}"]


if __name__ == "__main__":
    sys.exit(main())
