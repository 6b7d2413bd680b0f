"""`python -m headway_client.cli`, where the `headway` script is not on the path."""

from headway_client.cli.app import main

main()
