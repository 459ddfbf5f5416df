"""Commands for runs that move, and for the keys that they are signed with."""
