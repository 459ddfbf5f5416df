"""Commands that end runs, put them back, or keep them from beginning."""
