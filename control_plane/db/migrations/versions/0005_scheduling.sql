-- The quota tree, what leases and workers need for it, and what the scheduler reads and writes.

CREATE TABLE queue_nodes (
    kind TEXT NOT NULL CONSTRAINT ck_queue_nodes_kind CHECK (kind IN ('ORGANISATION','TEAM','PROJECT')),
    name TEXT NOT NULL,
    parent TEXT,
    weight INTEGER DEFAULT '1000' NOT NULL CONSTRAINT ck_queue_nodes_weight CHECK (weight BETWEEN 1 AND 1000000),
    quotas JSONB DEFAULT '[]'::jsonb NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    version BIGINT DEFAULT '1' NOT NULL,
    CONSTRAINT pk_queue_nodes PRIMARY KEY (kind, name)
);

-- A quota was the most that a project may hold at once: that much of its own, and nothing borrowed.
INSERT INTO queue_nodes (kind, name, quotas, updated_at)
SELECT 'PROJECT', project,
    coalesce(
        (
            SELECT jsonb_agg(jsonb_build_object(
                'pool', pool, 'resource', 'accelerators', 'nominal', most::bigint, 'borrowing_limit', 0, 'lending_limit', NULL
            ) ORDER BY pool)
            FROM jsonb_each_text(max_accelerators) AS given (pool, most)
        ),
        '[]'::jsonb
    ),
    updated_at
FROM quotas;

DROP TABLE quotas;

CREATE TABLE past_use (
    project TEXT NOT NULL,
    accelerator_ms BIGINT NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_past_use PRIMARY KEY (project)
);

CREATE TABLE scheduler_changes (
    change_id BIGINT GENERATED ALWAYS AS IDENTITY,
    kind TEXT NOT NULL CONSTRAINT ck_scheduler_changes_kind CHECK (kind IN ('jobs','leases','workers','queue_nodes')),
    ids UUID[],
    CONSTRAINT pk_scheduler_changes PRIMARY KEY (change_id)
);

CREATE TABLE waiting_reasons (
    kind TEXT NOT NULL CONSTRAINT ck_waiting_reasons_kind CHECK (kind IN ('job','lease')),
    project TEXT NOT NULL,
    priority_class INTEGER NOT NULL,
    shape TEXT NOT NULL,
    since TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    reasons JSONB NOT NULL,
    CONSTRAINT pk_waiting_reasons PRIMARY KEY (kind, project, priority_class, shape, since)
);

CREATE INDEX ix_waiting_reasons_since ON waiting_reasons (since);

CREATE TABLE scheduling_rounds (
    round_id BIGINT GENERATED ALWAYS AS IDENTITY,
    leader_epoch BIGINT NOT NULL,
    planned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    snapshot_sha256 TEXT NOT NULL,
    decisions BYTEA NOT NULL,
    decision_count INTEGER NOT NULL,
    trace_id TEXT DEFAULT '' NOT NULL,
    CONSTRAINT pk_scheduling_rounds PRIMARY KEY (round_id)
);

CREATE INDEX ix_scheduling_rounds_planned_at ON scheduling_rounds (planned_at);

ALTER TABLE workers
    ADD COLUMN pool TEXT DEFAULT '' NOT NULL,
    ADD COLUMN spot BOOLEAN DEFAULT false NOT NULL,
    ADD COLUMN cpu_millis INTEGER DEFAULT '0' NOT NULL CONSTRAINT ck_workers_cpu_millis CHECK (cpu_millis >= 0),
    ADD COLUMN memory_mib INTEGER DEFAULT '0' NOT NULL CONSTRAINT ck_workers_memory_mib CHECK (memory_mib >= 0),
    ADD COLUMN labels JSONB DEFAULT '{}'::jsonb NOT NULL,
    ADD COLUMN cordoned BOOLEAN DEFAULT false NOT NULL,
    ADD COLUMN draining BOOLEAN DEFAULT false NOT NULL;

UPDATE workers SET pool = accelerator_kind;

ALTER TABLE leases
    ADD COLUMN members INTEGER DEFAULT '1' NOT NULL CONSTRAINT ck_leases_members CHECK (members >= 1),
    ADD COLUMN cpu_millis INTEGER DEFAULT '0' NOT NULL CONSTRAINT ck_leases_cpu_millis CHECK (cpu_millis >= 0),
    ADD COLUMN memory_mib INTEGER DEFAULT '0' NOT NULL CONSTRAINT ck_leases_memory_mib CHECK (memory_mib >= 0),
    ADD COLUMN spot BOOLEAN DEFAULT false NOT NULL,
    ADD COLUMN labels JSONB DEFAULT '{}'::jsonb NOT NULL,
    ADD COLUMN topology JSONB,
    ADD COLUMN waiting_since TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ADD COLUMN claim JSONB,
    ADD COLUMN pool TEXT,
    ADD COLUMN placement JSONB,
    ADD COLUMN checkpointed_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN preempted_for UUID,
    ADD COLUMN preempted_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN preempted_ms BIGINT DEFAULT '0' NOT NULL,
    DROP COLUMN waiting_reason;

ALTER TABLE leases
    ADD COLUMN shape TEXT GENERATED ALWAYS AS (accelerator_kind || ' ' || accelerators::text || ' ' || cpu_millis::text || ' ' || memory_mib::text || ' ' || members::text || ' ' || spot::text || ' ' || labels::text || ' ' || coalesce(topology::text, 'null')) STORED;

UPDATE leases SET waiting_since = requested_at;

UPDATE leases SET pool = granted_kind,
    placement = jsonb_build_array(jsonb_build_array(worker, 1, worker_incarnation))
WHERE worker IS NOT NULL;

CREATE INDEX ix_leases_preempted_at ON leases (preempted_at) WHERE preempted_at IS NOT NULL;

ALTER TABLE jobs
    ADD COLUMN shape TEXT GENERATED ALWAYS AS (coalesce(spec #>> '{resources,accelerator_kind}', 'any') || ' ' || coalesce(spec #>> '{resources,accelerators}', '1') || ' ' || coalesce(spec #>> '{resources,cpu_millis}', '0') || ' ' || coalesce(spec #>> '{resources,memory_mib}', '0') || ' ' || coalesce(spec #>> '{resources,members}', '1') || ' ' || coalesce(spec #>> '{resources,spot}', 'false') || ' ' || coalesce(spec #>> '{resources,labels}', '{}') || ' ' || coalesce(spec #>> '{resources,topology}', 'null')) STORED,
    DROP COLUMN waiting_reason;

ALTER TABLE jobs SET (fillfactor = 80);

CREATE FUNCTION note_inserted_jobs() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO scheduler_changes (kind, ids) SELECT 'jobs', array_agg(job_id) FROM new_rows HAVING count(*) > 0; RETURN NULL; END $$;

CREATE TRIGGER note_inserted_jobs AFTER INSERT ON jobs
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION note_inserted_jobs();

-- Their plans are made once in a session, for however few rows it began with: a join of the two could not bear many.
CREATE FUNCTION note_updated_jobs() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO scheduler_changes (kind, ids) SELECT 'jobs', array_agg(job_id) FROM (SELECT job_id, state, priority FROM new_rows EXCEPT SELECT job_id, state, priority FROM old_rows) AS changed HAVING count(*) > 0; RETURN NULL; END $$;

CREATE TRIGGER note_updated_jobs AFTER UPDATE ON jobs
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION note_updated_jobs();

CREATE FUNCTION note_inserted_leases() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO scheduler_changes (kind, ids) SELECT 'leases', array_agg(lease_id) FROM new_rows HAVING count(*) > 0; RETURN NULL; END $$;

CREATE TRIGGER note_inserted_leases AFTER INSERT ON leases
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION note_inserted_leases();

-- A renewal changes when a lease expires, and nothing that wakes anybody: the leader reads those times anew before it ends a lease.
CREATE FUNCTION note_updated_leases() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO scheduler_changes (kind, ids) SELECT 'leases', array_agg(lease_id) FROM (SELECT lease_id, state, priority, checkpointed_at, preempted_for, claim FROM new_rows EXCEPT SELECT lease_id, state, priority, checkpointed_at, preempted_for, claim FROM old_rows) AS changed HAVING count(*) > 0; RETURN NULL; END $$;

CREATE TRIGGER note_updated_leases AFTER UPDATE ON leases
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION note_updated_leases();

CREATE FUNCTION note_queue_nodes() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO scheduler_changes (kind) VALUES ('queue_nodes'); RETURN NULL; END $$;

CREATE TRIGGER note_queue_nodes AFTER INSERT OR UPDATE OR DELETE ON queue_nodes
FOR EACH STATEMENT EXECUTE FUNCTION note_queue_nodes();
