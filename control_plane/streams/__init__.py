"""The event log followed by any number of watchers, and the rules that every stream keeps (docs/explanation/streams.md)."""
