"""One record for every call that changes something or is denied, chained by hashes."""
