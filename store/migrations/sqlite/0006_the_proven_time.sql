-- The last proven time, by which a start knows whether to believe the system's clock.
CREATE TABLE clock (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    proven INTEGER NOT NULL
) STRICT;

-- Where an exemption was made while the system's clock was ahead of the proven time: its end by the latter.
ALTER TABLE rulings ADD COLUMN proven_until INTEGER;

PRAGMA user_version = 6;
