"""Uploads: what is sent, when nothing is, and what a store that refuses says."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from headway.datasets.v1.dataset_service_pb2 import CreateUploadResponse
from headway_client.errors import HeadwayError
from headway_client.uploads import ignore_progress, put, read_content

CONTENT = b"x" * 3_000_000 + b"\n"


class Store(ThreadingHTTPServer):
    """Keeps what is PUT; answers with `status`."""

    status = 200
    body = b""
    headers: dict[str, str]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Put)
        self.headers = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}/bucket/key"


class _Put(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        store = self.server
        assert isinstance(store, Store)
        store.headers = {key.lower(): value for key, value in self.headers.items()}
        store.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(store.status)
        self.end_headers()
        self.wfile.write(b"<Code>BadDigest</Code>" if store.status >= 400 else b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Says nothing."""


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(CONTENT)
    return path


def test_the_bytes_arrive_with_the_announced_headers(store: Store, file: Path) -> None:
    content = read_content(file)
    assert (content.sha256, content.size_bytes) == (hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    pieces: list[int] = []
    upload = CreateUploadResponse(uri="s3://b/k", upload_url=store.url, headers={"x-amz-checksum-sha256": "abc"})
    uploaded = put(content, upload, 10, pieces.append)
    assert store.body == CONTENT
    assert store.headers["x-amz-checksum-sha256"] == "abc"
    assert sum(pieces) == len(CONTENT)
    assert (uploaded.uri, uploaded.sha256, uploaded.already_there) == ("s3://b/k", content.sha256, False)


def test_nothing_is_sent_when_the_store_has_it(store: Store, file: Path) -> None:
    uploaded = put(read_content(file), CreateUploadResponse(uri="s3://b/k"), 10, ignore_progress)
    assert uploaded.already_there
    assert store.headers == {}


@pytest.mark.parametrize(("status", "code"), [(400, grpc.StatusCode.FAILED_PRECONDITION), (503, grpc.StatusCode.UNAVAILABLE)])
def test_a_refusal_says_what_the_store_said(store: Store, file: Path, status: int, code: grpc.StatusCode) -> None:
    store.status = status
    with pytest.raises(HeadwayError, match=rf"refused .*data\.jsonl with HTTP {status}: <Code>BadDigest") as caught:
        put(read_content(file), CreateUploadResponse(upload_url=store.url), 10, ignore_progress)
    assert caught.value.code is code


def test_a_store_that_is_away(file: Path) -> None:
    with pytest.raises(HeadwayError, match=r"does not take .*data\.jsonl") as caught:
        put(read_content(file), CreateUploadResponse(upload_url="http://127.0.0.1:1/x"), 10, ignore_progress)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
