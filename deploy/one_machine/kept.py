"""What is chosen at the first start and kept: ports, passwords, keys."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from control_plane.identity.service_tokens import bootstrap_token_id, new_secret
from deploy.one_machine import ports
from deploy.one_machine.errors import OneMachineError, Reason
from deploy.one_machine.layout import Layout, naming_storage_faults, write_private
from deploy.one_machine.servers import S3_PORTS

_ModelT = TypeVar("_ModelT", bound=BaseModel)

PORTS = (
    *("control-plane", "scheduler", "cpu-worker", "gpu-worker", "postgres", "mlflow"),
    *("temporal", "temporal-http", "temporal-metrics", "temporal-ui", *S3_PORTS),
)


ADMIN = "admin"
"""The service that the administrator's token stands for."""
WORKER = "worker"
"""The service that the workers' token stands for."""


class Credentials(BaseModel):
    """Made at random, known to this machine only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    postgres_password: str = Field(default_factory=lambda: secrets.token_hex(16), min_length=1)
    s3_access_key_id: str = Field(default_factory=lambda: secrets.token_hex(10).upper(), min_length=1)
    s3_secret_access_key: str = Field(default_factory=lambda: secrets.token_hex(20), min_length=1)
    identity_secret_key: str = Field(default_factory=lambda: secrets.token_hex(32), min_length=32)
    admin_token: str = Field(default_factory=lambda: new_secret(bootstrap_token_id(ADMIN)), min_length=1)
    worker_token: str = Field(default_factory=lambda: new_secret(bootstrap_token_id(WORKER)), min_length=1)


class _Ports(RootModel[dict[str, int]]):
    """Name to port."""


def credentials(layout: Layout) -> Credentials:
    """Those of the first start; at the first start, new ones.

    Raises:
        OneMachineError: the file is damaged, or it is gone while the data that it opens is there.
    """
    found = _read(layout.credentials, Credentials)
    if found is not None:
        if found.model_fields_set < Credentials.model_fields.keys():
            # Kept by a release that knew fewer of them.
            _keep(layout, found)
        return found
    if layout.server("postgres").exists():
        raise OneMachineError(
            Reason.DAMAGED_STATE,
            f"{layout.credentials} is missing, and without it nobody gets at the data in {layout.root}; "
            "restore it, or remove the whole data directory to begin anew",
        )
    made = Credentials()
    _keep(layout, made)
    return made


def _keep(layout: Layout, made: Credentials) -> None:
    with naming_storage_faults(layout.root):
        write_private(layout.credentials, made.model_dump_json(indent=1))


def choose_ports(layout: Layout, asked: dict[str, int]) -> dict[str, int]:
    """Those of the last start where they are still free, and those asked for.

    Raises:
        OneMachineError: the file is damaged, or a port that was asked for is taken.
    """
    remembered = _read(layout.ports, _Ports)
    chosen = ports.choose(PORTS, remembered.root if remembered else {}, asked)
    with naming_storage_faults(layout.root):
        write_private(layout.ports, _Ports(chosen).model_dump_json(indent=1))
    return chosen


def last_ports(layout: Layout) -> dict[str, int]:
    """Those of the last start.

    Raises:
        OneMachineError: the file is damaged or missing.
    """
    remembered = _read(layout.ports, _Ports)
    if remembered is None or not set(PORTS) <= remembered.root.keys():
        raise OneMachineError(Reason.DAMAGED_STATE, f"{layout.ports} is missing or incomplete; `headway up` writes it anew")
    return remembered.root


def _read(path: Path, model: type[_ModelT]) -> _ModelT | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise OneMachineError(
            Reason.DAMAGED_STATE,
            f"{path} is damaged ({str(error).splitlines()[0]}); restore it, or remove the whole data directory to begin anew",
        ) from error
