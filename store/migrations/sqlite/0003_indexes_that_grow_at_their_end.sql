-- Pages that are changed at random cost most of what a kept decision costs. So the decisions of a device are looked for in
-- an index by time, which grows at its end only; and of a key only its digest is in the order of digests.
DROP INDEX decisions_of_a_device;
CREATE INDEX decisions_by_time ON decisions (id, device);

CREATE TABLE keys_by_digest (
    sha256 BLOB NOT NULL UNIQUE CHECK (length(sha256) = 32),
    kind TEXT NOT NULL,
    identifier TEXT NOT NULL,
    device TEXT NOT NULL,
    trust INTEGER NOT NULL,
    allowed_at INTEGER NOT NULL
) STRICT;
INSERT INTO keys_by_digest SELECT * FROM keys ORDER BY allowed_at;
DROP TABLE keys;
ALTER TABLE keys_by_digest RENAME TO keys;
CREATE INDEX keys_by_time ON keys (allowed_at);

PRAGMA user_version = 3;
