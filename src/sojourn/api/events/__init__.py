"""A run's events for the caller: the journal projected, as pages and as a live stream.

public   one journal row to public events, pure          sse      events and deltas as bytes, and what is in flight
hub      one reader a run, shared by all its followers   stream   one follower's connection
routes   GET /v1/runs/{run_id}/events
"""
