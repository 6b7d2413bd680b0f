"""`python -m benchmarks [NAME ...] [--json] [--quick] [--list]`: measures, and prints a figure a line."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

from benchmarks import one_machine_start, submit_unary
from benchmarks.figure import Figure

BENCHMARKS: dict[str, Callable[[bool], Awaitable[Figure]]] = {
    "one_machine_start": one_machine_start.run,
    "submit_unary": submit_unary.run,
}


async def _measure(name: str, quick: bool) -> Figure:
    return await BENCHMARKS[name](quick)


def main() -> None:
    """Runs the benchmarks named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; default: all")
    parser.add_argument("--json", action="store_true", help="one JSON line each")
    parser.add_argument("--quick", action="store_true", help="shorter runs, for a first look")
    parser.add_argument("--list", action="store_true", help="name them and stop")
    options = parser.parse_args()
    if options.list:
        print("\n".join(BENCHMARKS))
        return
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; expected some of {', '.join(BENCHMARKS)}")
    for name in options.names or BENCHMARKS:
        began = time.monotonic()
        figure = asyncio.run(_measure(name, options.quick))
        print(figure.as_json() if options.json else f"{figure}  [{time.monotonic() - began:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
