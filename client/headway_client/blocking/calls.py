"""How the blocking client makes calls: with its deadline, retried where safe, and streams that survive their connection."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Self, TypeVar

import grpc

from headway_client.channels import sync_channel, trace_metadata
from headway_client.connection import Connection
from headway_client.credentials import Tls, TokenSource, credentials
from headway_client.errors import HeadwayError, client_closed, from_rpc_error
from headway_client.requests import PagedRequestT, PagedResponseT
from headway_client.retries import RetryPolicy, UnaryRetry
from headway_client.streams import Resumption, StreamRequestT, StreamResponseT

if TYPE_CHECKING:
    from grpc import UnaryStreamMultiCallable, UnaryUnaryMultiCallable

_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")


class Calls:
    """A connection to one control plane."""

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
        self._dialled = sync_channel(address, self._credentials)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every call, and makes no more."""
        self._closed = True
        self._dialled.close()

    @property
    def _channel(self) -> grpc.Channel:
        """What stubs are made of.

        Raises:
            HeadwayError: this client is closed.
        """
        # Whoever makes a stub of a closed channel brings the whole process down.
        if self._closed:
            raise client_closed(self.address)
        return self._dialled

    def _unary(self, call: UnaryUnaryMultiCallable[_RequestT, _ResponseT], request: _RequestT) -> _ResponseT:
        retry = UnaryRetry(self._retries, request, self._deadline_seconds)
        while True:
            try:
                return call(request, timeout=retry.remaining_seconds())
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self.address)
                wait_seconds = retry.wait_seconds(failure)
                if wait_seconds is None:
                    raise failure from error
            except ValueError as error:  # what gRPC raises when the channel is closed
                raise client_closed(self.address) from error
            time.sleep(wait_seconds)

    def _pages(
        self, call: UnaryUnaryMultiCallable[PagedRequestT, PagedResponseT], request: PagedRequestT
    ) -> Iterator[PagedResponseT]:
        while True:
            page = self._unary(call, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _stream(
        self,
        call: UnaryStreamMultiCallable[StreamRequestT, StreamResponseT],
        request: StreamRequestT,
        *,
        ends_when_drained: bool = False,
    ) -> Generator[StreamResponseT]:
        resumption = Resumption(self._retries, request.start_cursor)
        while True:
            failure: HeadwayError | None = None
            resumption.ask(request)
            shown = self._credentials.metadata()
            try:
                stream = call(request, timeout=self._retries.stream_call_seconds, metadata=trace_metadata())
            except ValueError as error:  # as above
                raise client_closed(self.address) from error
            try:
                for response in stream:
                    resumption.received(response)
                    yield response
                    if response.end_of_stream:
                        return
                if ends_when_drained:
                    return
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self.address)
            finally:
                stream.cancel()
            time.sleep(resumption.wait_seconds(failure, token_renewed=shown != self._credentials.metadata()))
