"""`python -m control_plane collect`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from control_plane.datasets.object_store import client_of
from control_plane.db.engine import create_engine
from control_plane.settings import Settings, require
from control_plane.storage.collect import CollectingError, Collector


async def main(settings: Settings, *, dry_run: bool) -> int:
    """Collects once and prints what it did as one line of JSON; returns the exit code: 0, or 1 if it could not."""
    postgres = require(settings.postgres, "postgres", "control_plane collect")
    s3 = require(settings.s3, "s3", "control_plane collect")
    engine = create_engine(postgres)
    collector = Collector(engine, client_of(s3, s3.endpoint_url), s3.bucket, settings.storage)
    try:
        done = await collector.run(dry_run=dry_run)
    except CollectingError as error:
        print(f"nothing was collected: {error}", file=sys.stderr)
        return 1
    finally:
        await engine.dispose()
    print(json.dumps({"dry_run": dry_run, **asdict(done)}))
    return 0
