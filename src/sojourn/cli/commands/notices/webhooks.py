"""`sojourn webhooks`: where the server sends what happens.

The rule: a secret is shown once, when it is made, alone on standard output.
"""

import json
import time
from argparse import Namespace
from typing import Any

from sojourn.cli.client import JSON_TYPE, Client, segment
from sojourn.cli.command import JSON, Command, Group, Shell, flag
from sojourn.cli.commands.clock.times import ahead, seconds
from sojourn.cli.exits import FAILED, OK
from sojourn.cli.terminal import ago, one_line

Json = dict[str, Any]

WEBHOOK = flag("webhook", metavar="WEBHOOK", help="the webhook's id")
EVENT = flag(
    "--event",
    metavar="TYPE",
    action="append",
    help="send these, as run.completed, run.* or alert.*; more than once for several",
)
TEST_S, TEST_TRY_S = 15.0, 0.25
ADD = """
The server posts a message to URL whenever such an event happens: without --event these are run.completed,
run.failed, run.suspended and alert.*. Messages are signed as Standard Webhooks are; the secret to check
them with is printed once, now. A message says what happened and to which run, and holds no words of it.

URL begins with https:// and leads to the public internet, unless the operator allows more
(SOJOURN_WEBHOOKS_HTTP_ALLOWED, SOJOURN_WEBHOOK_HOSTS_ALLOWED).
"""


def add(args: Namespace, shell: Shell) -> int:
    """Make a webhook and print its secret."""
    body: Json = {"url": args.url, "description": args.description}
    if args.event:
        body["events"] = args.event
    # Without an Idempotency-Key, which would have the secret remembered.
    made = shell.client().json("POST", "/v1/webhooks", body=json.dumps(body).encode(), headers=JSON_TYPE)
    return _show(made, shell, f"`sojourn webhooks test {made['id']}` sends a first message.", as_json=args.json)


def replace_secret(args: Namespace, shell: Shell) -> int:
    """Give a webhook another secret and print it."""
    body, path = {"overlap_s": int(seconds(args.overlap))}, f"/v1/webhooks/{segment(args.webhook)}/secret"
    made = shell.client().json("POST", path, body=json.dumps(body).encode(), headers=JSON_TYPE)
    return _show(
        made, shell, f"Messages are signed with the former one too for {args.overlap} more.", as_json=args.json
    )


def _show(made: Json, shell: Shell, then: str, *, as_json: bool) -> int:
    """Show a webhook's new secret, once; people are told what comes then."""
    if as_json:
        shell.print_json(made)
        return OK
    shell.err.line(f"{made['id']}: this is the only time that the secret is shown.", "dim")
    shell.out.line(made["secret"])
    shell.err.line(then, "dim")
    return OK


def list_webhooks(args: Namespace, shell: Shell) -> int:
    """Show every webhook."""
    found = shell.client().get("/v1/webhooks")
    if args.json:
        shell.print_json(found)
        return OK
    rows = [(one["id"], _state(one), " ".join(one["events"]), one_line(one["url"], 200)) for one in found["data"]]
    none = "Nothing is sent anywhere. `sojourn webhooks add URL` makes a webhook."
    shell.table(("WEBHOOK", "STATE", "EVENTS", "URL"), rows, empty=none)
    return OK


def _state(one: Json) -> str:
    if one["disabled_at"]:
        return f"disabled ({one['disabled_code']})"
    return f"failing since {ago(one['failing_since'])}" if one["failing_since"] else "active"


def test(args: Namespace, shell: Shell) -> int:
    """Send a message that means nothing, and say how it went."""
    client, path = shell.client(), f"/v1/webhooks/{segment(args.webhook)}"
    sent = client.post(f"{path}/test", {})
    until = time.monotonic() + TEST_S
    while sent["state"] == "waiting" and not sent["error"] and time.monotonic() < until:
        time.sleep(TEST_TRY_S)
        sent = _found(client, path, sent)
    shell.print_json(sent) if args.json else shell.out.line(f"{sent['id']} {_how(sent)}")
    if not sent["attempted_at"]:
        shell.err.line("No worker has sent it yet. `sojourn worker` starts one.", "dim")
    return OK if sent["state"] == "delivered" else FAILED


def _found(client: Client, path: str, sent: Json) -> Json:
    """The same delivery as it stands now."""
    newest = client.get(f"{path}/deliveries", limit=200)["data"]
    return next((one for one in newest if one["id"] == sent["id"]), sent)


def _how(sent: Json) -> str:
    if sent["state"] == "delivered":
        return f"was taken with {sent['status']}"
    return f"is {sent['state']}: {sent['error'] or 'not sent yet'}"


def remove(args: Namespace, shell: Shell) -> int:
    """Delete a webhook."""
    answer = shell.client().json("DELETE", f"/v1/webhooks/{segment(args.webhook)}")
    shell.print_json(answer) if args.json else shell.out.line(f"{args.webhook} is removed, and what waited for it")
    return OK


def enable(args: Namespace, shell: Shell) -> int:
    """Let a webhook be sent events again."""
    return _switched(args, shell, disabled=False)


def disable(args: Namespace, shell: Shell) -> int:
    """Let a webhook be sent nothing."""
    return _switched(args, shell, disabled=True)


def _switched(args: Namespace, shell: Shell, *, disabled: bool) -> int:
    body = json.dumps({"disabled": disabled}).encode()
    path = f"/v1/webhooks/{segment(args.webhook)}"
    changed = shell.client().json("PATCH", path, body=body, headers=JSON_TYPE)
    shell.print_json(changed) if args.json else shell.out.line(f"{args.webhook} is {_state(changed)}")
    return OK


def deliveries(args: Namespace, shell: Shell) -> int:
    """Show what was sent, or is to be."""
    path = f"/v1/webhooks/{segment(args.webhook)}/deliveries"
    found = list(shell.client().pages(path, limit=args.limit, state=args.state))
    if args.json:
        shell.print_json({"data": found})
        return OK
    heads = ("DELIVERY", "EVENT", "MADE", "STATE", "ATTEMPTS", "LAST ANSWER")
    rows = [_row(one) for one in found]
    shell.table(heads, rows, empty=f"There is none. `sojourn webhooks test {args.webhook}` sends one.")
    return OK


def _row(one: Json) -> tuple[str, ...]:
    state = f"{one['state']}, next {ahead(one['next_at'])}" if one["next_at"] else one["state"]
    answer = one["error"] or str(one["status"] or "-")
    return one["id"], one["type"], ago(one["created_at"]), state, str(one["attempts"]), one_line(answer, 100)


def retry(args: Namespace, shell: Shell) -> int:
    """Send deliveries once more."""
    body = {"deliveries": args.deliveries} if args.deliveries else {}
    answer = shell.client().post(f"/v1/webhooks/{segment(args.webhook)}/retry", body)
    shell.print_json(answer) if args.json else shell.out.line(f"{answer['retried']} are sent once more")
    return OK


COMMANDS = {
    "webhooks": Group(
        "Have events sent to a server of yours",
        {
            "add": Command(
                "Make a webhook and print its secret, once",
                add,
                flags=(
                    flag("url", metavar="URL", help="where messages are posted to"),
                    EVENT,
                    flag("--description", metavar="TEXT", default="", help="what it is for"),
                    JSON,
                ),
                about=ADD,
                examples=(
                    "sojourn webhooks add https://example.org/sojourn",
                    "sojourn webhooks add https://example.org/alerts --event 'alert.*' --event run.failed",
                ),
            ),
            "list": Command("List the webhooks", list_webhooks, flags=(JSON,), examples=("sojourn webhooks list",)),
            "test": Command(
                "Send a message, and say how it went",
                test,
                flags=(WEBHOOK, JSON),
                about="The message has the type webhook.test. The exit code is 1 where it was not taken within 15 s.",
                examples=("sojourn webhooks test whk_01J...",),
            ),
            "deliveries": Command(
                "List what was sent in the last seven days, or is to be",
                deliveries,
                flags=(
                    WEBHOOK,
                    flag("--state", choices=("waiting", "delivered", "dead"), help="only these"),
                    flag("--limit", metavar="N", type=int, default=50, help="how many (50)"),
                    JSON,
                ),
                about="A delivery that failed for about a day is dead: it is not sent again by itself.",
                examples=("sojourn webhooks deliveries whk_01J... --state dead",),
            ),
            "retry": Command(
                "Send dead deliveries once more",
                retry,
                flags=(
                    WEBHOOK,
                    flag("deliveries", metavar="DELIVERY", nargs="*", help="these, dead or not; all dead ones if none"),
                    JSON,
                ),
                examples=("sojourn webhooks retry whk_01J...", "sojourn webhooks retry whk_01J... msg_01J..."),
            ),
            "disable": Command(
                "Send it nothing, and give up what waits for it",
                disable,
                flags=(WEBHOOK, JSON),
                examples=("sojourn webhooks disable whk_01J...",),
            ),
            "enable": Command(
                "Send it events again",
                enable,
                flags=(WEBHOOK, JSON),
                about="Also what the server has disabled, once its receiver is mended.",
                examples=("sojourn webhooks enable whk_01J...",),
            ),
            "replace-secret": Command(
                "Give a webhook another secret and print it, once",
                replace_secret,
                flags=(
                    WEBHOOK,
                    flag("--overlap", metavar="TIME", default="1d", help="how long both are good: 15m, 2h, 3d (1d)"),
                    JSON,
                ),
                about="Until then messages have a signature of each, and a receiver that knows either takes them.",
                examples=(
                    "sojourn webhooks replace-secret whk_01J... --overlap 2h",
                    "sojourn webhooks replace-secret whk_01J... --overlap 0s",
                ),
            ),
            "remove": Command(
                "Delete a webhook and what waits for it",
                remove,
                flags=(WEBHOOK, JSON),
                examples=("sojourn webhooks remove whk_01J...",),
            ),
        },
    )
}
