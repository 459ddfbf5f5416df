"""What a stop names, as conditions of SQL: `s` is the stop, `r` a run, `z` a session. Read by whoever asks.

The rule: the trigger of 0010_stops.sql asks the same of a new run.
"""

NAMES_RUN = """s.tenant in (r.tenant, '*') and s.target = case s.what
    when 'run' then r.id when 'session' then r.session_id when 'agent' then r.agent_name when 'user' then r.user_id
    else '' end"""

# The sandbox of a session that another run uses meanwhile is not the stop's.
NAMES_SESSION = f"""s.tenant in (z.tenant, '*') and (
    s.target = case s.what when 'session' then z.id when 'user' then z.user_id else '' end
    or s.what in ('run', 'agent', 'user') and exists (
        select from run r where r.tenant = z.tenant and r.session_id = z.id and {NAMES_RUN}
    ) and not exists (
        select from run r
        where r.tenant = z.tenant and r.session_id = z.id and r.finished_at is null and not ({NAMES_RUN})
    )
)"""
