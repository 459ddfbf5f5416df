-- Calls to judges: models that say for a guardrail whether a text breaks its criteria.
--
--   ledger.judge   the call was one of these, and no reply of an agent
--
-- A release that does not know it writes the default.

alter table ledger add column judge boolean not null default false;
