-- Which workers this server has seen take their lock.
--
-- Unlogged on purpose: a server that has crashed, or was a replica until now, knows nothing of the locks that there were,
-- and this table is then as empty. So nobody is taken for dead for a lock that this server never held for him.

create unlogged table worker_lock (
    worker  text primary key references worker on delete cascade
);
grant select, insert on worker_lock to sojourn_engine;
