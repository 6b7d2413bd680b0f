"""How what nobody refers to is deleted while others may be about to refer to it again.

Content has one key, so an upload finds its bytes there already, and believes so, just when the collector wants to delete them.
Reference and bytes are in different systems, which share no transaction. What both sides can rely on is that the store shows
every write to whoever reads later. So deleting takes two steps, a grace apart, and each side says what it does before it looks
at what the other one said (Dekker's algorithm):

- The collector *marks* what nothing refers to. In a later run, a grace after, it announces the deletion, looks whether the mark
  is still there, and only then deletes.
- Whoever wants to rely on an object takes its mark away, looks whether a deletion is announced, waits for its end if so, and
  only then looks whether the object is there. From then on there is a whole grace for recording the reference.

Marks and announcements are empty objects of their own. Blocking functions over a boto3 client, which workers use too.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, cast

from botocore.exceptions import ClientError

MARKED_PREFIX = "garbage/marked/"
DELETING_PREFIX = "garbage/deleting/"
_WAIT_SECONDS = 30.0
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})


class BeingDeletedError(Exception):
    """A deletion of this object was announced and does not end."""


def rely_on(client: Any, bucket: str, key: str) -> None:
    """To be called before looking whether an object is there, by whoever will refer to it within the grace.

    Args:
        client: a boto3 S3 client.
        bucket: the bucket.
        key: the object's.

    Raises:
        BeingDeletedError: the collector was about to delete it and has stopped; running it again puts that right.
        ClientError, BotoCoreError: the store failed.
    """
    if age(client, bucket, MARKED_PREFIX + key) is not None:
        client.delete_object(Bucket=bucket, Key=MARKED_PREFIX + key)
    # Also without a mark: somebody else may just have taken it away, after the collector looked.
    until = time.monotonic() + _WAIT_SECONDS
    while age(client, bucket, DELETING_PREFIX + key) is not None:
        if time.monotonic() > until:
            raise BeingDeletedError(
                f"{key} is being deleted as garbage for more than {_WAIT_SECONDS:.0f} s; if no collection is running, one was "
                "stopped half-way: run `python -m control_plane collect` again"
            )
        time.sleep(0.05)


def mark(client: Any, bucket: str, key: str) -> None:
    """Marks an object as garbage.

    Raises:
        ClientError, BotoCoreError: the store failed.
    """
    client.put_object(Bucket=bucket, Key=MARKED_PREFIX + key, Body=b"")


def delete_marked(client: Any, bucket: str, key: str, grace: timedelta) -> bool:
    """Deletes an object that was marked a grace ago and that nobody has relied on since; returns whether it did.

    For one collector at a time.

    Raises:
        ClientError, BotoCoreError: the store failed; the announcement may remain, for `withdraw`.
    """
    client.put_object(Bucket=bucket, Key=DELETING_PREFIX + key, Body=b"")
    marked = age(client, bucket, MARKED_PREFIX + key)
    due = marked is not None and marked >= grace
    if due:
        client.delete_object(Bucket=bucket, Key=key)
        client.delete_object(Bucket=bucket, Key=MARKED_PREFIX + key)
    withdraw(client, bucket, key)
    return due


def withdraw(client: Any, bucket: str, key: str) -> None:
    """Takes back that an object is being deleted.

    Raises:
        ClientError, BotoCoreError: the store failed.
    """
    client.delete_object(Bucket=bucket, Key=DELETING_PREFIX + key)


def age(client: Any, bucket: str, key: str) -> timedelta | None:
    """For how long an object has been there, by the store's own clock; None: it is not there.

    Raises:
        ClientError, BotoCoreError: the store failed.
    """
    try:
        head = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if str(cast("dict[str, Any]", error.response).get("Error", {}).get("Code")) in _MISSING:
            return None
        raise
    return answered_at(head) - cast("datetime", head["LastModified"])


def answered_at(answer: dict[str, Any]) -> datetime:
    """When the store gave an answer, by its own clock."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return datetime.now(UTC) if date is None else parsedate_to_datetime(date)
