"""What an operator does for the day on which something is lost or leaks: backup, restore, and new keys."""
