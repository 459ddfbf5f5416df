"""`sojourn audit`: who did what, and the proof that nobody changed it."""
