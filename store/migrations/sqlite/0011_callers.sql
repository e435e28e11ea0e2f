-- SHA-256 of who called, where the record has the beginning of that alone; null where it has all of it.
ALTER TABLE decisions ADD COLUMN caller BLOB;

PRAGMA user_version = 11;
