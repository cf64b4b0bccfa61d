-- The secret of the proofs that agents bring back, such as those in the locations of uploads. The first start makes it.
CREATE TABLE secret (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    value    BLOB NOT NULL
) STRICT;
