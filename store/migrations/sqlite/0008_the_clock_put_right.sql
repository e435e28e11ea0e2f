-- By how many nanoseconds the proven time was put right, in sum, and how much of that the ends of a ruling have heeded: what was
-- corrected since moves them.
ALTER TABLE clock ADD COLUMN corrected INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rulings ADD COLUMN corrected INTEGER NOT NULL DEFAULT 0;

PRAGMA user_version = 8;
