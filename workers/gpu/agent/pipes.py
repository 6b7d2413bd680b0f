"""Pipes that a child writes lines to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

_CHUNK_BYTES = 64 * 1024
_LINE_BYTES_MAX = 1024 * 1024


class LinePipe:
    """A pipe with its writing end for a child, and its lines for us."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe()

    def close_write_end(self) -> None:
        """Leaves the writing end to the child alone, so that its end is the pipe's end."""
        os.close(self.write_end)

    async def lines(self) -> AsyncIterator[bytes]:
        """Every line without its newline, until no process holds the writing end. Over 1 MiB a line comes in pieces."""
        reader = asyncio.StreamReader()
        source = os.fdopen(self._read_end, "rb", 0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), source)
        pending = b""
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                *whole, pending = (pending + chunk).split(b"\n")
                for line in whole:
                    yield line
                if len(pending) > _LINE_BYTES_MAX:
                    yield pending
                    pending = b""
            if pending:
                yield pending
        finally:
            transport.close()
