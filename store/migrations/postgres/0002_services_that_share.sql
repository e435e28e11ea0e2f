-- What several services on one store need to hear of each other.

-- The random number of the last change of a ruling: a standby that took over without the last changes counts on from fewer of
-- them, and its changes are told by this from those that were lost.
alter table stepward.changes_of_rulings add column token bigint;

-- The last changes of rulings, by the version that they made. `what` is `made`, `forgotten` or `covers`.
create table stepward.news (
    version bigint not null,
    ruling text collate "C" not null,
    what text not null check (what in ('made', 'forgotten', 'covers')),
    token bigint not null,
    primary key (version, ruling)
);

-- The services on this store: what each has heard, and until when it answers though it hears nothing more.
create table stepward.replicas (
    id text collate "C" not null primary key,
    name text not null,
    heard bigint not null,
    until timestamptz not null
);

update stepward.schema_version set version = 2;
