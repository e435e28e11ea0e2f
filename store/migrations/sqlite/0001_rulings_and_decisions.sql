-- What operators rule about devices. Times are nanoseconds since 1970-01-01T00:00:00Z.
CREATE TABLE rulings (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('lock', 'exemption')),
    device TEXT NOT NULL,
    reason TEXT NOT NULL,
    made_by TEXT NOT NULL,
    made_at INTEGER NOT NULL,
    until INTEGER
) STRICT;

-- One row for each decision. Ids sort by time; `record` is a JSON object, of which the other columns are copies to search by.
CREATE TABLE decisions (
    id TEXT NOT NULL PRIMARY KEY,
    device TEXT NOT NULL,
    webhook TEXT NOT NULL,
    decision TEXT NOT NULL,
    code TEXT NOT NULL,
    record TEXT NOT NULL
) STRICT;

CREATE INDEX decisions_of_a_device ON decisions (device, id);

PRAGMA user_version = 1;
