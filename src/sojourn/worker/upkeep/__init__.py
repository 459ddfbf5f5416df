"""What a worker keeps in order beside its runs: the sandboxes of sessions, and what has expired."""
