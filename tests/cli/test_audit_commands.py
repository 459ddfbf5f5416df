"""`sojourn audit` against a real server, an export without one, and the operator's own chain without a key."""

from pathlib import Path

import msgspec
from console_script import operators
from tests.installation import Installation


async def test_the_log_is_listed_exported_and_verified_with_and_without_a_server(
    installation: Installation, data_dir: Path, tmp_path: Path
) -> None:
    sojourn = operators(data_dir, installation.url)
    assert (await sojourn("keys", "create", "ci\x1b[2J")).code == 0
    assert (await sojourn("stop", "--user", "mallory", "--reason", "the key leaked")).code == 0
    assert (await sojourn("tenants", "set", "default", "--runs-max", "5")).code == 0
    listed = (await sojourn("audit", "list", "--json")).json["data"]
    assert [row["action"] for row in listed] == ["tenant.set", "stop.create", "key.create", "tenant.create"]
    assert [row["operator"] for row in listed] == [True, True, False, True]
    assert listed[0]["user_id"].count("@") == 1
    table = (await sojourn("audit", "list", "--action", "tenant.set", "--since", "12h")).out.splitlines()
    assert table[0].split() == ["ROW", "WHEN", "WHO", "DID", "TO", "MORE"]
    assert table[1].startswith("4 ") and "(operator)" in table[1] and table[1].endswith("runs_max=5")
    none = await sojourn("audit", "list", "--user", "nobody")
    assert (none.code, none.err) == (0, "No row is like that; `sojourn audit list` without filters shows all.\n")

    head = (await sojourn("audit", "head")).out.strip()
    assert head.startswith("4:")
    export, other = tmp_path / "audit.jsonl", operators(data_dir, "http://127.0.0.1:1")
    export.write_text((await sojourn("audit", "export")).out)
    assert (await sojourn("audit", "verify")).out == f"4 rows, each as it was written. The head is {head}\n"
    for words in ((), ("--from", head)):
        assert (await other("audit", "verify", str(export), *words)).code == 0
    assert (await sojourn("audit", "verify", "--from", head, "--json")).json == {
        "ok": True, "rows": 4, "head": head, "bad": None, "why": None
    }  # fmt: skip
    await sojourn("keys", "create", "another")
    export.write_text(export.read_text() + (await sojourn("audit", "export", "--after", "4")).out)
    assert (await other("audit", "verify", str(export), "--from", head, "--json")).json["rows"] == 5

    export.write_text(export.read_text().replace('"runs_max":"5"', '"runs_max":"6"'))
    bad = await other("audit", "verify", str(export))
    assert (bad.code, bad.out) == (1, "Row 4 is bad: its hash does not fit: it was changed, or row 3 was.\n")
    told = await other("audit", "verify", str(export), "--json")
    assert (told.code, told.json["ok"], told.json["bad"], told.json["rows"]) == (1, False, 4, 3)
    for words in (("--from", "x"), ("--operator",), (str(tmp_path / "none"),)):
        assert (await other("audit", "verify", *words, *([str(export)] if words[0][0] == "-" else []))).code == 2, words
    export.write_text("no row\n")
    assert (await other("audit", "verify", str(export))).err == "sojourn: Line 1 is no row of an export.\n"
    assert (await other("audit", "list")).code == 3


async def test_the_operators_chain_needs_no_key_and_no_server(installation: Installation, data_dir: Path) -> None:
    sojourn = operators(data_dir, "http://127.0.0.1:1")
    made = (await sojourn("stop", "--all", "--hold", "--json")).json
    assert (await sojourn("keys", "recover")).code == 0
    for wrong in (
        "list --limit 0",
        "list --limit 99999999999999999999",
        "export --after -1",
        f"export --after {2**63}",
    ):
        refused = await sojourn("audit", *wrong.split(), "--operator")
        assert (refused.code, refused.err.count("\n")) == (2, 1), wrong
    rows = (await sojourn("audit", "list", "--operator", "--json", "--limit", "2")).json["data"]
    assert [(row["n"], row["action"]) for row in rows] == [(3, "key.recover"), (2, "stop.create")]
    assert (rows[0]["detail"]["tenant"], rows[1]["subject"]) == ("default", made["id"])
    lines = [msgspec.json.decode(line) for line in (await sojourn("audit", "export", "--operator")).out.splitlines()]
    assert lines[1:-1] == rows[::-1]
    head = (await sojourn("audit", "head", "--operator", "--json")).json
    assert lines[-1] == {"head": head}
    verified = await sojourn("audit", "verify", "--operator", "--from", f"{head['n']}:{head['hash']}")
    assert (verified.code, verified.out.split(",")[0]) == (0, "3 rows")
    ours = (await operators(data_dir, installation.url)("audit", "list", "--json")).json["data"]
    assert [row["action"] for row in ours] == ["key.recover", "tenant.create"], "a stop of everything is no tenant's"
