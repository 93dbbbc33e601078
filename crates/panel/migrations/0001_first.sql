-- The panel's store. Times are seconds since 1970; bodies are JSON.

-- One row: which life of the store this is, the last revision given, the next uid, the last command's number.
CREATE TABLE meta (
    one           INTEGER PRIMARY KEY CHECK (one = 1),
    incarnation   INTEGER NOT NULL,
    revision      INTEGER NOT NULL,
    fleet_revision INTEGER NOT NULL,
    uid_next      INTEGER NOT NULL,
    command_last  INTEGER NOT NULL
) STRICT;

-- Servers, clusters, shares, addresses and logical servers: few, read whole at the start, checked as one value.
CREATE TABLE object (
    kind        TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    owner       TEXT    NOT NULL,
    version     INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    body        TEXT    NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE account (
    name           TEXT    PRIMARY KEY,
    uid            INTEGER NOT NULL UNIQUE,
    logical_server TEXT    NOT NULL,
    owner          TEXT    NOT NULL,
    cpu_percent    INTEGER NOT NULL,
    memory_mib     INTEGER NOT NULL,
    processes      INTEGER NOT NULL,
    io_weight      INTEGER NOT NULL,
    php            TEXT    NOT NULL,
    state          TEXT    NOT NULL,
    version        INTEGER NOT NULL,
    created_at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX account_by_logical_server ON account (logical_server, name);

CREATE TABLE site (
    name          TEXT    PRIMARY KEY,
    account       TEXT    NOT NULL REFERENCES account (name),
    owner         TEXT    NOT NULL,
    document_root TEXT    NOT NULL,
    version       INTEGER NOT NULL,
    created_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX site_by_account ON site (account, name);

-- Every host name that a site answers under, once over the whole panel; place 0 is the site's own name.
CREATE TABLE host_name (
    host  TEXT    PRIMARY KEY,
    site  TEXT    NOT NULL REFERENCES site (name) ON DELETE CASCADE,
    place INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX host_name_by_site ON host_name (site, place);

-- A cluster's stream of states: its spec's revision and digest; where its change-log begins and ends.
CREATE TABLE stream (
    cluster       TEXT    PRIMARY KEY,
    spec_revision INTEGER NOT NULL,
    spec_digest   BLOB    NOT NULL,
    floor         INTEGER NOT NULL,
    head          INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The change-log of the directory, for each cluster that a change concerns.
CREATE TABLE change (
    cluster  TEXT    NOT NULL,
    revision INTEGER NOT NULL,
    body     TEXT    NOT NULL,
    PRIMARY KEY (cluster, revision)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    actor    TEXT    NOT NULL,
    action   TEXT    NOT NULL,
    kind     TEXT    NOT NULL,
    name     TEXT    NOT NULL,
    revision INTEGER NOT NULL,
    before   TEXT,
    after    TEXT
) STRICT;

CREATE TABLE token (
    name       TEXT    PRIMARY KEY,
    role       TEXT    NOT NULL,
    owner      TEXT    NOT NULL,
    sha256     BLOB    NOT NULL UNIQUE,
    version    INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One live join token for each server.
CREATE TABLE join_token (
    server     TEXT    PRIMARY KEY,
    sha256     BLOB    NOT NULL UNIQUE,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The newest certificate of each server that has joined; only this one is accepted.
CREATE TABLE node_certificate (
    server    TEXT    PRIMARY KEY,
    sha256    BLOB    NOT NULL,
    joined_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE event (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    server   TEXT    NOT NULL,
    severity TEXT    NOT NULL,
    topic    TEXT    NOT NULL,
    text     TEXT    NOT NULL,
    detail   TEXT    NOT NULL
) STRICT;

-- The number of the last event kept of each server: what comes again is known by it. It begins anew when the server joins again.
CREATE TABLE event_mark (
    server TEXT    PRIMARY KEY,
    number INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Answers to requests with an Idempotency-Key. status 0: not answered yet.
CREATE TABLE idempotency (
    token   TEXT    NOT NULL,
    key     TEXT    NOT NULL,
    request BLOB    NOT NULL,
    at      INTEGER NOT NULL,
    status  INTEGER NOT NULL,
    headers TEXT    NOT NULL,
    body    BLOB    NOT NULL,
    PRIMARY KEY (token, key)
) STRICT, WITHOUT ROWID;
