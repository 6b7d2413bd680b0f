"""headway up, down, status: mounted from deploy.one_machine, which the one-machine extra makes usable."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import typer

from headway_client.cli.failures import InputError

_MODULE = "deploy.one_machine.commands"
_HELP = {
    "up": "Starts all of Headway on this machine.",
    "down": "Stops what `headway up` started.",
    "status": "Shows what runs on this machine, where, and how it is.",
}


def mount(app: typer.Typer, arguments: list[str]) -> None:
    """Adds the three commands; the module behind them is imported only when `arguments` name one of them."""
    for name, text in _HELP.items():
        if arguments[:1] == [name]:
            app.command(name)(_implementation(name))
        else:
            app.command(name, help=text)(_never_called)


def _implementation(name: str) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module(_MODULE), name)
    except ModuleNotFoundError as error:
        missing = error.name or _MODULE
        raise InputError(
            f"`headway {name}` needs {missing}, which is not installed; expected the extra one-machine: "
            "pip install 'headway[one-machine]'"
        ) from error


def _never_called() -> None:
    """Stands for a command in the list of commands."""
