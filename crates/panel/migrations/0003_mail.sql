-- What only the nodes of one mail cluster know: JSON.
CREATE TABLE mail_secret (
    cluster   TEXT PRIMARY KEY,
    host_name TEXT NOT NULL,
    body      TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE mail_domain (
    name           TEXT    PRIMARY KEY,
    account        TEXT    NOT NULL REFERENCES account (name),
    logical_server TEXT    NOT NULL,
    owner          TEXT    NOT NULL,
    state          TEXT    NOT NULL,
    -- The key that signs its mail: JSON.
    dkim           TEXT    NOT NULL,
    version        INTEGER NOT NULL,
    created_at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX mail_domain_by_account ON mail_domain (account, name);
CREATE INDEX mail_domain_by_logical_server ON mail_domain (logical_server, name);

CREATE TABLE mailbox (
    address    TEXT    PRIMARY KEY,
    domain     TEXT    NOT NULL REFERENCES mail_domain (name),
    id         INTEGER NOT NULL UNIQUE,
    password   TEXT    NOT NULL,
    quota_mib  INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    owner      TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX mailbox_by_domain ON mailbox (domain, address);

CREATE TABLE mail_alias (
    source     TEXT    PRIMARY KEY,
    domain     TEXT    NOT NULL REFERENCES mail_domain (name),
    -- JSON: a list of addresses.
    targets    TEXT    NOT NULL,
    owner      TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX mail_alias_by_domain ON mail_alias (domain, source);

-- Numbers of mailboxes, which are never given twice.
ALTER TABLE meta ADD COLUMN mailbox_next INTEGER NOT NULL DEFAULT 1;
