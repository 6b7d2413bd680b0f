"""How the asyncio client makes calls: with its deadline, retried where safe, and streams that survive their connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Self, TypeVar

import grpc
from grpc import aio

from headway_client.channels import aio_channel
from headway_client.connection import Connection
from headway_client.credentials import Tls, TokenSource, credentials
from headway_client.errors import HeadwayError, call_ended, client_closed, from_rpc_error
from headway_client.requests import PagedRequestT, PagedResponseT
from headway_client.retries import RetryPolicy, UnaryRetry
from headway_client.streams import Resumption, StreamRequestT, StreamResponseT

if TYPE_CHECKING:
    from grpc.aio import UnaryStreamMultiCallable, UnaryUnaryMultiCallable

_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")


def _asked_to_stop() -> bool:
    # gRPC raises CancelledError also when the server or a closed channel ended the call; then nobody cancelled this task.
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class Calls:
    """A connection to one control plane, of the event loop it is made in."""

    def __init__(
        self,
        address: str,
        *,
        token: str | TokenSource | None = None,
        tls: Tls | None = None,
        allow_insecure: bool = False,
        deadline_seconds: float = 30.0,
        retries: RetryPolicy | None = None,
    ) -> None:
        """Dials on the first call.

        Args:
            address: host:port of the control plane.
            token: sent as bearer with every call: the text, or what gives it, asked before every call.
            tls: how the server is recognised and what it is shown; None: plain text.
            allow_insecure: whether the token may go to another machine in plain text.
            deadline_seconds: the longest a unary call may take, its retries included.
            retries: how persistent it is.

        Raises:
            CredentialsError: the token could be read on the way, or no call can carry it.
        """
        self.address = address
        self._credentials = credentials(token, tls, allow_insecure)
        self._deadline_seconds = deadline_seconds
        self._retries = retries or RetryPolicy()
        self._dialled = aio_channel(address, self._credentials)
        self._closed = False

    @classmethod
    def of(cls, connection: Connection, *, deadline_seconds: float = 30.0, retries: RetryPolicy | None = None) -> Self:
        """The client of a connection that `headway_client.connection.resolve` found."""
        known = connection.credentials
        return cls(
            connection.address,
            token=known.token,
            tls=known.tls,
            allow_insecure=known.allow_insecure,
            deadline_seconds=deadline_seconds,
            retries=retries,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every call, and makes no more."""
        self._closed = True
        await self._dialled.close()

    @property
    def _channel(self) -> aio.Channel:
        """What stubs are made of.

        Raises:
            HeadwayError: this client is closed.
        """
        if self._closed:
            raise client_closed(self.address)
        return self._dialled

    async def _unary(self, call: UnaryUnaryMultiCallable[_RequestT, _ResponseT], request: _RequestT) -> _ResponseT:
        retry = UnaryRetry(self._retries, request, self._deadline_seconds)
        while True:
            try:
                return await call(request, timeout=retry.remaining_seconds())
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self.address)
                wait_seconds = retry.wait_seconds(failure)
                if wait_seconds is None:
                    raise failure from error
            except aio.UsageError as error:
                raise client_closed(self.address) from error
            except asyncio.CancelledError as error:
                if _asked_to_stop():
                    raise
                raise call_ended(self.address) from error
            await asyncio.sleep(wait_seconds)

    async def _pages(
        self, call: UnaryUnaryMultiCallable[PagedRequestT, PagedResponseT], request: PagedRequestT
    ) -> AsyncIterator[PagedResponseT]:
        while True:
            page = await self._unary(call, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _stream(
        self,
        call: UnaryStreamMultiCallable[StreamRequestT, StreamResponseT],
        request: StreamRequestT,
        *,
        ends_when_drained: bool = False,
    ) -> AsyncGenerator[StreamResponseT]:
        resumption = Resumption(self._retries, request.start_cursor)
        while True:
            failure: HeadwayError | None = None
            resumption.ask(request)
            shown = self._credentials.metadata()
            stream = call(request, timeout=self._retries.stream_call_seconds)
            try:
                async for response in stream:
                    resumption.received(response)
                    yield response
                    if response.end_of_stream:
                        return
                if ends_when_drained:
                    return
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self.address)
            except aio.UsageError as error:
                raise client_closed(self.address) from error
            except asyncio.CancelledError:
                if _asked_to_stop():
                    raise
                failure = call_ended(self.address)
            finally:
                stream.cancel()
            await asyncio.sleep(resumption.wait_seconds(failure, token_renewed=shown != self._credentials.metadata()))
