"""A command's connection to the control plane, the options that name it, and the span that a command's trace begins with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from headway_client.client import Client
    from headway_client.connection import Connection

_P = ParamSpec("_P")
_T = TypeVar("_T")

_Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="The control plane. Default: HEADWAY_ADDRESS, else what `headway up` wrote to .headway/state.json.",
        show_default=False,
    ),
]
_TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="Holds the token to call with. Default: HEADWAY_TOKEN, else HEADWAY_TOKEN_FILE, else .headway/admin.token.",
        show_default=False,
    ),
]
_OPTIONS = {"address": _Address, "token_file": _TokenFile}
_chosen: ContextVar[dict[str, Any]] = ContextVar("chosen")


def connecting(command: Callable[_P, _T]) -> Callable[_P, _T]:
    """Gives a command the options that say where the control plane is and who calls; `connection` follows them."""

    @functools.wraps(command)
    def with_options(*arguments: _P.args, **options: _P.kwargs) -> _T:
        chosen = {name: options.pop(name, None) for name in _OPTIONS}
        token = _chosen.set(chosen)
        try:
            return command(*arguments, **options)
        finally:
            _chosen.reset(token)

    # Typer reads the signature; what its annotations mean is known where the command is, not here.
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    own = [parameter.replace(annotation=hints[name]) for name, parameter in signature.parameters.items()]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in _OPTIONS.items()
    ]
    vars(with_options)["__signature__"] = signature.replace(parameters=[*own, *added])
    with_options.__annotations__ = hints | _OPTIONS
    return with_options


def connection() -> Connection:
    """Where the command that runs calls, and as whom.

    Raises:
        NoAddressError: nothing says where the control plane is.
        CredentialsError: a file that is named cannot be used.
    """
    from headway_client.connection import resolve

    chosen = _chosen.get()
    return resolve(chosen["address"], token_file=chosen["token_file"])


@contextmanager
def connected(span: str = "") -> Generator[Client]:
    """A client for the block. With `span`, its calls belong to a new trace that begins with a span of that name.

    Raises:
        NoAddressError: nothing says where the control plane is.
        CredentialsError: a file that is named cannot be used, or the token could be read on the way.
    """
    from headway_client.client import Client

    found = connection()
    with Client.of(found) as client:
        if not span:
            yield client
            return
        from headway_client.tracing import traced

        with traced(found, "headway-cli", span):
            yield client
