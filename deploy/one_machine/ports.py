"""Ports on loopback: free ones, chosen once and kept across restarts as long as they are free."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Collection, Iterator, Mapping

import psutil

from deploy.one_machine.errors import OneMachineError, Reason

HOST = "127.0.0.1"
# Below the range that the kernel gives to outgoing connections, so that none of those takes a port of ours meanwhile.
_CANDIDATES = range(12_000, 22_000)
SECOND_PORT_OFFSET = 10_000
"""A server that derives a second port from its first gets it free as well."""


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        # As servers do: connections that are winding down do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def choose(names: Collection[str], remembered: Mapping[str, int], asked: Mapping[str, int]) -> dict[str, int]:
    """A free port for each name: the one asked for, else the remembered one if it is still free, else a new one.

    Raises:
        OneMachineError: a port that was asked for is taken.
    """
    for name, port in asked.items():
        if not is_free(port):
            raise OneMachineError(
                Reason.PORT_TAKEN,
                f"port {port} of {HOST}, asked for the {name}, is taken{_by_whom(port)}; "
                "name another one, or none to get a free one",
            )
    kept = {name: port for name, port in remembered.items() if name in names and is_free(port)} | dict(asked)
    fresh = _free_ports(taken=set(kept.values()))
    return {name: kept.get(name) or next(fresh) for name in names}


def _free_ports(taken: Collection[int]) -> Iterator[int]:
    # From a random place on: several supervisors may choose at the same moment.
    start = random.SystemRandom().randrange(len(_CANDIDATES))
    for step in range(len(_CANDIDATES)):
        port = _CANDIDATES[(start + step) % len(_CANDIDATES)]
        if port not in taken and is_free(port) and is_free(port + SECOND_PORT_OFFSET):
            yield port
    raise OneMachineError(
        Reason.PORT_TAKEN, f"no free port left between {_CANDIDATES.start} and {_CANDIDATES.stop - 1} of {HOST}"
    )


def _by_whom(port: int) -> str:
    # Other users' processes are not ours to see; then only the port is named.
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
