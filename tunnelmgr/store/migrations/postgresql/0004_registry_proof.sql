-- Members verify for each other that their registries are one. See core/registry_sharing.py.
CREATE TABLE registry_upload (
    writer   text NOT NULL,       -- the member that has started it in its own registry
    registry text NOT NULL,       -- the address of that registry, as in the configuration
    id       text NOT NULL,       -- another one each time that it is announced
    location text NOT NULL,       -- path and query
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (writer, registry)
);

-- The latest report of each member about each member's uploads.
CREATE TABLE registry_report (
    member   text NOT NULL,
    writer   text NOT NULL,
    registry text NOT NULL,
    upload   text NOT NULL,
    sharing  text NOT NULL,
    error    text NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (member, writer, registry)
);
