-- The kind of a ruling's identifier; null, which only a lock has, is any. Whoever made an exemption before there were kinds
-- meant the serial number, which is what requests state where a webhook says nothing else.
ALTER TABLE rulings ADD COLUMN identifier_kind TEXT;
UPDATE rulings SET identifier_kind = 'serial' WHERE kind = 'exemption';

PRAGMA user_version = 4;
