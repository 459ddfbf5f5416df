"""The guard round every handler, in the order in which a request meets it.

guard     who asks, what for; everything that goes wrong becomes a problem at one place
parse     JSON, queries and path parts into typed values
once      Idempotency-Key: the same request twice is one request
problems  errors as application/problem+json
meter     counts requests and times them
"""
