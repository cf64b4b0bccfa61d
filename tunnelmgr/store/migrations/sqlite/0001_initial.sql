-- Agents as last described, so that a start goes on before any cloud has answered.
CREATE TABLE agent (
    id          TEXT PRIMARY KEY,
    incarnation TEXT NOT NULL,
    source      TEXT NOT NULL,
    "group"     TEXT NOT NULL,
    name        TEXT NOT NULL,
    addresses   TEXT NOT NULL,  -- JSON array, in order of preference
    port        INTEGER NOT NULL,
    labels      TEXT NOT NULL,  -- JSON array of [name, value]
    first_seen  REAL NOT NULL,  -- seconds since the epoch, as every time here
    changed     REAL NOT NULL,
    present     INTEGER NOT NULL,
    history     TEXT NOT NULL   -- JSON array of [at, step, detail, uid, count, since], oldest first
) STRICT;

-- What was last believed of an incarnation: evidence that can be had once only, and the measure for what comes later.
CREATE TABLE pin (
    agent       TEXT PRIMARY KEY REFERENCES agent (id) ON DELETE CASCADE,
    incarnation TEXT NOT NULL,
    method      TEXT NOT NULL,
    keys        TEXT NOT NULL,  -- JSON array of "type base64"
    detail      TEXT NOT NULL,
    possessed   TEXT NOT NULL   -- JSON array of the keys that the agent has shown in a handshake
) STRICT;

CREATE TABLE quarantine (
    agent       TEXT PRIMARY KEY REFERENCES agent (id) ON DELETE CASCADE,
    since       REAL NOT NULL,
    code        TEXT NOT NULL,
    message     TEXT NOT NULL,
    disputed    TEXT NOT NULL,  -- JSON array of the keys over which a handshake may still decide
    examined    INTEGER NOT NULL
) STRICT;

-- Host keys made for machines that are to be launched; the private halves are never here.
CREATE TABLE seed (
    id          TEXT PRIMARY KEY,
    "key"       TEXT NOT NULL,  -- "type base64"
    expires     REAL NOT NULL,
    holder      TEXT,           -- the agent that it has proved
    incarnation TEXT NOT NULL
) STRICT;
