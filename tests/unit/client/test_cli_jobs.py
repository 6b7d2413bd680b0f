"""The commands that look at jobs and steer them: one, many at once, and beside each other."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import any_pb2
from google.protobuf.struct_pb2 import NULL_VALUE, Value
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from headway.jobs.v1 import job_pb2
from headway.jobs.v1 import job_service_pb2 as jobs
from headway.jobs.v1.job_spec_pb2 import ObjectiveSpec
from headway_client.cli.job_summary import models_and_data
from headway_client.cli.output import as_plain
from headway_client.job_file import parse_job, read_job_file
from tests.unit.client.command_line import headway
from tests.unit.client.conftest import Serve
from tests.unit.client.scripted_job import JOB_ID, ScriptedJob

ROOT = Path(__file__).resolve().parents[3]
JOB_FILE = ROOT / "examples" / "fine_tune.yaml"


class OtherJobs(ScriptedJob):
    """Takes batches and steers selections; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self.tokens: list[str] = []

    def _note(self, request: Any, context: aio.ServicerContext[Any, Any]) -> None:
        self.asked.append(request)
        shown = dict(context.invocation_metadata() or ())
        self.tokens.append(str(shown.get("authorization", "")))

    async def BatchSubmitJobs(  # noqa: N802  the generated name
        self, request: jobs.BatchSubmitJobsRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.BatchSubmitJobsResponse:
        self._note(request, context)
        bad = [number for number, item in enumerate(request.items) if not item.spec.fine_tune.base_model]
        faults = [f"items[{number}].spec.fine_tune.base_model" for number in bad]
        if bad and not request.partial_success:
            status = invalid(dict.fromkeys(faults, "is empty; expected a name"))
            await context.abort_with_status(rpc_status.to_status(status))
        refusal = invalid({"spec.fine_tune.base_model": "is empty; expected a name"})
        results = [
            jobs.BatchResult(status=refusal) if number in bad else jobs.BatchResult(job_id=f"job-{number}")
            for number in range(len(request.items))
        ]
        return jobs.BatchSubmitJobsResponse(results=results, accepted_count=len(results) - len(bad))

    async def CancelJob(  # noqa: N802  the generated name
        self, request: jobs.CancelJobRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.CancelJobResponse:
        self._note(request, context)
        refused = jobs.JobOutcome(job_id="b", state=job_pb2.JOB_STATE_FAILED, status=invalid({}))
        done = jobs.JobOutcome(job_id="a", state=job_pb2.JOB_STATE_CANCELLED)
        named = bool(request.selection.job_ids)
        outcome = jobs.SelectionOutcome(outcomes=[done, refused] if named else [done], changed_count=1, more=not named)
        return jobs.CancelJobResponse(outcome=outcome)

    async def PauseJob(self, request: Any, context: aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802  the generated name
        return jobs.PauseJobResponse(outcome=self._nothing(request, context))

    async def ResumeJob(self, request: Any, context: aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802  the generated name
        return jobs.ResumeJobResponse(outcome=self._nothing(request, context))

    async def PreemptJob(self, request: Any, context: aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802  the generated name
        return jobs.PreemptJobResponse(outcome=self._nothing(request, context))

    async def ReprioritizeJob(self, request: Any, context: aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802  the generated name
        return jobs.ReprioritizeJobResponse(outcome=self._nothing(request, context))

    def _nothing(self, request: Any, context: aio.ServicerContext[Any, Any]) -> jobs.SelectionOutcome:
        self._note(request, context)
        return jobs.SelectionOutcome()

    async def DiffJobs(  # noqa: N802  the generated name
        self, request: jobs.DiffJobsRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.DiffJobsResponse:
        self._note(request, context)
        changes = [("training.steps", 8.0, 20.0), ("training.learning_rate", 0.5, 5e-4), ("seed", 2.0**80, None)]
        return jobs.DiffJobsResponse(
            differences=[
                jobs.Difference(section=jobs.DIFF_SECTION_SPEC, path=path, left=number(left), right=number(right))
                for path, left, right in changes
            ]
        )

    async def RerunJob(  # noqa: N802  the generated name
        self, request: jobs.RerunJobRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.RerunJobResponse:
        self._note(request, context)
        return jobs.RerunJobResponse(job=job_pb2.Job(job_id="new", rerun_of=request.job_id))

    async def ListJobs(  # noqa: N802  the generated name
        self, request: jobs.ListJobsRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.ListJobsResponse:
        self._note(request, context)
        return jobs.ListJobsResponse(jobs=[job_pb2.Job(job_id="a", project="p", state=job_pb2.JOB_STATE_PAUSED)])


def invalid(fields: dict[str, str]) -> status_pb2.Status:
    """As Headway says that a request is not valid: every fault in the sentence and in the details."""
    listed = "; ".join(f"{field}: {text}" for field, text in fields.items())
    status = status_pb2.Status(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message=f"the request is not valid: {listed}")
    violations = [{"field": field, "description": text} for field, text in fields.items()]
    for detail in (
        error_details_pb2.ErrorInfo(reason="INVALID_FIELD", domain="headway"),
        error_details_pb2.BadRequest(field_violations=violations),
    ):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def number(value: float | None) -> Value:
    return Value(null_value=NULL_VALUE) if value is None else Value(number_value=value)


def lines_of(path: Path, *base_models: str) -> Path:
    documents = [{"project": "p", "spec": {"fine_tune": {"base_model": name}}} for name in base_models]
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


async def test_a_batch_of_files_is_one_request(serve: Serve, tmp_path: Path) -> None:
    servicer = OtherJobs()
    address = await serve(servicer.register)
    path = lines_of(tmp_path / "more.jsonl", "x", "y")
    files = (str(JOB_FILE), str(path))
    run = await headway("submit", "--batch", *files, "-p", "p", "--job-set", "sweep", "--address", address)
    assert (run.code, run.err) == (0, "")
    assert [line.split() for line in run.out.splitlines()] == [
        ["job-0", str(JOB_FILE)],
        ["job-1", f"{path}:1"],
        ["job-2", f"{path}:2"],
        ["3", "submitted,", "0", "refused"],
    ]
    (request,) = servicer.asked
    assert (request.project, request.job_set, len(request.items), request.partial_success) == ("p", "sweep", 3, False)


async def test_a_refused_batch_names_each_fault_once_by_file_and_line(serve: Serve, tmp_path: Path) -> None:
    address = await serve(OtherJobs().register)
    path = lines_of(tmp_path / "more.jsonl", "x", "", "")
    run = await headway("submit", "--batch", str(path), "--address", address)
    assert run.code == 2
    assert run.err.splitlines() == [
        "headway: the request is not valid",
        f"  {path}:2: spec.fine_tune.base_model: is empty; expected a name",
        f"  {path}:3: spec.fine_tune.base_model: is empty; expected a name",
    ]
    one = await headway("submit", "--batch", str(lines_of(tmp_path / "one.jsonl", "x", "")), "--address", address)
    assert one.err == (
        f"headway: the request is not valid: {tmp_path / 'one.jsonl'}:2: spec.fine_tune.base_model: is empty; expected a name\n"
    )
    partly = await headway("submit", "--batch", "--partial", str(path), "--address", address)
    assert partly.code == 2
    assert "job-0" in partly.out
    assert "1 submitted, 2 refused" in partly.out


async def test_many_jobs_are_steered_by_set_and_by_id(serve: Serve) -> None:
    servicer = OtherJobs()
    address = await serve(servicer.register)
    by_set, by_id = await asyncio.gather(
        headway("cancel", "--job-set", "sweep", "-p", "p", "--reason", "budget", "--address", address),
        headway("cancel", "a", "b", "--json", "--address", address),
    )
    assert (by_set.code, by_id.code) == (0, 4)
    assert "1 changed, 0 refused; more match: repeat the command" in by_set.out
    assert by_id.documents()[0]["outcome"]["changed_count"] == 1
    selections = {tuple(request.selection.job_ids): request for request in servicer.asked}
    assert (selections[()].selection.job_set, selections[()].reason) == ("sweep", "budget")
    assert ("a", "b") in selections


async def test_a_rerun_names_what_it_changes(serve: Serve) -> None:
    servicer = OtherJobs()
    address = await serve(servicer.register)
    steps, rate = "fine_tune.training.steps", "fine_tune.training.learning_rate"
    run = await headway("rerun", "old", "--set", f"{steps}=20", "--set", f"{rate}=5e-4", "--address", address)
    assert (run.code, run.err) == (0, "")
    (request,) = servicer.asked
    assert list(request.spec_mask.paths) == [steps, rate]
    assert (request.spec.fine_tune.training.steps, request.spec.fine_tune.training.learning_rate) == (20, 5e-4)


async def test_jobs_of_every_project_are_listed_with_a_filter(serve: Serve, tmp_path: Path) -> None:
    servicer = OtherJobs()
    address = await serve(servicer.register)
    (tmp_path / "token").write_text("secret\n")
    query = ("--filter", "state = PAUSED", "--order-by", "priority desc")
    run = await headway(
        "jobs", "--all-projects", *query, "--address", address, "--token-file", str(tmp_path / "token"), cwd=tmp_path
    )
    assert run.out.splitlines()[1].split()[:3] == ["p", "a", "-"]
    (request,) = servicer.asked
    assert (request.project, request.filter, request.order_by) == ("", "state = PAUSED", "priority desc")
    assert servicer.tokens == ["Bearer secret"]
    nowhere = await headway("jobs", "--address", address)
    assert nowhere.code == 2


@pytest.mark.parametrize("verb", ["pause", "resume", "preempt", "reprioritize"])
async def test_a_verb_that_finds_no_job_says_so_and_fails(serve: Serve, verb: str) -> None:
    servicer = OtherJobs()
    address = await serve(servicer.register)
    asked = (verb, *(("--priority", "1") if verb == "reprioritize" else ()), "-p", "p", "--address", address)
    of_set, found = await asyncio.gather(
        headway(*asked, "--job-set", "nosuch"),
        headway(*asked, "--filter", "priority = 3", "--reason", "budget", "--json"),
    )
    assert (of_set.code, of_set.out) == (3, "")
    assert of_set.err.splitlines() == [
        f"headway: no job matched: job set nosuch in project p has none to {verb}",
        "  `headway jobs -p p --filter 'job_set = \"nosuch\"'` lists what there is, in whatever state",
    ]
    assert (found.code, found.documents()) == (3, [{"outcome": {}}])
    assert found.error()["message"] == f"no job matched: what the filter finds in project p has none to {verb}"
    assert {request.reason for request in servicer.asked} == {"", "budget"}


async def test_whole_numbers_and_the_ids_of_jobs_that_are_compared_can_be_told_apart(serve: Serve) -> None:
    address = await serve(OtherJobs().register)
    one, other = "01a209cd-a989-75b1-8172-b0e428b592fc", "01a209cd-a9c3-7e06-93d1-2f6a7b9c0d1e"
    run = await headway("diff", one, other, "--address", address)
    assert [line.split() for line in run.out.splitlines()] == [
        ["PART", "FIELD", "…28b592fc", "…7b9c0d1e"],
        ["spec", "training.steps", "8", "20"],
        ["spec", "training.learning_rate", "0.5", "0.0005"],
        ["spec", "seed", "1.2089258196146292e+24", "-"],
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("hpo", {"type": "hpo", "base model": "smollm2-135m-instruct", "dataset": "chatterbot-english"}),
        ("retrain", {"type": "retrain", "dataset": "chatterbot-english", "output model": "support-assistant"}),
        (
            "evaluation",
            {"model": "support-assistant@dev", "baseline": "support-assistant@prod", "dataset": "chatterbot-english"},
        ),
        ("rlhf", {"type": "rlhf", "output model": "support-assistant-aligned"}),
    ],
)
async def test_a_job_of_any_type_shows_what_it_works_on(serve: Serve, name: str, shown: dict[str, str]) -> None:
    servicer = ScriptedJob()
    servicer.job.spec.CopyFrom(read_job_file(ROOT / "examples" / f"{name}.yaml").spec)
    run = await headway("get", JOB_ID, "--address", await serve(servicer.register))
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in run.out.splitlines())
    assert shown.items() <= facts.items()


def test_several_datasets_are_told_apart_by_their_place() -> None:
    spec = read_job_file(ROOT / "examples" / "rlhf.yaml").spec
    spec.rlhf.policy.prompts.sha256 = "ab" * 32
    assert [said for label, said in models_and_data(spec) if label == "dataset"] == [
        "chatterbot-english, warm_up.dataset",
        "support-prompts (sha256 abababababab…), policy.prompts",
        "support-preferences, policy.reward_model.train.dataset",
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_spec_is_shown_as_a_job_file_that_means_the_same(path: Path) -> None:
    spec = read_job_file(path).spec
    shown = yaml.safe_dump({"spec": as_plain(spec)})
    assert parse_job(path, shown).spec == spec
    if path.stem == "hpo":
        assert "direction: minimize\n" in shown
        assert "sampler: tpe\n" in shown


def test_an_enum_value_of_a_newer_server_is_its_number() -> None:
    assert as_plain(ObjectiveSpec(direction=99)) == {"direction": 99}  # type: ignore[arg-type]  # not in this contract
