-- The job API and identity: projects, members, tokens, audit, webhooks, archived logs; jobs gain submitter, job set and pausing.

CREATE TABLE projects (
    project TEXT NOT NULL,
    title TEXT DEFAULT '' NOT NULL,
    priority_max INTEGER DEFAULT '1000' NOT NULL CONSTRAINT ck_projects_priority_max CHECK (priority_max BETWEEN 0 AND 1000),
    creator TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    deleted_at TIMESTAMP WITH TIME ZONE,
    version BIGINT DEFAULT '1' NOT NULL,
    CONSTRAINT pk_projects PRIMARY KEY (project)
);

-- Until now a project came to be by being named.
INSERT INTO projects (project, creator)
SELECT project, 'system:migration' FROM (
    SELECT project FROM jobs UNION SELECT project FROM datasets UNION SELECT project FROM quotas UNION SELECT project FROM model_versions
) AS named;

CREATE TABLE members (
    project TEXT NOT NULL,
    subject TEXT NOT NULL,
    role TEXT NOT NULL CONSTRAINT ck_members_role CHECK (role IN ('VIEWER','SUBMITTER','MAINTAINER','APPROVER')),
    grantor TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_members PRIMARY KEY (project, subject),
    CONSTRAINT fk_members_project FOREIGN KEY(project) REFERENCES projects (project)
);

CREATE INDEX ix_members_subject ON members (subject);

CREATE TABLE organisation_members (
    subject TEXT NOT NULL,
    role TEXT NOT NULL CONSTRAINT ck_organisation_members_role CHECK (role IN ('ORG_ADMIN','AUDITOR')),
    grantor TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_organisation_members PRIMARY KEY (subject)
);

CREATE TABLE tokens (
    token_id UUID NOT NULL,
    project TEXT,
    name TEXT NOT NULL,
    role TEXT NOT NULL CONSTRAINT ck_tokens_role CHECK (role IN ('VIEWER','SUBMITTER','MAINTAINER','APPROVER','ORG_ADMIN','AUDITOR','WORKER')),
    secret_sha256 BYTEA NOT NULL,
    creator TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE,
    last_used_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_tokens PRIMARY KEY (token_id),
    CONSTRAINT ck_tokens_scope CHECK ((project IS NULL) = (role IN ('ORG_ADMIN','AUDITOR','WORKER'))),
    CONSTRAINT fk_tokens_project FOREIGN KEY(project) REFERENCES projects (project)
);

CREATE INDEX ix_tokens_listing ON tokens (project, created_at DESC, token_id DESC);

CREATE TABLE audit_records (
    record_id UUID NOT NULL,
    inserted BIGINT GENERATED ALWAYS AS IDENTITY,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    principal TEXT NOT NULL,
    method TEXT NOT NULL,
    project TEXT NOT NULL,
    object TEXT NOT NULL,
    code TEXT NOT NULL,
    reason TEXT NOT NULL,
    request_id TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    peer TEXT NOT NULL,
    count BIGINT NOT NULL CONSTRAINT ck_audit_records_count CHECK (count >= 1),
    leaf BYTEA NOT NULL,
    CONSTRAINT pk_audit_records PRIMARY KEY (record_id)
);

CREATE INDEX ix_audit_records_inserted ON audit_records (inserted);

CREATE TABLE audit_links (
    record_id UUID NOT NULL,
    project TEXT NOT NULL,
    position BIGINT,
    hash BYTEA,
    CONSTRAINT pk_audit_links PRIMARY KEY (record_id),
    CONSTRAINT uq_audit_links_position UNIQUE (position),
    CONSTRAINT ck_audit_links_linked CHECK ((position IS NULL) = (hash IS NULL))
);

CREATE INDEX ix_audit_links_unlinked ON audit_links (record_id) WHERE position IS NULL;

CREATE INDEX ix_audit_links_project_position ON audit_links (project, position);

-- Whoever inserts a record, it waits for its link from then on.
CREATE FUNCTION audit_records_wait_for_their_links() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO audit_links (record_id, project) SELECT record_id, project FROM inserted_records; RETURN NULL; END $$;

CREATE TRIGGER wait_for_links AFTER INSERT ON audit_records REFERENCING NEW TABLE AS inserted_records
FOR EACH STATEMENT EXECUTE FUNCTION audit_records_wait_for_their_links();

CREATE TABLE webhooks (
    webhook_id UUID NOT NULL,
    project TEXT NOT NULL,
    url TEXT NOT NULL,
    states TEXT[] NOT NULL,
    job_set TEXT DEFAULT '' NOT NULL,
    creator TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    deleted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_webhooks PRIMARY KEY (webhook_id),
    CONSTRAINT fk_webhooks_project FOREIGN KEY(project) REFERENCES projects (project)
);

CREATE INDEX ix_webhooks_listing ON webhooks (project, created_at DESC, webhook_id DESC);

CREATE TABLE webhook_deliveries (
    delivery_id UUID NOT NULL,
    webhook_id UUID NOT NULL,
    job_id UUID NOT NULL,
    body TEXT NOT NULL,
    state TEXT NOT NULL CONSTRAINT ck_webhook_deliveries_state CHECK (state IN ('PENDING','DELIVERED','FAILED')),
    tries INTEGER DEFAULT '0' NOT NULL,
    last_result TEXT DEFAULT '' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    next_try_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_webhook_deliveries PRIMARY KEY (delivery_id),
    CONSTRAINT uq_webhook_deliveries_webhook_id_job_id UNIQUE (webhook_id, job_id),
    CONSTRAINT fk_webhook_deliveries_webhook_id FOREIGN KEY(webhook_id) REFERENCES webhooks (webhook_id)
);

CREATE INDEX ix_webhook_deliveries_due ON webhook_deliveries (webhook_id, next_try_at) WHERE state = 'PENDING';

CREATE INDEX ix_webhook_deliveries_listing ON webhook_deliveries (webhook_id, created_at DESC, delivery_id DESC);

CREATE TABLE log_archives (
    job_id UUID NOT NULL,
    attempt INTEGER NOT NULL,
    first_sequence BIGINT NOT NULL,
    last_sequence BIGINT NOT NULL,
    uri TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_log_archives PRIMARY KEY (job_id, attempt, first_sequence),
    CONSTRAINT fk_log_archives_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id)
);

ALTER TABLE jobs ADD COLUMN submitter TEXT DEFAULT '' NOT NULL;

ALTER TABLE jobs ADD COLUMN job_set TEXT DEFAULT '' NOT NULL;

ALTER TABLE jobs ADD COLUMN rerun_of UUID;

ALTER TABLE jobs ADD COLUMN pauses INTEGER DEFAULT '0' NOT NULL;

ALTER TABLE jobs DROP CONSTRAINT ck_jobs_state;

ALTER TABLE jobs ADD CONSTRAINT ck_jobs_state CHECK (state IN ('QUEUED','STARTING','RUNNING','PAUSING','PAUSED','CANCELLING','SUCCEEDED','FAILED','CANCELLED'));

DROP INDEX ix_jobs_open;

CREATE INDEX ix_jobs_open ON jobs (project) WHERE state IN ('STARTING','RUNNING','PAUSING','PAUSED','CANCELLING');

CREATE INDEX ix_jobs_job_set ON jobs (project, job_set, created_at DESC, job_id DESC) WHERE job_set <> '';

CREATE INDEX ix_jobs_listing_all ON jobs (created_at DESC, job_id DESC);

CREATE INDEX ix_jobs_listing_state ON jobs (project, state, created_at DESC, job_id DESC);

CREATE INDEX ix_jobs_listing_priority ON jobs (project, priority DESC, job_id DESC);

CREATE INDEX ix_jobs_listing_update ON jobs (project, updated_at DESC, job_id DESC);

-- A repeat is recognised per principal and project: nobody learns of another's request ids.
ALTER TABLE idempotency_keys ADD COLUMN principal TEXT DEFAULT '' NOT NULL;

ALTER TABLE idempotency_keys DROP CONSTRAINT pk_idempotency_keys;

ALTER TABLE idempotency_keys ADD CONSTRAINT pk_idempotency_keys PRIMARY KEY (project, principal, request_id);

-- Responses of batches are long and do not compress.
ALTER TABLE idempotency_keys ALTER COLUMN response SET STORAGE EXTERNAL;

-- Rows of these two are written in the transaction of their job, thousands at a time; looking each job up again costs more than it tells.
ALTER TABLE job_events DROP CONSTRAINT fk_job_events_job_id;

ALTER TABLE outbox DROP CONSTRAINT fk_outbox_job_id;

DROP INDEX ix_job_events_project_position;

CREATE INDEX ix_job_events_project_position ON job_events (project, position) WHERE position IS NOT NULL;

-- What lies before this position is kept no more.
ALTER TABLE event_log_head ADD COLUMN oldest_position BIGINT DEFAULT '0' NOT NULL;

ALTER TABLE job_events ADD COLUMN job_set TEXT DEFAULT '' NOT NULL;

CREATE INDEX ix_job_events_job_set_position ON job_events (project, job_set, position) WHERE position IS NOT NULL AND job_set <> '';

-- What earlier jobs found out about a dataset. Only prepared jobs are in it, so a submit does not touch it.
CREATE INDEX ix_jobs_prepared ON jobs (project, (spec -> 'dataset' ->> 'sha256'), created_at DESC) WHERE result ? 'prepare';

CREATE INDEX ix_job_events_final ON job_events (created_at) WHERE state IN ('SUCCEEDED','FAILED','CANCELLED');
