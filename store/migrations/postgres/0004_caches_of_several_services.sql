-- What services on one store tell each other of their caches of device managements.

-- How many notices there were, and the random number of the last ones. Who tells something locks this row first, so that notices come
-- one after the other, and apart from changes of rulings.
create table stepward.count_of_notices (
    one boolean not null primary key default true check (one),
    version bigint not null,
    token bigint
);
insert into stepward.count_of_notices (version) values (0);

-- The last notices, by their number. `service` is the id of the service that told it, `provider` a name of its configuration. A
-- device is a digest in `mark`, of what an event named it by; only where an operator purged one it is an identifier of `kind`.
create table stepward.notices (
    version bigint not null primary key,
    token bigint not null,
    service text collate "C" not null,
    provider text not null,
    what text not null,
    mark bigint,
    kind text,
    device text
);

-- Which service reads lists of a kind from a device management, as long as it goes on. A kind is a digest of what makes lists the same.
create table stepward.leases (
    kind text collate "C" not null primary key,
    holder text collate "C" not null,
    until timestamptz not null
);

-- Lists of devices that a service reads for all. Only one that has `ended` is whole. `since` and `started` are nanoseconds since
-- 1970-01-01T00:00:00Z by the clock of that service.
create table stepward.lists (
    id text collate "C" not null primary key,
    kind text collate "C" not null,
    since bigint,
    started bigint not null,
    begun timestamptz not null default clock_timestamp(),
    ended timestamptz,
    complete boolean,
    pages integer,
    records bigint
);
create index lists_of_a_kind on stepward.lists (kind, ended);

-- The records of lists, encoded as the release in `kind` does.
create table stepward.pages (
    list text collate "C" not null references stepward.lists (id) on delete cascade,
    number integer not null,
    content bytea not null,
    primary key (list, number)
);

update stepward.schema_version set version = 4;
