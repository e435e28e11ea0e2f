-- Which start wrote to the store last, by a random id that the lock file has too: the log beside a database is of this very one, or
-- it is not.
ALTER TABLE owner ADD COLUMN generation TEXT;

PRAGMA user_version = 9;
