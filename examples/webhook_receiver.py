"""Receives notifications of jobs that end, and believes only those that are signed.

    HEADWAY_WEBHOOK_SECRET=whsec_… python examples/webhook_receiver.py 8080

A message may come more than once: it is the same one if its `webhook-id` is. Its form is that of Standard Webhooks 1.0, for
which there are libraries in many languages; this one needs none.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer

AGE_SECONDS_MAX = 300
BYTES_MAX = 64 * 1024


def is_genuine(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Whether a message was signed with the secret, not long ago."""
    message_id, at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not at.isdecimal() or abs(now - int(at)) > AGE_SECONDS_MAX:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.digest(key, f"{message_id}.{at}.".encode() + body, "sha256")).decode()
    # Several while a secret is being replaced.
    shown = headers.get("webhook-signature", "").split(" ")
    return any(hmac.compare_digest(f"v1,{expected}".encode(), signature.encode()) for signature in shown)


class Receiver(BaseHTTPRequestHandler):
    """Answers 204 to what is genuine, so that it is not sent again."""

    seen: set[str] = set()  # noqa: RUF012  of the server, not of a request

    def do_POST(self) -> None:
        """One message."""
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(min(length, BYTES_MAX))
        if not is_genuine(os.environ["HEADWAY_WEBHOOK_SECRET"], dict(self.headers.items()), body, time.time()):
            self.send_error(401)
            return
        message_id = self.headers["webhook-id"]
        if message_id not in self.seen:
            self.seen.add(message_id)
            message = json.loads(body)
            print(f"{message['type']}: {message['data']['job_id']} ({message['data']['name']})", flush=True)
        self.send_response(204)
        self.end_headers()


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
