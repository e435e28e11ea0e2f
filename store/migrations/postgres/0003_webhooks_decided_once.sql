-- Webhooks that were sent to any of the services on this store, for as long as the same bytes may be sent once more. `body` is the
-- SHA-256 of the body, and `webhook` and `sender` are digests of the webhook's id and of who sent it. `service` decides it, over the
-- connection of `process`. `outcome` is null while it is being decided, empty where whoever is asked has to decide it anew, and the
-- denial as JSON where it was denied.
create table stepward.webhooks (
    body bytea not null primary key check (octet_length(body) = 32),
    webhook bytea not null,
    sender bytea not null,
    mode smallint not null,
    service text collate "C" not null,
    process integer not null,
    began timestamptz not null,
    expires timestamptz not null,
    outcome text
);
create index webhooks_by_end on stepward.webhooks (expires);

update stepward.schema_version set version = 3;
