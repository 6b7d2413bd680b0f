"""The `headway` command line. What it needs of the client is imported by the command that runs, so that help is instant."""

from headway_client.cli.app import main

__all__ = ["main"]
