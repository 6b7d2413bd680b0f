-- What the leader itself granted and admitted it keeps in its state by itself; to read that back would cost it half a round.
CREATE OR REPLACE FUNCTION note_updated_jobs() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
    IF current_setting('headway.without_notes', true) = 'on' THEN RETURN NULL; END IF;
    INSERT INTO scheduler_changes (kind, ids) SELECT 'jobs', array_agg(job_id) FROM (SELECT job_id, state, priority FROM new_rows EXCEPT SELECT job_id, state, priority FROM old_rows) AS changed HAVING count(*) > 0;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION note_updated_leases() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
    IF current_setting('headway.without_notes', true) = 'on' THEN RETURN NULL; END IF;
    INSERT INTO scheduler_changes (kind, ids) SELECT 'leases', array_agg(lease_id) FROM (SELECT lease_id, state, priority, checkpointed_at, preempted_for, claim FROM new_rows EXCEPT SELECT lease_id, state, priority, checkpointed_at, preempted_for, claim FROM old_rows) AS changed HAVING count(*) > 0;
    RETURN NULL;
END $$;

-- Most writes to a job change nothing that an index is about. Rounds change many jobs of a page at once; half a page has room for as
-- many new versions, which then need no entries in the indexes.
ALTER TABLE jobs SET (fillfactor = 50);
