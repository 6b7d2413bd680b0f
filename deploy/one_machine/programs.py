"""Programs that components run: found where Python put them, run in an environment that is theirs alone."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

from deploy.one_machine.errors import OneMachineError, Reason
from deploy.one_machine.supervised import appending, tail
from workers.child import spawn


def script(name: str, package: str) -> str:
    """The path of a program that a package brings.

    Raises:
        OneMachineError: it is not installed.
    """
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        raise OneMachineError(
            Reason.NOT_INSTALLED,
            f"the program {name!r} of the package {package} is missing; install it: pip install 'headway[one-machine]'",
        )
    return path


# What would redirect a component, and what would have Python compile a hundred thousand lines anew at every start.
_NOT_INHERITED = ("HEADWAY_", "AWS_", "MLFLOW_", "TEMPORAL_", "PG", "OTEL_", "PYTHONDONTWRITEBYTECODE")


def environment(**variables: str) -> dict[str, str]:
    """A component's environment: this process's without what does it no good, and with `variables`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    # All servers are on loopback, which no proxy reaches.
    direct = ",".join(filter(None, [inherited.get("NO_PROXY") or inherited.get("no_proxy"), "127.0.0.1,localhost"]))
    return inherited | {"NO_PROXY": direct, "no_proxy": direct, "PYTHONUNBUFFERED": "1"} | variables


async def run_once(what: str, command: list[str], log: Path, cwd: Path) -> None:
    """Runs a program to its end, its output into the log.

    Raises:
        OneMachineError: it failed; with what it said.
    """
    with appending(log) as output:
        offset = output.seek(0, os.SEEK_END)
        child = await spawn(command, env=environment(), cwd=cwd, stdout=output, stderr=output)
    try:
        code = await child.wait()
    finally:
        child.kill()
        await child.wait()
    if code != 0:
        lines = "".join(f"\n  | {line}" for line in tail(log, offset))
        raise OneMachineError(Reason.COMPONENT_FAILED, f"{what} failed with exit code {code}; its log, {log}, says:{lines}")
