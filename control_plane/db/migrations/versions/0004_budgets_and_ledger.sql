-- Budgets, prices, and the double-entry ledger of money and accelerator time.

CREATE TABLE budgets (
    kind TEXT NOT NULL CONSTRAINT ck_budgets_kind CHECK (kind IN ('ORGANISATION','TEAM','PROJECT')),
    scope TEXT NOT NULL,
    period TEXT NOT NULL CONSTRAINT ck_budgets_period CHECK (period IN ('MONTH','QUARTER','ONE_OFF')),
    starts_at TIMESTAMP WITH TIME ZONE,
    ends_at TIMESTAMP WITH TIME ZONE,
    hard_micros BIGINT CONSTRAINT ck_budgets_hard_micros CHECK (hard_micros > 0),
    hard_ms BIGINT CONSTRAINT ck_budgets_hard_ms CHECK (hard_ms > 0),
    soft_micros BIGINT CONSTRAINT ck_budgets_soft_micros CHECK (soft_micros > 0),
    soft_ms BIGINT CONSTRAINT ck_budgets_soft_ms CHECK (soft_ms > 0),
    at_hard_limit TEXT NOT NULL CONSTRAINT ck_budgets_at_hard_limit CHECK (at_hard_limit IN ('STOP','DEMOTE','WARN')),
    alert_percents INTEGER[] NOT NULL,
    notified_project TEXT,
    setter TEXT NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    version BIGINT DEFAULT '1' NOT NULL,
    CONSTRAINT pk_budgets PRIMARY KEY (kind, scope),
    CONSTRAINT ck_budgets_one_off CHECK ((period = 'ONE_OFF') = (starts_at IS NOT NULL AND ends_at IS NOT NULL)),
    CONSTRAINT ck_budgets_order CHECK (starts_at < ends_at),
    CONSTRAINT ck_budgets_limited CHECK (hard_micros IS NOT NULL OR hard_ms IS NOT NULL),
    CONSTRAINT fk_budgets_notified_project FOREIGN KEY(notified_project) REFERENCES projects (project)
);

CREATE TABLE prices (
    kind TEXT NOT NULL,
    spot BOOLEAN NOT NULL,
    valid_from TIMESTAMP WITH TIME ZONE NOT NULL,
    micros_per_hour BIGINT NOT NULL CONSTRAINT ck_prices_micros_per_hour CHECK (micros_per_hour BETWEEN 0 AND 1000000000),
    setter TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_prices PRIMARY KEY (kind, spot, valid_from)
);

CREATE TABLE ledgers (
    ledger_id BIGINT GENERATED ALWAYS AS IDENTITY,
    kind TEXT NOT NULL CONSTRAINT ck_ledgers_kind CHECK (kind IN ('ORGANISATION','TEAM','PROJECT')),
    scope TEXT NOT NULL,
    period TEXT NOT NULL CONSTRAINT ck_ledgers_period CHECK (period IN ('MONTH','QUARTER','ONE_OFF')),
    period_start TIMESTAMP WITH TIME ZONE NOT NULL,
    period_end TIMESTAMP WITH TIME ZONE NOT NULL,
    limit_micros BIGINT,
    limit_ms BIGINT,
    limited_after BIGINT,
    external_micros BIGINT DEFAULT '0' NOT NULL,
    external_ms BIGINT DEFAULT '0' NOT NULL,
    budget_micros BIGINT DEFAULT '0' NOT NULL,
    budget_ms BIGINT DEFAULT '0' NOT NULL,
    reserved_micros BIGINT DEFAULT '0' NOT NULL CONSTRAINT ck_ledgers_reserved_micros CHECK (reserved_micros >= 0),
    reserved_ms BIGINT DEFAULT '0' NOT NULL CONSTRAINT ck_ledgers_reserved_ms CHECK (reserved_ms >= 0),
    spent_micros BIGINT DEFAULT '0' NOT NULL CONSTRAINT ck_ledgers_spent_micros CHECK (spent_micros >= 0),
    spent_ms BIGINT DEFAULT '0' NOT NULL CONSTRAINT ck_ledgers_spent_ms CHECK (spent_ms >= 0),
    CONSTRAINT pk_ledgers PRIMARY KEY (ledger_id),
    CONSTRAINT uq_ledgers_kind_scope_period_period_start UNIQUE (kind, scope, period, period_start),
    CONSTRAINT ck_ledgers_order CHECK (period_start < period_end),
    CONSTRAINT ck_ledgers_limited CHECK ((limited_after IS NULL) = (limit_micros IS NULL AND limit_ms IS NULL)),
    CONSTRAINT ck_ledgers_balanced CHECK (external_micros + budget_micros + reserved_micros + spent_micros = 0 AND external_ms + budget_ms + reserved_ms + spent_ms = 0),
    CONSTRAINT ck_ledgers_never_overrun CHECK ((limit_micros IS NULL OR budget_micros >= 0) AND (limit_ms IS NULL OR budget_ms >= 0))
);

CREATE INDEX ix_ledgers_sinking ON ledgers (ledger_id) WHERE (- external_micros) > limit_micros OR (- external_ms) > limit_ms;

CREATE TABLE ledger_entries (
    entry_id BIGINT GENERATED ALWAYS AS IDENTITY,
    kind TEXT NOT NULL CONSTRAINT ck_ledger_entries_kind CHECK (kind IN ('FUND','RESERVE','SETTLE','RELEASE')),
    reference UUID NOT NULL,
    ledger_id BIGINT NOT NULL,
    account TEXT NOT NULL CONSTRAINT ck_ledger_entries_account CHECK (account IN ('EXTERNAL','BUDGET','RESERVED','SPENT')),
    micros BIGINT NOT NULL,
    accelerator_ms BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_ledger_entries PRIMARY KEY (entry_id),
    CONSTRAINT ck_ledger_entries_moves CHECK (micros <> 0 OR accelerator_ms <> 0)
);

CREATE UNIQUE INDEX ix_ledger_entries_transaction ON ledger_entries (reference, kind, ledger_id, account);

CREATE TABLE reservations (
    lease_id UUID NOT NULL,
    job_id UUID NOT NULL,
    project TEXT NOT NULL,
    accelerators INTEGER NOT NULL CONSTRAINT ck_reservations_accelerators CHECK (accelerators >= 1),
    kind TEXT NOT NULL,
    spot BOOLEAN NOT NULL,
    micros_per_hour BIGINT NOT NULL CONSTRAINT ck_reservations_micros_per_hour CHECK (micros_per_hour >= 0),
    held_ms BIGINT NOT NULL CONSTRAINT ck_reservations_held_ms CHECK (held_ms > 0),
    micros BIGINT NOT NULL CONSTRAINT ck_reservations_micros CHECK (micros >= 0),
    accelerator_ms BIGINT NOT NULL CONSTRAINT ck_reservations_accelerator_ms CHECK (accelerator_ms IN (0, held_ms)),
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_reservations PRIMARY KEY (lease_id)
);

CREATE INDEX ix_reservations_job_id ON reservations (job_id);

CREATE INDEX ix_reservations_created_at ON reservations (created_at);

CREATE TABLE settlements (
    lease_id UUID NOT NULL,
    used_ms BIGINT NOT NULL CONSTRAINT ck_settlements_used_ms CHECK (used_ms >= 0),
    uncharged_ms BIGINT NOT NULL CONSTRAINT ck_settlements_uncharged_ms CHECK (uncharged_ms BETWEEN 0 AND used_ms),
    micros BIGINT NOT NULL CONSTRAINT ck_settlements_micros CHECK (micros >= 0),
    accelerator_ms BIGINT NOT NULL CONSTRAINT ck_settlements_accelerator_ms CHECK (accelerator_ms IN (0, used_ms - uncharged_ms)),
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_settlements PRIMARY KEY (lease_id),
    CONSTRAINT fk_settlements_lease_id FOREIGN KEY(lease_id) REFERENCES reservations (lease_id)
);

CREATE TABLE job_estimates (
    job_id UUID NOT NULL,
    held_ms_low BIGINT NOT NULL CONSTRAINT ck_job_estimates_held_ms_low CHECK (held_ms_low >= 0),
    held_ms_high BIGINT NOT NULL,
    micros_low BIGINT CONSTRAINT ck_job_estimates_micros_low CHECK (micros_low >= 0),
    micros_high BIGINT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_job_estimates PRIMARY KEY (job_id),
    CONSTRAINT ck_job_estimates_order CHECK (held_ms_low <= held_ms_high AND micros_low <= micros_high),
    CONSTRAINT ck_job_estimates_money CHECK ((micros_low IS NULL) = (micros_high IS NULL)),
    CONSTRAINT fk_job_estimates_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id)
);

CREATE TABLE budget_alerts (
    alert_id UUID NOT NULL,
    ledger_id BIGINT NOT NULL,
    book TEXT NOT NULL CONSTRAINT ck_budget_alerts_book CHECK (book IN ('MONEY','ACCELERATOR_TIME')),
    level TEXT NOT NULL,
    committed BIGINT NOT NULL,
    hard_limit BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_budget_alerts PRIMARY KEY (alert_id),
    CONSTRAINT uq_budget_alerts_ledger_id_book_level UNIQUE (ledger_id, book, level),
    CONSTRAINT fk_budget_alerts_ledger_id FOREIGN KEY(ledger_id) REFERENCES ledgers (ledger_id)
);

-- What was entered stays as it is: corrections are entries of their own.
CREATE FUNCTION refuse_change_of_what_was_entered() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '% is append-only: correct it by further rows', TG_TABLE_NAME USING ERRCODE = 'restrict_violation'; END $$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_what_was_entered();

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON reservations
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_what_was_entered();

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON settlements
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_what_was_entered();

-- An endpoint hears of budgets only if it was made to: those that are there expect jobs.
ALTER TABLE webhooks ADD COLUMN budget_alerts BOOLEAN DEFAULT false NOT NULL;

ALTER TABLE webhook_deliveries ALTER COLUMN job_id DROP NOT NULL;

ALTER TABLE webhook_deliveries ADD COLUMN alert_id UUID;

ALTER TABLE webhook_deliveries ADD CONSTRAINT uq_webhook_deliveries_webhook_id_alert_id UNIQUE (webhook_id, alert_id);

ALTER TABLE webhook_deliveries ADD CONSTRAINT ck_webhook_deliveries_subject CHECK ((job_id IS NULL) <> (alert_id IS NULL));
