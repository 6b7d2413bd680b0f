-- The intent to start a workflow is written at admission, and a job says itself when that was.

ALTER TABLE jobs ADD COLUMN admitted_at TIMESTAMP WITH TIME ZONE;

UPDATE jobs SET admitted_at = outbox.not_before
FROM outbox
WHERE outbox.job_id = jobs.job_id AND outbox.dedupe_key = 'start/' || jobs.job_id
    AND outbox.state <> 'held' AND outbox.last_error <> 'void: cancelled before admission';

DELETE FROM outbox WHERE state = 'held' OR last_error = 'void: cancelled before admission';

ALTER TABLE outbox DROP CONSTRAINT ck_outbox_state;

ALTER TABLE outbox ADD CONSTRAINT ck_outbox_state CHECK (state IN ('ready','done'));

DROP INDEX ix_jobs_listing_update;
