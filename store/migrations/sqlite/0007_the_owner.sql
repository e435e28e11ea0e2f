-- Which lock file keeps other services out: where it was removed and made anew, a start looks whether somebody else has the
-- database open.
CREATE TABLE owner (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    device INTEGER NOT NULL,
    inode INTEGER NOT NULL
) STRICT;

PRAGMA user_version = 7;
