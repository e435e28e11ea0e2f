-- The store, as it is in SQLite after all of its migrations. Texts with the character NUL are kept as `postgres/text.rs` says, and
-- texts that are ordered are so by their bytes. Times are nanoseconds since 1970-01-01T00:00:00Z.

-- What operators rule about devices. The kind of the identifier is null where it is any, which only a lock has.
create table stepward.rulings (
    id text collate "C" not null primary key,
    kind text not null check (kind in ('lock', 'exemption')),
    identifier_kind text,
    device text not null,
    reason text not null,
    made_by text not null,
    made_at bigint not null,
    until bigint,
    proven_until bigint,
    corrected bigint not null
);

-- What locks cover besides the identifiers that they were made by.
create table stepward.covers (
    ruling text collate "C" not null references stepward.rulings (id) on delete cascade,
    mark bigint not null,
    primary key (ruling, mark)
);

-- Rulings that were forgotten lately: a write that was given up as too slow may arrive when its ruling was taken back, and must not
-- bring it back.
create table stepward.forgotten (
    id text collate "C" not null primary key,
    at timestamptz not null default now()
);

-- How many changes were made to rulings. Who changes one locks this row first, so that changes come one after the other.
create table stepward.changes_of_rulings (
    one boolean not null primary key default true check (one),
    version bigint not null
);
insert into stepward.changes_of_rulings (version) values (0);

-- What is written before somebody is let in by a ruling that is made or taken back: that it is taken shows that the store answers.
-- It means nothing.
create table stepward.attempt (
    one boolean not null primary key default true check (one),
    filling bytea not null
);
alter table stepward.attempt alter column filling set storage external;
insert into stepward.attempt (filling) values ('');

-- One row for each decision, in the order in which they were written. `record` is a JSON object, of which the other columns are
-- copies to search by. `caller_digest` is SHA-256 of who called, where `caller` is the beginning of that alone.
create table stepward.decisions (
    seq bigint generated always as identity primary key,
    id text collate "C" not null unique,
    device text collate "C" not null,
    webhook text not null,
    decision text not null,
    code text not null,
    inputs text not null,
    caller text,
    caller_digest bytea,
    record text not null
);
create index decisions_of_a_device on stepward.decisions (device, id);

-- The device that each public key was allowed for. `sha256` is that of the key's SubjectPublicKeyInfo, `device` is the identifier in
-- the form in which identifiers are compared. The better `trust` is, the greater.
create table stepward.keys (
    sha256 bytea not null primary key check (octet_length(sha256) = 32),
    kind text not null,
    identifier text not null,
    device text not null,
    trust bigint not null,
    allowed_at bigint not null
);
create index keys_by_time on stepward.keys (allowed_at);

-- Which identifiers stood in one record, in both directions, the last seen last. `a` and `b` are digests of an identifier and its
-- kind. Each write takes as many numbers at once as it may have pairs.
create sequence stepward.links_seen increment by 4096;
create table stepward.links (
    a bigint not null,
    b bigint not null,
    seen bigint not null,
    primary key (a, b)
);
create unique index links_by_time on stepward.links (seen);

-- The last proven time, by which a start knows whether to believe the system's clock, and by how many nanoseconds it was put right.
create table stepward.clock (
    one boolean not null primary key default true check (one),
    proven bigint not null,
    corrected bigint not null
);

update stepward.schema_version set version = 1;
