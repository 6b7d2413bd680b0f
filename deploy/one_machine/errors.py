"""What can keep Headway from running on this machine, each with the reason that scripts can tell apart."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why `headway up`, `down` or `status` gave up."""

    PORT_TAKEN = "PORT_TAKEN"
    IN_USE = "IN_USE"
    """Another supervisor has the data directory."""
    STORAGE = "STORAGE"
    """The data directory cannot be written, or its disk is full."""
    DAMAGED_STATE = "DAMAGED_STATE"
    COMPONENT_FAILED = "COMPONENT_FAILED"
    NOT_INSTALLED = "NOT_INSTALLED"
    """A program that a component needs is missing or cannot be reached."""
    INVALID_SETTINGS = "INVALID_SETTINGS"
    STILL_RUNNING = "STILL_RUNNING"
    """The supervisor did not stop in time."""


class OneMachineError(Exception):
    """The message says what is wrong, where, and what to do."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
