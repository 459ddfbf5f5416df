"""The commands, one file a subject. Each module declares `COMMANDS`, which the table in `sojourn.cli` names."""
