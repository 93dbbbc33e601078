-- Slaves that are to leave: drained, and removed when their connections have ended or the time is up. What a panel was told goes on
-- when it is started anew; what has ended is kept for who asks how.
CREATE TABLE removal (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    cluster      TEXT    NOT NULL,
    server       TEXT    NOT NULL,
    actor        TEXT    NOT NULL,
    owner        TEXT    NOT NULL,
    begun_at     INTEGER NOT NULL,
    -- How long the connections may take, in seconds, and when that ends: in seconds since this boot of the panel's machine.
    time_max_s   INTEGER NOT NULL,
    boot_id      TEXT    NOT NULL,
    until_boot_s INTEGER NOT NULL,
    -- running, done, cancelled or failed
    state        TEXT    NOT NULL,
    detail       TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX removal_running ON removal (server) WHERE state = 'running';
