"""Servicers of which a test writes only the methods that are called; the others answer UNIMPLEMENTED."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from headway.jobs.v1.job_service_pb2_grpc import JobServiceServicer

if TYPE_CHECKING:
    # The generated class is abstract to a type checker, and only to it.
    PartialJobServicer: TypeAlias = Any
else:
    PartialJobServicer = JobServiceServicer
