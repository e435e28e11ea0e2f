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

update stepward.schema_version set version = 4;
