"""Headway's own processes as components. They are told everything by the settings file."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

from deploy.one_machine import probes
from deploy.one_machine.component import Component
from deploy.one_machine.layout import Layout
from deploy.one_machine.ports import HOST
from deploy.one_machine.programs import environment

_WORKER_GRACE_SECONDS = 45.0
"""For a training process to reach its next checkpoint; the settings give it less (`WORKER_STOP_GRACE_SECONDS`)."""
WORKER_STOP_GRACE_SECONDS = 30.0
_STORES = frozenset({"postgres", "s3"})


def components(layout: Layout, ports: dict[str, int], create_database: Callable[[], Awaitable[None]]) -> list[Component]:
    """Migration, control plane, scheduler and the workers."""
    # The migration goes ahead as soon as Postgres can, while the slower servers still start.
    migrate = Component(
        name="migrate",
        command=[sys.executable, "-m", "control_plane", "migrate"],
        env=_environment(layout),
        cwd=layout.root,
        needs=frozenset({"postgres"}),
        prepare=create_database,
    )
    return [
        migrate,
        _process(layout, "control-plane", ["control_plane", "serve"], ports["control-plane"], _STORES | {"migrate"}),
        _process(layout, "scheduler", ["scheduler"], ports["scheduler"], frozenset({"migrate", "temporal"})),
        _worker(layout, "cpu-worker", "workers.cpu", ports["cpu-worker"]),
        _worker(layout, "gpu-worker", "workers.gpu", ports["gpu-worker"]),
    ]


def _worker(layout: Layout, name: str, module: str, port: int) -> Component:
    needs = frozenset({"control-plane", "temporal"}) | _STORES
    variables = {"HEADWAY_WORKER__NAME": name, "HEADWAY_WORKER__SCRATCH_DIR": str(layout.scratch(name))}
    return _process(layout, name, [module], port, needs, grace=_WORKER_GRACE_SECONDS, **variables)


def _process(
    layout: Layout,
    name: str,
    module: list[str],
    port: int,
    needs: frozenset[str],
    *,
    grace: float = 10.0,
    **variables: str,
) -> Component:
    address = f"{HOST}:{port}"
    # The control plane answers health checks on its own port, which the settings name.
    listen = [] if name == "control-plane" else ["--health-listen", address]
    return Component(
        name=name,
        command=[sys.executable, "-m", *module, *listen],
        env=_environment(layout, **variables),
        cwd=layout.root,
        address=address,
        probe=probes.grpc_health(address),
        needs=needs,
        # MLflow is slow to start, and nobody needs it at once; but to it go the last spans of who stops.
        uses=frozenset({"mlflow"}),
        stop_grace_seconds=grace,
    )


def _environment(layout: Layout, **variables: str) -> dict[str, str]:
    # Safe path: names in the data directory, such as "mlflow", must not be taken for packages.
    return environment(HEADWAY_SETTINGS=str(layout.settings), PYTHONSAFEPATH="1", **variables)
