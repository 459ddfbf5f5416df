-- Deltas may be lost with the server; their numbers may not. Streams ask for what is above the last number that they saw,
-- and an unlogged sequence begins anew after a crash or on another server.

alter sequence delta_id_seq set logged;
