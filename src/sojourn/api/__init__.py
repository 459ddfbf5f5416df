"""HTTP in: parse, ask the store, answer. It never runs a loop: it writes rows, rings doorbells and follows the journal.

app         builds the application from its parts      route       what one route is, and what a handler gets
http        the guard round every handler: requests in, answers and problems out
agents, runs, schedules, events, sessions, approvals, keys, offers, operations     the handlers, by noun
reference   /openapi.json and /docs, made from the routes
"""
