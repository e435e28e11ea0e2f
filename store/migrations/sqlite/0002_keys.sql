-- The device that each public key was allowed for. `sha256` is that of the key's SubjectPublicKeyInfo, `device` is the
-- identifier in the form in which identifiers are compared. The better `trust` is, the greater. Times are as in `rulings`.
CREATE TABLE keys (
    sha256 BLOB NOT NULL PRIMARY KEY CHECK (length(sha256) = 32),
    kind TEXT NOT NULL,
    identifier TEXT NOT NULL,
    device TEXT NOT NULL,
    trust INTEGER NOT NULL,
    allowed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX keys_by_time ON keys (allowed_at);

PRAGMA user_version = 2;
