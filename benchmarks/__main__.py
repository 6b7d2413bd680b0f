"""`python -m benchmarks [NAME ...] [--json] [--quick] [--list] [--resume FILE]`: measures, and prints a figure a line."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks import (
    checkpoint_mutations,
    dataset_validate,
    decisions_durable,
    events_streamed,
    fairness_error,
    kill_anywhere,
    kueue,
    list_page,
    log_ingest,
    one_machine_start,
    preemption_cycles,
    reclaim_gang,
    schedule_round,
    scheduler_recovery,
    stalled_streams,
    submit_batch,
    submit_to_lease,
    submit_unary,
    training_overhead,
    unschedulable_verdict,
    watch_lag,
    workflow_starts,
)
from benchmarks.figure import Figure


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How to measure a figure, and about how long that takes on two cores."""

    run: Callable[[bool], Awaitable[Figure]]
    seconds: int
    quick_seconds: int


BENCHMARKS: dict[str, Benchmark] = {
    "one_machine_start": Benchmark(one_machine_start.run, 90, 40),
    "submit_unary": Benchmark(submit_unary.run, 55, 22),
    "submit_batch_1000": Benchmark(submit_batch.of_size(1_000), 35, 18),
    "submit_batch_100": Benchmark(submit_batch.of_size(100), 40, 20),
    "list_page": Benchmark(list_page.run, 120, 90),
    "watch_lag": Benchmark(watch_lag.run, 60, 30),
    "events_streamed": Benchmark(events_streamed.run, 60, 30),
    "stalled_streams": Benchmark(stalled_streams.run, 60, 30),
    "log_ingest": Benchmark(log_ingest.run, 50, 25),
    "schedule_round_100k": Benchmark(schedule_round.of_size(100_000), 90, 30),
    "schedule_round_1m": Benchmark(schedule_round.of_size(1_000_000), 240, 60),
    "fairness_error": Benchmark(fairness_error.run, 120, 20),
    "scheduler_recovery": Benchmark(scheduler_recovery.run, 120, 40),
    "unschedulable_verdict": Benchmark(unschedulable_verdict.run, 90, 40),
    "decisions_durable": Benchmark(decisions_durable.run, 60, 20),
    "preemption_cycles": Benchmark(preemption_cycles.run, 700, 20),
    "submit_to_lease": Benchmark(submit_to_lease.run, 100, 40),
    "workflow_starts": Benchmark(workflow_starts.run, 60, 30),
    "kueue_baseline": Benchmark(kueue.of_scenario("kueue_baseline", "kueue_baseline"), 100, 90),
    "kueue_large": Benchmark(kueue.of_scenario("kueue_large", "kueue_large_scale"), 60, 30),
    "checkpoint_mutations": Benchmark(checkpoint_mutations.run, 300, 90),
    "kill_anywhere": Benchmark(kill_anywhere.run, 1_500, 150),
    "training_overhead": Benchmark(training_overhead.overhead, 360, 140),
    "async_save": Benchmark(training_overhead.saving, 360, 140),
    "dataset_validate": Benchmark(dataset_validate.run, 50, 10),
    "gang_reclaim": Benchmark(reclaim_gang.run, 15, 10),
}


def main() -> None:
    """Runs the benchmarks named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; default: all")
    parser.add_argument("--json", action="store_true", help="one JSON line each")
    parser.add_argument("--quick", action="store_true", help="shorter runs, for a first look")
    parser.add_argument("--list", action="store_true", help="name them and stop")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep figures there; those it holds are not measured again")
    options = parser.parse_args()
    if options.list:
        print("\n".join(BENCHMARKS))
        return
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; expected some of {', '.join(BENCHMARKS)}")
    kept = _kept(options.resume)
    names = [name for name in options.names or BENCHMARKS if name not in kept]
    for line in kept.values():
        print(line, flush=True)
    _announce(names, options.quick, len(kept))
    for name in names:
        began = time.monotonic()
        # The load shares the machine with what it loads, so it is made as cheaply as can be.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figure = runner.run(_measure(name, options.quick))
        print(figure.as_json() if options.json else f"{figure}  [{time.monotonic() - began:.0f} s]", flush=True)
        if options.resume is not None:
            with options.resume.open("a") as file:
                file.write(f"{figure.as_json()}\n")


async def _measure(name: str, quick: bool) -> Figure:
    return await BENCHMARKS[name].run(quick)


def _announce(names: Sequence[str], quick: bool, kept: int) -> None:
    seconds = sum(BENCHMARKS[name].quick_seconds if quick else BENCHMARKS[name].seconds for name in names)
    already = f", {kept} measured before" if kept else ""
    print(f"{len(names)} benchmarks, about {-(-seconds // 60)} min on two cores{already}", file=sys.stderr, flush=True)


def _kept(path: Path | None) -> dict[str, str]:
    """The figures of an earlier run that was stopped, by name. A last line that was cut off does not count."""
    found: dict[str, str] = {}
    if path is None or not path.exists():
        return found
    for line in path.read_text().splitlines():
        try:
            found[json.loads(line)["figure"]] = line
        except (ValueError, KeyError, TypeError):
            continue
    return found


if __name__ == "__main__":
    main()
