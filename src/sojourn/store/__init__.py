"""PostgreSQL, and the only room with SQL. Called by everything above it; rule: an error leaves it as a SojournError."""
