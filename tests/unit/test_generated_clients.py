"""`buf generate` with the repository's template, as far as this machine has its plugins; TypeScript's client is tried out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from headway.jobs.v1 import job_service_pb2 as jobs

ROOT = Path(__file__).parents[2]
PACKAGES = ("@bufbuild/protoc-gen-es@2", "@bufbuild/protobuf@2")

_CHECK = """
import { create, toBinary, fromBinary } from "@bufbuild/protobuf";
import { SubmitJobRequestSchema, JobService } from "./headway/jobs/v1/job_service_pb.js";
const request = create(SubmitJobRequestSchema, {
  requestId: "r", project: "p", priority: 0,
  spec: { type: { case: "fineTune", value: { baseModel: "b", training: { steps: 3, seed: 7n } } } },
});
const again = fromBinary(SubmitJobRequestSchema, Buffer.from(process.argv[2], "hex"));
console.log(JSON.stringify({
  hex: Buffer.from(toBinary(SubmitJobRequestSchema, request)).toString("hex"),
  same: toBinary(SubmitJobRequestSchema, again).length === process.argv[2].length / 2,
  methods: JobService.methods.map((method) => method.name),
}));
"""


def template() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "buf.gen.yaml").read_text(encoding="utf-8"))


def test_the_template_names_a_plugin_for_every_language_of_the_docs() -> None:
    plugins = [plugin["local"] for plugin in template()["plugins"]]
    assert plugins == ["protoc-gen-go", "protoc-gen-go-grpc", "protoc-gen-es"]
    text = (ROOT / "docs/how-to/generate-clients.md").read_text(encoding="utf-8")
    assert all(plugin in text for plugin in plugins)


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TypeScript's plugin and runtime, from npm's registry."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed here")
    folder = tmp_path_factory.mktemp("npm")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES]
    try:
        done = subprocess.run(install, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm's registry does not answer")
    if done.returncode != 0:
        pytest.skip(f"npm's registry does not give {PACKAGES}: {done.stderr[-200:]}")
    return folder / "node_modules"


def generate(node_modules: Path, output: Path, target: str) -> Path:
    """The TypeScript part of the template, for a target; returns where it is."""
    content = template()
    content["plugins"] = [plugin for plugin in content["plugins"] if plugin["local"] == "protoc-gen-es"]
    content["plugins"][0]["opt"] = [f"target={target}", "import_extension=js"]
    subprocess.run(
        [str(Path(sys.executable).parent / "buf"), "generate", "--template", json.dumps(content), "-o", str(output)],
        cwd=ROOT,
        check=True,
        env=os.environ | {"PATH": f"{node_modules / '.bin'}:{os.environ['PATH']}"},
    )
    return output / content["plugins"][0]["out"]


def test_a_typescript_client_says_on_the_wire_what_the_python_one_says(node_modules: Path, tmp_path: Path) -> None:
    generated = generate(node_modules, tmp_path, "js+dts")
    (generated / "node_modules").symlink_to(node_modules)
    (generated / "package.json").write_text('{"type": "module"}')
    (generated / "check.js").write_text(_CHECK)
    request = jobs.SubmitJobRequest(request_id="r", project="p", priority=0)
    request.spec.fine_tune.base_model = "b"
    request.spec.fine_tune.training.steps = 3
    request.spec.fine_tune.training.seed = 7
    wire = request.SerializeToString(deterministic=True).hex()
    ran = subprocess.run(["node", "check.js", wire], cwd=generated, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert jobs.SubmitJobRequest.FromString(bytes.fromhex(found["hex"])) == request
    assert found["same"]
    assert found["methods"] == [method.name for method in jobs.DESCRIPTOR.services_by_name["JobService"].methods]


def test_the_typescript_sources_have_every_service(node_modules: Path, tmp_path: Path) -> None:
    generated = generate(node_modules, tmp_path, "ts")
    services = sorted(path.name for path in generated.glob("headway/*/v1/*_service_pb.ts"))
    expected = sorted(path.name.replace(".proto", "_pb.ts") for path in ROOT.glob("protos/headway/*/v1/*_service.proto"))
    assert services == expected
