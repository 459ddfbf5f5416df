"""Writes docs/continuation-v1.schema.json from the types. `make schema` calls it."""

import json
from pathlib import Path

from sojourn.loop.moving.document import schema

PAGE = Path(__file__).parent.parent / "docs" / "continuation-v1.schema.json"

if __name__ == "__main__":
    PAGE.write_text(json.dumps(schema(), indent=2) + "\n")
