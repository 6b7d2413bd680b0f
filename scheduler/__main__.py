"""`python -m scheduler --health-listen HOST:PORT`."""

from __future__ import annotations

import argparse
import asyncio

from control_plane.settings import Settings
from scheduler.app import serve


def main() -> None:
    """Runs a scheduler with the settings of the environment."""
    parser = argparse.ArgumentParser(prog="python -m scheduler", description="One scheduler: leader or standby.")
    parser.add_argument("--health-listen", required=True, metavar="HOST:PORT", help="where to answer health checks")
    asyncio.run(serve(Settings(), parser.parse_args().health_listen))


if __name__ == "__main__":
    main()
