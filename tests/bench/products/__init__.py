"""Products that nobody sells: what the harness of `make bench-peers` is tested with."""
