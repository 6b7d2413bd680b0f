"""`python -m benchmarks.preemption_cycles [--worlds N] [--quick] [--resume FILE]`: a million worlds in which victims ask again.

Counts the worlds in which a state came back, or the potential did not fall with a grant: see scheduler/core/potential.py.
Fails if there is one, and says which seeds make it come again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing import Pool
from pathlib import Path
from random import Random

from benchmarks.figure import Figure
from benchmarks.preemption_world import play, random_world

WORLDS = 1_000_000
QUICK_WORLDS = 20_000
_CHUNK = 2_500
_PROCESSES = 2
_SHOWN = 20


def play_chunk(first_seed: int) -> tuple[int, dict[str, int], list[int]]:
    """Plays the worlds of so many seeds. The first of them, what came of them, and the seeds of those with a cycle."""
    found: Counter[str] = Counter()
    cyclic: list[int] = []
    for seed in range(first_seed, first_seed + _CHUNK):
        # Seeds that repeat, not secrets.
        outcome = play(random_world(Random(seed)), Random(seed))  # noqa: S311
        if outcome.cycle or outcome.risen:
            cyclic.append(seed)
        found.update(
            worlds=1,
            cycles=outcome.cycle or outcome.risen,
            rounds=outcome.rounds,
            victims=outcome.preemptions,
            contended=outcome.preemptions > 0,
            placements_seen_again=outcome.returned,
        )
    return first_seed, dict(found), cyclic


def play_all(worlds: int, resume: Path | None) -> tuple[Counter[str], list[int]]:
    """Plays them on all cores; those of whose chunks the file speaks were played before."""
    done = dict(_kept(resume))
    seeds = [first for first in range(0, worlds, _CHUNK) if first not in done]
    began = time.monotonic()
    with Pool(_PROCESSES) as pool:
        for first, found, cyclic in pool.imap_unordered(play_chunk, seeds):
            done[first] = found, cyclic
            if resume is not None:
                with resume.open("a") as file:
                    file.write(f"{json.dumps([first, found, cyclic])}\n")
            played = sum(each["worlds"] for each, _ in done.values())
            print(f"{played:,} of {worlds:,} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    wanted = [done[first] for first in range(0, worlds, _CHUNK)]
    return sum((Counter(found) for found, _ in wanted), Counter()), [seed for _, cyclic in wanted for seed in cyclic]


async def run(quick: bool) -> Figure:
    """A million worlds, or 20,000 when `quick`."""
    return await asyncio.to_thread(_measure, QUICK_WORLDS if quick else WORLDS, None)


def _measure(worlds: int, resume: Path | None) -> Figure:
    began = time.monotonic()
    found, cyclic = play_all(worlds, resume)
    if cyclic:
        print(f"cycles with the seeds {cyclic[:_SHOWN]}", file=sys.stderr)
    details = {name: float(found[name]) for name in ("contended", "victims", "rounds", "placements_seen_again")}
    details["seconds"] = time.monotonic() - began
    return Figure("preemption_cycles", found["cycles"], "cycles", found["worlds"], "worlds played", details)


def _kept(path: Path | None) -> Iterator[tuple[int, tuple[dict[str, int], list[int]]]]:
    """The chunks of a run that was stopped. A last line that was cut off does not count."""
    if path is None or not path.exists():
        return
    for first, found, cyclic in _lines(path.read_text().splitlines()):
        yield first, (found, cyclic)


def _lines(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, int], list[int]]]:
    for line in lines:
        try:
            first, found, cyclic = json.loads(line)
        except ValueError:
            continue
        yield first, found, cyclic


def main() -> None:
    """Plays them, and ends with status 1 if there is a cycle."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preemption_cycles", description=__doc__)
    parser.add_argument("--worlds", type=int, default=WORLDS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_WORLDS:,} worlds")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep what was played there, and do not play it again")
    options = parser.parse_args()
    figure = _measure(QUICK_WORLDS if options.quick else options.worlds, options.resume)
    print(figure)
    sys.exit(1 if figure.value else 0)


if __name__ == "__main__":
    main()
