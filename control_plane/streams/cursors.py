"""A watcher's place in the event log, in the cursor it resumes with."""

from __future__ import annotations

from dataclasses import dataclass

from control_plane.errors import Reason, RefusedError
from control_plane.rpc import pages
from control_plane.streams.event_log import CursorExpiredError

FIELD = "start_cursor"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a watcher stands.

    Attributes:
        position: everything of its scope up to here has been seen.
        known_oldest: what retention had taken when it began at the oldest event; no gap that is older than this one is news.
    """

    position: int
    known_oldest: int = 0


class WatchCursors:
    """The cursors of one scope of one caller."""

    def __init__(self, scope: pages.Scope) -> None:
        self._scope = scope

    def encode(self, place: Place) -> str:
        """The cursor of a place."""
        return self._scope.encode([place.position, place.known_oldest])

    def decode(self, cursor: str) -> Place:
        """The place of a cursor that is not empty.

        Raises:
            RefusedError: it was not made here for this caller and scope.
        """
        position, known_oldest = self._scope.decode(cursor, (int, int), FIELD)
        return Place(position, known_oldest)

    def expired(self, error: CursorExpiredError) -> RefusedError:
        """The refusal of a place behind which events were taken, with the cursor that begins at the oldest event kept."""
        return RefusedError(
            Reason.CURSOR_EXPIRED,
            "events that follow this cursor are kept no more; begin again with the cursor in the metadata, at the oldest event "
            "that is kept",
            {"oldest_cursor": self.encode(Place(0, error.oldest))},
        )
