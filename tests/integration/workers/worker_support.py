"""What the workers' integration tests share."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit


class BreakingProxy:
    """A TCP proxy that closes connections in the middle of an answer when told to."""

    def __init__(self, url: str) -> None:
        target = urlsplit(url)
        self._target = (target.hostname or "", target.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.forwarded = 0
        """Bytes of answers passed on."""
        self.received = 0
        """Bytes of requests passed on."""
        self.broken = 0
        """Connections closed in the middle."""
        self._breaks: list[int] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def break_after(self, count: int, *, times: int) -> None:
        """The next connections that get so far are closed after `count` bytes of answers."""
        self._breaks = [count] * times

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        passed = 0
        with suppress(OSError), source, sink:
            while data := source.recv(65_536):
                sink.sendall(data)
                if not answers:
                    self.received += len(data)
                    continue
                passed += len(data)
                self.forwarded += len(data)
                if self._breaks and passed >= self._breaks[0]:
                    self._breaks.pop()
                    self.broken += 1
                    for end in (source, sink):
                        end.shutdown(socket.SHUT_RDWR)
                    return
