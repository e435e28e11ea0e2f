-- What is written before somebody is let in by a ruling that is made or taken back: that it is taken shows that the store answers. It
-- means nothing, and takes as many pages as a ruling can.
CREATE TABLE attempt (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    filling BLOB NOT NULL
) STRICT;
INSERT INTO attempt (id, filling) VALUES (1, zeroblob(20000));

PRAGMA user_version = 10;
