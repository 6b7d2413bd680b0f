"""One machine's Headway, as data: from a data directory to settings and components."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from control_plane.identity.principal import Role
from control_plane.identity.service_tokens import secret_sha256
from control_plane.settings import Settings
from deploy.one_machine import kept, processes, servers
from deploy.one_machine.component import Component, Probe
from deploy.one_machine.errors import OneMachineError, Reason
from deploy.one_machine.layout import Layout, naming_storage_faults, write_private
from deploy.one_machine.ports import HOST
from deploy.one_machine.postgres import Postgres
from deploy.one_machine.state import ComponentState, MachineState

_BUCKET = "headway"
_PROJECT = "demo"
"""There from the first start on, so that a first job needs no preparation."""


@dataclass(frozen=True)
class Machine:
    """What one machine runs."""

    layout: Layout
    ports: dict[str, int]
    components: Sequence[Component]

    def state(self, supervisor_pid: int, components: list[ComponentState]) -> MachineState:
        """What the state file says."""
        mlflow_url = f"http://{HOST}:{self.ports['mlflow']}"
        return MachineState(
            supervisor_pid=supervisor_pid,
            control_plane=f"{HOST}:{self.ports['control-plane']}",
            admin_token_file=str(self.layout.admin_token),
            mlflow_url=mlflow_url,
            traces_url=f"{mlflow_url}/#/experiments/{servers.TRACES_EXPERIMENT}/traces/tr-{{trace_id}}",
            temporal_address=f"{HOST}:{self.ports['temporal']}",
            temporal_ui_url=f"http://{HOST}:{self.ports['temporal-ui']}",
            s3_url=f"http://{HOST}:{self.ports['s3']}",
            components=components,
        )


def assemble(layout: Layout, ports: dict[str, int], overrides: Path | None) -> Machine:
    """Writes the settings file and describes the components.

    Args:
        layout: a prepared data directory, whose lock is held.
        ports: name to port.
        overrides: a JSON file with settings that go before the chosen ones; None for none.

    Raises:
        OneMachineError: the state kept in the directory is damaged, a program is missing, the settings are not valid.
    """
    credentials = kept.credentials(layout)
    settings = _merged(_settings(ports, _postgres(layout, ports, credentials).dsn(), credentials), overrides)
    with naming_storage_faults(layout.root):
        write_private(layout.settings, json.dumps(settings, indent=1))
        write_private(layout.admin_token, credentials.admin_token + "\n")
    return Machine(layout, ports, _components(layout, ports, credentials))


def probes(layout: Layout) -> dict[str, Probe]:
    """How to ask each component that runs in a data directory now.

    Raises:
        OneMachineError: the state kept in the directory is damaged.
    """
    components = _components(layout, kept.last_ports(layout), kept.credentials(layout))
    return {component.name: component.probe for component in components if component.probe is not None}


def _components(layout: Layout, ports: dict[str, int], credentials: kept.Credentials) -> list[Component]:
    postgres = _postgres(layout, ports, credentials)
    keys = (credentials.s3_access_key_id, credentials.s3_secret_access_key)
    temporal_ports = (ports[name] for name in ("temporal", "temporal-http", "temporal-metrics", "temporal-ui"))
    return [
        postgres.component(),
        servers.temporal(layout.server("temporal"), *temporal_ports),
        servers.s3(layout.server("s3"), ports, *keys, _BUCKET),
        servers.mlflow(layout.server("mlflow"), ports["mlflow"]),
        *processes.components(layout, ports, postgres.create_database),
    ]


def _postgres(layout: Layout, ports: dict[str, int], credentials: kept.Credentials) -> Postgres:
    log = layout.log("postgres")
    return Postgres(layout.server("postgres"), ports["postgres"], credentials.postgres_password, log)


def _settings(ports: dict[str, int], dsn: str, credentials: kept.Credentials) -> dict[str, Any]:
    mlflow_url = f"http://{HOST}:{ports['mlflow']}"
    return {
        "postgres": {"dsn": dsn},
        "temporal": {
            "address": f"{HOST}:{ports['temporal']}",
            "namespace": servers.NAMESPACE,
            "ui_url": f"http://{HOST}:{ports['temporal-ui']}",
        },
        "s3": {
            "endpoint_url": f"http://{HOST}:{ports['s3']}",
            "bucket": _BUCKET,
            "access_key_id": credentials.s3_access_key_id,
            "secret_access_key": credentials.s3_secret_access_key,
        },
        "mlflow": {"tracking_uri": mlflow_url},
        "control_plane": {"address": f"{HOST}:{ports['control-plane']}"},
        "identity": {
            "secret_key": credentials.identity_secret_key,
            "bootstrap_tokens": [
                _bootstrap_token(kept.ADMIN, Role.ORG_ADMIN, credentials.admin_token),
                _bootstrap_token(kept.WORKER, Role.WORKER, credentials.worker_token),
            ],
            "bootstrap_projects": [_PROJECT],
        },
        "telemetry": {
            "otlp_traces_url": f"{mlflow_url}/v1/traces",
            "otlp_headers": {"x-mlflow-experiment-id": servers.TRACES_EXPERIMENT},
        },
        "worker": {"token": credentials.worker_token, "stop_grace_seconds": processes.WORKER_STOP_GRACE_SECONDS},
    }


def _bootstrap_token(name: str, role: Role, token: str) -> dict[str, str]:
    return {"name": name, "role": role, "secret_sha256": secret_sha256(token).hex()}


def _merged(settings: dict[str, Any], overrides: Path | None) -> dict[str, Any]:
    if overrides is not None:
        try:
            given = json.loads(overrides.read_bytes())
            settings = {name: settings.get(name, {}) | given.get(name, {}) for name in sorted(settings.keys() | given.keys())}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise OneMachineError(
                Reason.INVALID_SETTINGS,
                f"{overrides} cannot be used: {error}; expected a JSON object of sections, such as "
                '{"scheduler": {"poll_seconds": 1}}',
            ) from error
    try:
        Settings.model_validate(settings)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise OneMachineError(Reason.INVALID_SETTINGS, f"{overrides} has settings that are not valid: {faults}") from error
    return settings
