-- Several controllers share the state. Each is a member; each agent and each source is leased to one of them.
CREATE TABLE member (
    name      text PRIMARY KEY,
    instance  text NOT NULL,      -- of the process; a second process with this name has another one
    session   serial NOT NULL,    -- the number of its advisory lock
    zone      text NOT NULL,
    capacity  double precision NOT NULL,
    version   text NOT NULL,
    rules     text NOT NULL,      -- a digest of the configuration that all members must agree on
    draining  boolean NOT NULL DEFAULT false,
    to_drain  boolean NOT NULL DEFAULT false,  -- an operator's wish
    started   timestamptz NOT NULL,
    heartbeat timestamptz NOT NULL  -- by the database's clock
);

-- `term` rises with each holder, and every write about an agent names it. See core/ownership.py. A released lease has
-- no holder ('').
CREATE TABLE lease (
    kind      text NOT NULL CHECK (kind IN ('agent', 'source')),
    id        text NOT NULL,
    holder    text NOT NULL,
    term      bigint NOT NULL,
    successor text,
    ready     boolean NOT NULL DEFAULT false,
    previous  text,
    changed   timestamptz NOT NULL DEFAULT now(),  -- of the columns above
    phase     text NOT NULL DEFAULT '',
    error     text,
    message   text NOT NULL DEFAULT '',
    written   xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (kind, id)
);

-- What the holder of a source has learnt from it, in order; every member applies it.
CREATE TABLE discovery (
    id       bigserial PRIMARY KEY,
    source   text NOT NULL,
    instance text NOT NULL,       -- of the process that has learnt it
    event    text NOT NULL,
    whole    boolean NOT NULL,    -- whether what came before it no longer matters
    repeats  bigint,              -- the number of an earlier listing that says the same; `event` is then empty
    at       timestamptz NOT NULL DEFAULT now(),
    written  xid8 NOT NULL DEFAULT pg_current_xact_id()
);

-- What operators have requested of an agent's holder at another member; the holder removes it once it has acted.
CREATE TABLE request (
    id      bigserial PRIMARY KEY,
    agent   text NOT NULL,
    event   text NOT NULL,
    at      timestamptz NOT NULL DEFAULT now()
);

-- `written` is the transaction that wrote the row last. A reader asks for the rows of all transactions that had not
-- ended when it read before (pg_snapshot_xmin), and so misses none.
ALTER TABLE agent ADD COLUMN written xid8 NOT NULL DEFAULT pg_current_xact_id();
CREATE INDEX agent_written ON agent (written);
CREATE INDEX lease_written ON lease (written);
