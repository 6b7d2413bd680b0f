-- The spine: jobs, events, outbox, leases, workers, checkpoints, logs, datasets, models, quotas, leadership.

CREATE TABLE base_models (
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    uri TEXT NOT NULL,
    format TEXT NOT NULL CONSTRAINT ck_base_models_format CHECK (format IN ('GGUF')),
    license TEXT NOT NULL,
    attribution TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_base_models PRIMARY KEY (name)
);

CREATE TABLE datasets (
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    uri TEXT NOT NULL,
    license TEXT NOT NULL,
    attribution TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_datasets PRIMARY KEY (project, name, sha256)
);

CREATE TABLE event_log_head (
    singleton SERIAL NOT NULL CONSTRAINT ck_event_log_head_singleton CHECK (singleton = 1),
    position BIGINT NOT NULL,
    CONSTRAINT pk_event_log_head PRIMARY KEY (singleton)
);

CREATE TABLE idempotency_keys (
    project TEXT NOT NULL,
    request_id UUID NOT NULL,
    method TEXT NOT NULL,
    request_sha256 TEXT NOT NULL,
    response BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (project, request_id)
);

CREATE INDEX ix_idempotency_keys_created_at ON idempotency_keys (created_at);

CREATE TABLE jobs (
    job_id UUID NOT NULL,
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    spec JSONB NOT NULL,
    spec_sha256 TEXT NOT NULL,
    inputs JSONB NOT NULL,
    priority INTEGER NOT NULL CONSTRAINT ck_jobs_priority CHECK (priority BETWEEN 0 AND 1000),
    state TEXT NOT NULL CONSTRAINT ck_jobs_state CHECK (state IN ('QUEUED','STARTING','RUNNING','CANCELLING','SUCCEEDED','FAILED','CANCELLED')),
    phase TEXT,
    waiting_reason TEXT DEFAULT '' NOT NULL,
    attempt INTEGER DEFAULT '0' NOT NULL,
    event_sequence BIGINT DEFAULT '0' NOT NULL,
    checkpoint_step INTEGER DEFAULT '0' NOT NULL,
    failure JSONB,
    result JSONB DEFAULT '{}'::jsonb NOT NULL,
    accelerator_ms JSONB DEFAULT '{}'::jsonb NOT NULL,
    trace_parent TEXT DEFAULT '' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    version BIGINT DEFAULT '1' NOT NULL,
    CONSTRAINT pk_jobs PRIMARY KEY (job_id),
    CONSTRAINT ck_jobs_ended CHECK ((ended_at IS NOT NULL) = (state IN ('SUCCEEDED','FAILED','CANCELLED')))
);

CREATE INDEX ix_jobs_listing ON jobs (project, created_at DESC, job_id DESC);

CREATE INDEX ix_jobs_open ON jobs (project) WHERE state IN ('STARTING','RUNNING','CANCELLING');

CREATE INDEX ix_jobs_queued ON jobs (priority DESC, created_at, job_id) WHERE state = 'QUEUED';

CREATE TABLE leaders (
    name TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    holder TEXT NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_leaders PRIMARY KEY (name)
);

CREATE TABLE model_aliases (
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    alias TEXT NOT NULL,
    version INTEGER NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_model_aliases PRIMARY KEY (project, model, alias)
);

CREATE TABLE quotas (
    project TEXT NOT NULL,
    max_accelerators JSONB NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_quotas PRIMARY KEY (project)
);

CREATE TABLE workers (
    name TEXT NOT NULL,
    incarnation UUID NOT NULL,
    accelerator_kind TEXT NOT NULL,
    accelerators INTEGER NOT NULL CONSTRAINT ck_workers_accelerators CHECK (accelerators >= 0),
    heartbeat_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_workers PRIMARY KEY (name)
);

CREATE TABLE checkpoints (
    job_id UUID NOT NULL,
    step INTEGER NOT NULL CONSTRAINT ck_checkpoints_step CHECK (step >= 1),
    attempt INTEGER NOT NULL,
    manifest_uri TEXT NOT NULL,
    manifest_sha256 TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_checkpoints PRIMARY KEY (job_id, step),
    CONSTRAINT fk_checkpoints_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id)
);

CREATE TABLE job_events (
    event_id BIGINT GENERATED ALWAYS AS IDENTITY,
    job_id UUID NOT NULL,
    project TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    type TEXT NOT NULL,
    state TEXT NOT NULL,
    phase TEXT,
    attempt INTEGER NOT NULL,
    detail JSONB DEFAULT '{}'::jsonb NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    position BIGINT,
    CONSTRAINT pk_job_events PRIMARY KEY (event_id),
    CONSTRAINT fk_job_events_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id)
);

CREATE UNIQUE INDEX ix_job_events_job_sequence ON job_events (job_id, sequence);

CREATE UNIQUE INDEX ix_job_events_position ON job_events (position) WHERE position IS NOT NULL;

CREATE INDEX ix_job_events_project_position ON job_events (project, position);

CREATE INDEX ix_job_events_unsequenced ON job_events (event_id) WHERE position IS NULL;

CREATE TABLE leases (
    lease_id UUID NOT NULL,
    job_id UUID NOT NULL,
    project TEXT NOT NULL,
    phase TEXT NOT NULL,
    state TEXT NOT NULL CONSTRAINT ck_leases_state CHECK (state IN ('REQUESTED','GRANTED','ENDED')),
    accelerators INTEGER NOT NULL CONSTRAINT ck_leases_accelerators CHECK (accelerators >= 1),
    accelerator_kind TEXT NOT NULL,
    priority INTEGER NOT NULL,
    max_run_seconds INTEGER NOT NULL,
    waiting_reason TEXT DEFAULT '' NOT NULL,
    requested_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    attempt INTEGER,
    worker TEXT,
    worker_incarnation UUID,
    granted_kind TEXT,
    leader_epoch BIGINT,
    granted_at TIMESTAMP WITH TIME ZONE,
    expires_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE,
    outcome TEXT,
    accelerator_ms BIGINT DEFAULT '0' NOT NULL,
    CONSTRAINT pk_leases PRIMARY KEY (lease_id),
    CONSTRAINT ck_leases_granted CHECK (state <> 'GRANTED' OR (attempt IS NOT NULL AND worker IS NOT NULL AND granted_kind IS NOT NULL AND granted_at IS NOT NULL AND expires_at IS NOT NULL)),
    CONSTRAINT fk_leases_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id)
);

CREATE INDEX ix_leases_job_id ON leases (job_id);

CREATE INDEX ix_leases_open ON leases (state, lease_id) WHERE state IN ('REQUESTED','GRANTED');

CREATE INDEX ix_leases_usage ON leases (project, granted_kind) WHERE state = 'ENDED';

CREATE TABLE log_chunks (
    job_id UUID NOT NULL,
    attempt INTEGER NOT NULL,
    first_sequence BIGINT NOT NULL,
    last_sequence BIGINT NOT NULL,
    data BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_log_chunks PRIMARY KEY (job_id, attempt, first_sequence),
    CONSTRAINT ck_log_chunks_sequence CHECK (last_sequence >= first_sequence),
    CONSTRAINT fk_log_chunks_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id)
);

CREATE TABLE model_versions (
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    job_id UUID NOT NULL,
    manifest_uri TEXT NOT NULL,
    manifest_sha256 TEXT NOT NULL,
    lineage JSONB NOT NULL,
    metrics JSONB NOT NULL,
    mlflow_version TEXT DEFAULT '' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_model_versions PRIMARY KEY (project, model, version),
    CONSTRAINT uq_model_versions_job_id UNIQUE (job_id),
    CONSTRAINT fk_model_versions_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id)
);

CREATE TABLE outbox (
    outbox_id BIGINT GENERATED ALWAYS AS IDENTITY,
    kind TEXT NOT NULL,
    job_id UUID NOT NULL,
    dedupe_key TEXT NOT NULL,
    payload JSONB DEFAULT '{}'::jsonb NOT NULL,
    trace_parent TEXT DEFAULT '' NOT NULL,
    state TEXT NOT NULL CONSTRAINT ck_outbox_state CHECK (state IN ('held','ready','done')),
    tries INTEGER DEFAULT '0' NOT NULL,
    not_before TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    last_error TEXT DEFAULT '' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    done_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_outbox PRIMARY KEY (outbox_id),
    CONSTRAINT fk_outbox_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id),
    CONSTRAINT uq_outbox_dedupe_key UNIQUE (dedupe_key)
);

CREATE INDEX ix_outbox_job_id ON outbox (job_id);

CREATE INDEX ix_outbox_ready ON outbox (not_before, outbox_id) WHERE state = 'ready';

INSERT INTO event_log_head (singleton, position) VALUES (1, 0);
