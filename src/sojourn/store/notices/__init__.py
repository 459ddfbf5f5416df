"""What tenants are told without asking. Called by the API, and by every worker.

    webhooks    where a tenant wants events sent
    deliveries  what is sent to them: claimed, sent by the caller, and what came of it
    alerts      what is open, and the round that opens and closes
    rules       when there is something to be alert to, one kind a rule

The rule: no event without its deliveries: the database writes them in the event's own transaction (0016_notices.sql).
"""
