-- These tables are those of SQLite's schema; lists are JSON texts, as there.
CREATE TABLE agent (
    id          text PRIMARY KEY,
    incarnation text NOT NULL,
    source      text NOT NULL,
    "group"     text NOT NULL,
    name        text NOT NULL,
    addresses   text NOT NULL,
    port        integer NOT NULL,
    labels      text NOT NULL,
    first_seen  double precision NOT NULL,  -- seconds since the epoch, as every time here
    changed     double precision NOT NULL,
    present     integer NOT NULL,
    history     text NOT NULL
);
CREATE TABLE pin (
    agent       text PRIMARY KEY REFERENCES agent (id) ON DELETE CASCADE,
    incarnation text NOT NULL,
    method      text NOT NULL,
    keys        text NOT NULL,
    detail      text NOT NULL,
    possessed   text NOT NULL
);
CREATE TABLE quarantine (
    agent       text PRIMARY KEY REFERENCES agent (id) ON DELETE CASCADE,
    since       double precision NOT NULL,
    code        text NOT NULL,
    message     text NOT NULL,
    disputed    text NOT NULL,
    examined    integer NOT NULL
);
CREATE TABLE seed (
    id          text PRIMARY KEY,
    "key"       text NOT NULL,
    expires     double precision NOT NULL,
    holder      text,
    incarnation text NOT NULL
);
