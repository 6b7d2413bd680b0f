-- That a lease was asked to yield is a change that a round must hear of, whoever asked.
CREATE OR REPLACE FUNCTION note_updated_leases() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
    IF current_setting('headway.without_notes', true) = 'on' THEN RETURN NULL; END IF;
    INSERT INTO scheduler_changes (kind, ids) SELECT 'leases', array_agg(lease_id) FROM (SELECT lease_id, state, priority, checkpointed_at, preempted_for, preempted_at, claim FROM new_rows EXCEPT SELECT lease_id, state, priority, checkpointed_at, preempted_for, preempted_at, claim FROM old_rows) AS changed HAVING count(*) > 0;
    RETURN NULL;
END $$;

ALTER TABLE scheduling_rounds ADD COLUMN inputs BYTEA;
