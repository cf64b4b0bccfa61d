-- The secret of the proofs that agents bring back, such as those in the locations of uploads. The first start makes it.
CREATE TABLE secret (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    value    bytea NOT NULL
);
