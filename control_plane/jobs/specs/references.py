"""How specs name what was registered earlier."""

from __future__ import annotations

from pydantic import Field

from control_plane.jobs.specs.values import SEED_MAX, Pin, ResourceName, SpecModel

VERSION_MAX = SEED_MAX


class DatasetPin(SpecModel):
    """A dataset of the job's project, used as a whole."""

    name: ResourceName
    sha256: Pin = ""


class ModelVersionRef(SpecModel):
    """A version of a registered model of the job's project; version 0 means the one that the alias points to."""

    model: ResourceName
    version: int = Field(default=0, ge=0, le=VERSION_MAX)
    alias: ResourceName = "dev"


class SuiteRef(SpecModel):
    """A suite of the platform's registry; version 0 means the newest at the job's start."""

    name: ResourceName
    version: int = Field(default=0, ge=0, le=VERSION_MAX)
