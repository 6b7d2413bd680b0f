"""A command's connection to the control plane, and the span that its trace begins with."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headway_client.client import Client


def address_of(address: str | None) -> str:
    """The address to dial.

    Raises:
        NoAddressError: nothing says it.
    """
    from headway_client.connection import resolve

    return resolve(address).address


@contextmanager
def connected(address: str | None, span: str = "") -> Generator[Client]:
    """A client for the block. With `span`, its calls belong to a new trace that begins with a span of that name.

    Raises:
        NoAddressError: nothing says where the control plane is.
    """
    from headway_client.client import Client
    from headway_client.connection import resolve

    connection = resolve(address)
    with Client(connection.address) as client:
        if not span:
            yield client
            return
        from headway_client.tracing import traced

        with traced(connection, "headway-cli", span):
            yield client
