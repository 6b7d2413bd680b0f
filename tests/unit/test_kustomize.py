"""The Kubernetes manifests: built by kubectl, valid by schema, locked down, and in accord with the settings object."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from control_plane.settings import Settings

BASE = Path(__file__).parents[2] / "deploy/kustomize/base"
KUBERNETES_VERSIONS = ("1.30", "1.37")
WORKLOADS = {
    "migrate": "Job",
    "control-plane": "Deployment",
    "scheduler": "Deployment",
    "cpu-worker": "Deployment",
    "gpu-worker": "StatefulSet",
}
# What each process requires of the settings, beyond what has a default.
NEEDS = {
    "migrate": {"postgres"},
    "control-plane": {"postgres", "s3", "control_plane", "identity"},
    "scheduler": {"postgres", "temporal"},
    "cpu-worker": {"temporal", "s3", "mlflow", "control_plane"},
    "gpu-worker": {"temporal", "s3", "control_plane"},
}
SECRET_VALUE = {
    "postgres-dsn": "postgresql://u:p@h:5432/d",
    "s3-access-key-id": "key",
    "s3-secret-access-key": "secret",
    "identity-secret-key": "k" * 64,
    "identity-bootstrap-tokens": json.dumps([{"name": "admin", "role": "ORG_ADMIN", "secret_sha256": "0" * 64}]),
    "worker-token": "hw_token",
}


@cache
def manifests() -> list[Any]:
    kubectl = Path(sysconfig.get_path("scripts")) / "kubectl"
    built = subprocess.run([kubectl, "kustomize", BASE], capture_output=True, text=True, check=True)
    assert not built.stderr
    return list(yaml.safe_load_all(built.stdout))


def of_kind(kind: str) -> dict[str, Any]:
    return {one["metadata"]["name"]: one for one in manifests() if one["kind"] == kind}


def workload(name: str) -> Any:
    return of_kind(WORKLOADS[name])[name]


def pod(name: str) -> Any:
    return workload(name)["spec"]["template"]["spec"]


def container(name: str) -> Any:
    (found,) = pod(name)["containers"]
    return found


def settings_file() -> dict[str, Any]:
    (config_map,) = of_kind("ConfigMap").values()
    return json.loads(config_map["data"]["settings.json"])


def variables(name: str) -> Iterator[tuple[str, str]]:
    """The container's environment as Kubernetes would make it."""
    for variable in container(name)["env"]:
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            assert source["secretKeyRef"]["name"] == "headway"
            yield variable["name"], SECRET_VALUE[source["secretKeyRef"]["key"]]
        elif "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == "metadata.name"
            yield variable["name"], f"{name}-0"
        else:
            yield variable["name"], variable["value"]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_manifest_is_valid_by_the_schema_and_has_no_unknown_field(version: str) -> None:
    assert manifests()
    for manifest in manifests():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_five_processes_are_there_and_nothing_else_runs() -> None:
    found = {one["metadata"]["name"]: one["kind"] for one in manifests() if "template" in one.get("spec", {})}
    assert found == WORKLOADS


@pytest.mark.parametrize("name", WORKLOADS)
def test_pods_meet_the_restricted_standard(name: str) -> None:
    spec, only = pod(name), container(name)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"}
    assert not spec["automountServiceAccountToken"]
    assert all(volume.keys() & {"configMap", "emptyDir"} for volume in spec["volumes"])
    assert of_kind("Namespace")["headway"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", WORKLOADS)
def test_resources_are_asked_for_and_memory_is_bounded(name: str) -> None:
    resources = container(name)["resources"]
    assert {"cpu", "memory"} <= resources["requests"].keys()
    assert "memory" in resources["limits"]
    assert ("nvidia.com/gpu" in resources["limits"]) == (name == "gpu-worker")


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_process_finds_the_settings_it_needs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(settings_file()))
    environment: Mapping[str, str] = dict(variables(name))
    # What is set means something: each name leads to a field of the settings.
    for variable in environment.keys() - {"HEADWAY_SETTINGS", "HOME"}:
        section, _, field = variable.removeprefix("HEADWAY_").lower().partition("__")
        assert section in Settings.model_fields, variable
        assert field, variable
    mounts = {mount["name"]: mount["mountPath"] for mount in container(name)["volumeMounts"]}
    assert environment["HEADWAY_SETTINGS"] == f"{mounts['settings']}/settings.json"
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("HEADWAY_SETTINGS", str(path))
    settings = Settings()
    assert NEEDS[name] <= {section for section in Settings.model_fields if getattr(settings, section) is not None}
    # Nobody holds a credential that it does not need.
    assert (settings.postgres is not None) == ("postgres" in NEEDS[name])
    if name.endswith("-worker"):
        assert settings.worker.name == f"{name}-0"
        assert str(settings.worker.scratch_dir) == mounts["scratch"]
        assert pod(name)["terminationGracePeriodSeconds"] > settings.worker.stop_grace_seconds


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "migrate"])
def test_probes_ask_the_port_that_is_listened_on(name: str) -> None:
    only = container(name)
    (port,) = [one["containerPort"] for one in only["ports"]]
    assert only["startupProbe"]["grpc"]["port"] == port
    assert only["readinessProbe"]["grpc"]["port"] == port
    assert only["livenessProbe"]["tcpSocket"]["port"] == port
    listens = settings_file()["control_plane"]["listen"] if name == "control-plane" else only["args"][-1]
    assert listens == f"0.0.0.0:{port}"


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_command_is_one_that_there_is(name: str) -> None:
    flag, module, *_ = container(name)["args"]
    assert flag == "-m"
    assert (BASE.parents[2] / module.replace(".", "/") / "__main__.py").is_file()


def test_services_select_pods_and_clients_are_told_the_right_address() -> None:
    labels = [workload(name)["spec"]["template"]["metadata"]["labels"] for name in WORKLOADS]
    for service in of_kind("Service").values():
        assert any(service["spec"]["selector"].items() <= one.items() for one in labels)
    address = settings_file()["control_plane"]["address"]
    service = of_kind("Service")["control-plane"]
    (port,) = [one["port"] for one in service["spec"]["ports"]]
    assert address == f"control-plane.{service['metadata']['namespace']}:{port}"


def test_no_secret_is_in_the_manifests() -> None:
    assert not of_kind("Secret")
    Settings.model_validate(settings_file())
    assert not settings_file().keys() & {"postgres"}
    assert not settings_file()["s3"].keys() & {"access_key_id", "secret_access_key"}
