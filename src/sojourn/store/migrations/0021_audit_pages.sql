-- The audit log by what was done and by who did it: a page of few rows among many is found, not looked for.

create index audit_action on audit (tenant, action collate "C", n);
create index audit_user on audit (tenant, user_id, n);
