"""`python -m sojourn.cli` is the console script `sojourn`."""

from sojourn.cli import main

raise SystemExit(main())
