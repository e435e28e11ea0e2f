-- Which identifiers stood in one record, in both directions, the last seen last: a lock on one of them covers the other.
-- `a` and `b` are digests of an identifier and its kind.
CREATE TABLE links (
    seen INTEGER NOT NULL PRIMARY KEY,
    a INTEGER NOT NULL,
    b INTEGER NOT NULL,
    UNIQUE (a, b)
) STRICT;

-- What locks cover besides the identifiers that they were made by.
CREATE TABLE covers (
    ruling TEXT NOT NULL,
    mark INTEGER NOT NULL,
    PRIMARY KEY (ruling, mark)
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 5;
