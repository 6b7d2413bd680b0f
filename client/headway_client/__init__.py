"""The typed Python client of Headway, and the `headway` command line."""
