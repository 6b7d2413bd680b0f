CREATE INDEX ix_ledger_entries_listing ON ledger_entries (ledger_id, entry_id);
