"""The role matrix: who may call what, in the notation of the threat model, and a good request for every method.

✓ allowed · U UNAUTHENTICATED · D PERMISSION_DENIED · N NOT_FOUND · F FAILED_PRECONDITION. The columns: **an** nobody,
**v** viewer, **s** submitter, **m** maintainer and **p** approver of the project, **x** a maintainer of another one,
**o** admin and **a** auditor of the organisation, **w** an attempt of the job, **k** a worker process. Written by hand, it
says what must be, whatever the server's policy says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import timestamp_pb2
from google.protobuf.message import Message

from headway.attempts.v1 import attempt_service_pb2 as attempts
from headway.audit.v1 import audit_service_pb2 as audit
from headway.capacity.v1 import capacity_service_pb2 as capacity
from headway.datasets.v1 import dataset_service_pb2 as datasets
from headway.identity.v1 import identity_service_pb2 as identity
from headway.jobs.v1 import job_pb2
from headway.jobs.v1 import job_service_pb2 as jobs
from headway.logs.v1 import log_record_pb2
from headway.logs.v1 import log_service_pb2 as logs
from headway.projects.v1 import project_service_pb2 as projects
from headway.quotas.v1 import budget_pb2 as budgets
from headway.quotas.v1 import ledger_pb2 as ledgers
from headway.quotas.v1 import price_pb2 as prices
from headway.quotas.v1 import quota_service_pb2 as quotas
from headway.registry.v1 import registry_service_pb2 as registry
from headway.scheduler.v1 import scheduler_service_pb2 as scheduler
from headway.webhooks.v1 import webhook_service_pb2 as webhooks
from tests.integration.control_plane.conftest import new_id
from tests.integration.control_plane.scenes import FAR, Row, Scene, new_name

ROLES = ("an", "v", "s", "m", "o", "w", "x", "a", "p", "k")

# `project`, `job`: the cell is for an object of the caller's own project; `Row.expected` says what follows for those of others
# and for missing ones. `none`: the request names nothing. `mine`: a job that s submitted. `attempt`: a worker's write.
MATRIX = """
rpc                              scope    an v s m o w x a p k
JobService/SubmitJob             project  U  D ✓ ✓ ✓ D N D D D
JobService/BatchSubmitJobs       project  U  D ✓ ✓ ✓ D N D D D
JobService/GetJob                job      U  ✓ ✓ ✓ ✓ ✓ N ✓ D D
JobService/ListJobs              project  U  ✓ ✓ ✓ ✓ D N ✓ D D
JobService/CancelJob             job      U  D D ✓ ✓ D N D D D
JobService/CancelJob             mine     U  D ✓ ✓ ✓ D N D D D
JobService/PauseJob              job      U  D D ✓ ✓ D N D D D
JobService/PauseJob              mine     U  D ✓ ✓ ✓ D N D D D
JobService/ResumeJob             job      U  D D ✓ ✓ D N D D D
JobService/ResumeJob             mine     U  D ✓ ✓ ✓ D N D D D
JobService/PreemptJob            job      U  D D ✓ ✓ D N D D D
JobService/PreemptJob            mine     U  D ✓ ✓ ✓ D N D D D
JobService/ReprioritizeJob       job      U  D D ✓ ✓ D N D D D
JobService/ReprioritizeJob       mine     U  D ✓ ✓ ✓ D N D D D
JobService/UpdateJob             job      U  D D ✓ ✓ D N D D D
JobService/UpdateJob             mine     U  D ✓ ✓ ✓ D N D D D
JobService/RerunJob              job      U  D D ✓ ✓ D N D D D
JobService/RerunJob              mine     U  D ✓ ✓ ✓ D N D D D
JobService/DiffJobs              job      U  ✓ ✓ ✓ ✓ D N ✓ D D
JobService/GetJobSet             project  U  ✓ ✓ ✓ ✓ D N ✓ D D
JobService/ListJobSets           project  U  ✓ ✓ ✓ ✓ D N ✓ D D
JobService/WatchEvents           job      U  ✓ ✓ ✓ ✓ ✓ N ✓ D D
JobService/WatchEvents           project  U  ✓ ✓ ✓ ✓ D N ✓ D D
LogService/TailLogs              job      U  ✓ ✓ ✓ ✓ D N D D D
LogService/StreamProgress        job      U  ✓ ✓ ✓ ✓ D N D D D
LogService/AppendLogs            attempt  U  D D D D ✓ D D D D
AttemptService/StartPhase        attempt  U  D D D D ✓ D D D D
AttemptService/FinishPhase       attempt  U  D D D D ✓ D D D D
AttemptService/RequestLease      attempt  U  D D D D ✓ D D D D
AttemptService/RenewLease        attempt  U  D D D D ✓ D D D D
AttemptService/ReleaseLease      attempt  U  D D D D ✓ D D D D
AttemptService/CommitCheckpoint  attempt  U  D D D D ✓ D D D D
AttemptService/ListCheckpoints   attempt  U  D D D D ✓ D D D D
AttemptService/RecordResume      attempt  U  D D D D ✓ D D D D
AttemptService/ConfirmPause      attempt  U  D D D D ✓ D D D D
AttemptService/FinishJob         attempt  U  D D D D ✓ D D D D
AttemptService/BatchRequestLeases none   U  D D D D D D D D ✓
AttemptService/BatchFinishJobs   none    U  D D D D D D D D ✓
RegistryService/RegisterModelVersion attempt U D D D D ✓ D D D D
RegistryService/RecordMirror     attempt  U  D D D D ✓ D D D D
RegistryService/GetModelVersion  project  U  ✓ ✓ ✓ ✓ D N ✓ ✓ D
RegistryService/ListModelVersions project U  ✓ ✓ ✓ ✓ D N ✓ ✓ D
RegistryService/RegisterBaseModel none    U  D D D ✓ D D D D D
RegistryService/ListBaseModels   none     U  ✓ ✓ ✓ ✓ D ✓ ✓ ✓ D
CapacityService/RegisterWorker   none     U  D D D D D D D D ✓
CapacityService/RegisterNodePool none     U  D D D D D D D D ✓
CapacityService/ListWorkers      none     U  ✓ ✓ ✓ ✓ ✓ ✓ ✓ ✓ ✓
CapacityService/DeleteWorker     none     U  D D D ✓ D D D D D
DatasetService/CreateUpload      project  U  D ✓ ✓ ✓ D N D D D
DatasetService/RegisterDataset   project  U  D ✓ ✓ ✓ D N D D D
DatasetService/ListDatasets      project  U  ✓ ✓ ✓ ✓ D N ✓ D D
QuotaService/GetQuota            project  U  ✓ ✓ ✓ ✓ D N ✓ D D
QuotaService/GetQuota            none     U  ✓ ✓ ✓ ✓ D ✓ ✓ D D
QuotaService/SetQuota            project  U  D D D ✓ D N D D D
QuotaService/SetQuota            none     U  D D D ✓ D D D D D
QuotaService/DeleteQuota         project  U  D D D ✓ D N D D D
QuotaService/DeleteQuota         none     U  D D D ✓ D D D D D
QuotaService/ListQuotas          none     U  ✓ ✓ ✓ ✓ D ✓ ✓ D D
QuotaService/GetUsage            project  U  ✓ ✓ ✓ ✓ D N ✓ D D
QuotaService/SetBudget           project  U  D D D ✓ D N D D D
QuotaService/SetBudget           none     U  D D D ✓ D D D D D
QuotaService/GetBudget           project  U  ✓ ✓ ✓ ✓ D N ✓ D D
QuotaService/GetBudget           none     U  ✓ ✓ ✓ ✓ D ✓ ✓ D D
QuotaService/ListBudgets         none     U  ✓ ✓ ✓ ✓ D ✓ ✓ D D
QuotaService/DeleteBudget        project  U  D D D ✓ D N D D D
QuotaService/DeleteBudget        none     U  D D D ✓ D D D D D
QuotaService/SetPrice            none     U  D D D ✓ D D D D D
QuotaService/ListPrices          none     U  ✓ ✓ ✓ ✓ D ✓ ✓ D D
QuotaService/DeletePrice         none     U  D D D ✓ D D D D D
QuotaService/ListLedgerEntries   project  U  ✓ ✓ ✓ ✓ D N ✓ D D
QuotaService/ListLedgerEntries   none     U  D D D ✓ D D ✓ D D
QuotaService/GetReport           project  U  ✓ ✓ ✓ ✓ D N ✓ D D
QuotaService/GetReport           none     U  ✓ ✓ ✓ ✓ D ✓ ✓ D D
SchedulerService/ExplainJob      job      U  ✓ ✓ ✓ ✓ ✓ N ✓ D D
SchedulerService/ExplainQueue    project  U  ✓ ✓ ✓ ✓ D N ✓ D D
SchedulerService/GetSnapshot     none     U  D D D ✓ D D ✓ D D
SchedulerService/Simulate        project  U  D ✓ ✓ ✓ D N D D D
SchedulerService/Simulate        none     U  D D D ✓ D D D D D
SchedulerService/CordonNode      none     U  D D D ✓ D D D D D
SchedulerService/UncordonNode    none     U  D D D ✓ D D D D D
SchedulerService/DrainNode       none     U  D D D ✓ D D D D D
IdentityService/WhoAmI           none     U  ✓ ✓ ✓ ✓ ✓ ✓ ✓ ✓ ✓
IdentityService/CreateToken      project  U  D D ✓ ✓ D N D D D
IdentityService/CreateToken      none     U  D D D ✓ D D D D D
IdentityService/ListTokens       project  U  D D ✓ ✓ D N D D D
IdentityService/ListTokens       none     U  D D D ✓ D D D D D
IdentityService/RevokeToken      project  U  D D ✓ ✓ D N D D D
IdentityService/IssueAttemptToken none    U  D D D D D D D D ✓
ProjectService/CreateProject     none     U  D D D ✓ D D D D D
ProjectService/DeleteProject     none     U  D D D ✓ D D D D D
ProjectService/GetProject        project  U  ✓ ✓ ✓ ✓ D N ✓ ✓ D
ProjectService/ListProjects      none     U  ✓ ✓ ✓ ✓ D ✓ ✓ ✓ D
ProjectService/UpdateProject     project  U  D D ✓ ✓ D N D D D
ProjectService/SetMember         project  U  D D ✓ ✓ D N D D D
ProjectService/SetMember         none     U  D D D ✓ D D D D D
ProjectService/RemoveMember      project  U  D D ✓ ✓ D N D D D
ProjectService/RemoveMember      none     U  D D D ✓ D D D D D
ProjectService/ListMembers       project  U  ✓ ✓ ✓ ✓ D N ✓ D D
ProjectService/ListMembers       none     U  D D D ✓ D D ✓ D D
AuditService/ListAuditRecords    project  U  D D ✓ ✓ D N ✓ D D
AuditService/ListAuditRecords    none     U  D D ✓ ✓ D ✓ ✓ D D
AuditService/GetAuditHead        none     U  D D D ✓ D D ✓ D D
WebhookService/CreateWebhook     project  U  D D ✓ ✓ D N D D D
WebhookService/ListWebhooks      project  U  ✓ ✓ ✓ ✓ D N ✓ D D
WebhookService/DeleteWebhook     project  U  D D ✓ ✓ D N D D D
WebhookService/ListWebhookDeliveries project U ✓ ✓ ✓ ✓ D N ✓ D D
"""


def rows() -> list[Row]:
    """The matrix."""
    found: list[Row] = []
    for line in MATRIX.strip().splitlines()[1:]:
        rpc, scope, *cells = line.split()
        found.append(Row(rpc, scope, dict(zip(ROLES, cells, strict=True))))
    return found


_SIZE = 6
_FINE_TUNE = {"base_model": "base", "dataset": {"name": "questions"}, "output_model": "assistant"}


def _set_budget(**named: Any) -> budgets.SetBudgetRequest:
    hard = budgets.SpendingLimit(micros=10**9)
    budget = budgets.Budget(
        **named, period=budgets.BUDGET_PERIOD_MONTH, hard_limit=hard, at_hard_limit=budgets.AT_HARD_LIMIT_WARN
    )
    return budgets.SetBudgetRequest(request_id=new_id(), budget=budget)


def _report(project: str = "") -> ledgers.GetReportRequest:
    start, end = timestamp_pb2.Timestamp(seconds=FAR - 1), timestamp_pb2.Timestamp(seconds=FAR)
    return ledgers.GetReportRequest(project=project, start_time=start, end_time=end)


def _verb(kind: type[Message]) -> Callable[[Scene], Message]:
    return lambda scene: kind(request_id=new_id(), job_id=scene.job_id, reason="because")


def request(row: Row, scene: Scene) -> Message:
    """A good request of this kind about the scene."""
    return _REQUESTS[row.rpc if row.scope not in {"none", "project"} else f"{row.rpc} {row.scope}"](scene)


def _manifest_uri(scene: Scene, sha256: str) -> str:
    """Where the scene's project would have stored a manifest."""
    return f"{scene.manifest_uri.partition('/projects/')[0]}/projects/{scene.project}/manifests/{sha256}.json"


_JOB_SPEC: Any = {"fine_tune": _FINE_TUNE}
_TRAIN = job_pb2.JOB_PHASE_TRAIN
_REQUESTS: dict[str, Callable[[Scene], Message]] = {
    "JobService/SubmitJob project": lambda scene: jobs.SubmitJobRequest(
        request_id=new_id(), project=scene.project, spec=_JOB_SPEC
    ),
    "JobService/BatchSubmitJobs project": lambda scene: jobs.BatchSubmitJobsRequest(
        request_id=new_id(), project=scene.project, items=[jobs.BatchItem(spec=_JOB_SPEC)]
    ),
    "JobService/GetJob": lambda scene: jobs.GetJobRequest(job_id=scene.job_id),
    "JobService/ListJobs project": lambda scene: jobs.ListJobsRequest(project=scene.project),
    "JobService/CancelJob": _verb(jobs.CancelJobRequest),
    "JobService/PauseJob": _verb(jobs.PauseJobRequest),
    "JobService/ResumeJob": _verb(jobs.ResumeJobRequest),
    "JobService/PreemptJob": _verb(jobs.PreemptJobRequest),
    "JobService/ReprioritizeJob": lambda scene: jobs.ReprioritizeJobRequest(
        request_id=new_id(), job_id=scene.job_id, priority=7
    ),
    "JobService/UpdateJob": lambda scene: jobs.UpdateJobRequest(
        request_id=new_id(),
        job=job_pb2.Job(job_id=scene.job_id, name="renamed"),
        update_mask={"paths": ["name"]},  # pyright: ignore[reportArgumentType] - protobuf takes a dict
    ),
    "JobService/RerunJob": lambda scene: jobs.RerunJobRequest(request_id=new_id(), job_id=scene.job_id),
    "JobService/DiffJobs": lambda scene: jobs.DiffJobsRequest(job_id=scene.job_id, other_job_id=scene.other_job_id),
    "JobService/GetJobSet project": lambda scene: jobs.GetJobSetRequest(project=scene.project, name="sweep"),
    "JobService/ListJobSets project": lambda scene: jobs.ListJobSetsRequest(project=scene.project),
    "JobService/WatchEvents": lambda scene: jobs.WatchEventsRequest(job_id=scene.job_id),
    "JobService/WatchEvents project": lambda scene: jobs.WatchEventsRequest(project=scene.project),
    "LogService/TailLogs": lambda scene: logs.TailLogsRequest(job_id=scene.job_id),
    "LogService/StreamProgress": lambda scene: logs.StreamProgressRequest(job_id=scene.job_id),
    "LogService/AppendLogs": lambda scene: logs.AppendLogsRequest(
        job_id=scene.job_id,
        attempt=1,
        records=[log_record_pb2.LogRecord(sequence=1, line=log_record_pb2.LogLine(text="hello"))],
    ),
    "AttemptService/StartPhase": lambda scene: attempts.StartPhaseRequest(job_id=scene.job_id, attempt=1, phase=_TRAIN),
    "AttemptService/FinishPhase": lambda scene: attempts.FinishPhaseRequest(job_id=scene.job_id, attempt=1, phase=_TRAIN),
    "AttemptService/RequestLease": lambda scene: attempts.RequestLeaseRequest(
        lease_id=new_id(),
        job_id=scene.job_id,
        attempt=1,
        phase=_TRAIN,
        shape=attempts.Shape(accelerators=1, accelerator_kind="any"),
        max_run_seconds=60,
    ),
    "AttemptService/RenewLease": lambda scene: attempts.RenewLeaseRequest(
        lease_id=scene.lease_id, job_id=scene.job_id, attempt=1
    ),
    "AttemptService/ReleaseLease": lambda scene: attempts.ReleaseLeaseRequest(
        lease_id=scene.lease_id, job_id=scene.job_id, outcome="completed"
    ),
    "AttemptService/CommitCheckpoint": lambda scene: attempts.CommitCheckpointRequest(
        job_id=scene.job_id,
        attempt=1,
        checkpoint=attempts.Checkpoint(step=1, manifest_uri=_manifest_uri(scene, "a" * 64), manifest_sha256="a" * 64),
    ),
    "AttemptService/ListCheckpoints": lambda scene: attempts.ListCheckpointsRequest(job_id=scene.job_id),
    "AttemptService/RecordResume": lambda scene: attempts.RecordResumeRequest(job_id=scene.job_id, attempt=1, step=0),
    "AttemptService/ConfirmPause": lambda scene: attempts.ConfirmPauseRequest(job_id=scene.job_id, attempt=1, pause=1),
    "AttemptService/FinishJob": lambda scene: attempts.FinishJobRequest(
        job_id=scene.job_id, attempt=1, state=job_pb2.JOB_STATE_SUCCEEDED
    ),
    "AttemptService/BatchRequestLeases none": lambda scene: attempts.BatchRequestLeasesRequest(
        requests=[
            attempts.RequestLeaseRequest(
                lease_id=new_id(),
                job_id=scene.job_id,
                attempt=1,
                phase=_TRAIN,
                shape=attempts.Shape(accelerators=1, accelerator_kind="any"),
                max_run_seconds=60,
            )
        ]
    ),
    "AttemptService/BatchFinishJobs none": lambda scene: attempts.BatchFinishJobsRequest(
        requests=[attempts.FinishJobRequest(job_id=scene.job_id, attempt=1, state=job_pb2.JOB_STATE_SUCCEEDED)]
    ),
    "RegistryService/RegisterModelVersion": lambda scene: registry.RegisterModelVersionRequest(
        job_id=scene.job_id,
        attempt=1,
        model_version=registry.ModelVersion(
            project=scene.project, model="made", manifest_uri=_manifest_uri(scene, "b" * 64), manifest_sha256="b" * 64
        ),
    ),
    "RegistryService/RecordMirror": lambda scene: registry.RecordMirrorRequest(
        job_id=scene.job_id, attempt=1, mlflow_version="1"
    ),
    "RegistryService/GetModelVersion project": lambda scene: registry.GetModelVersionRequest(
        project=scene.project, model="assistant"
    ),
    "RegistryService/ListModelVersions project": lambda scene: registry.ListModelVersionsRequest(project=scene.project),
    "RegistryService/RegisterBaseModel none": lambda scene: registry.RegisterBaseModelRequest(
        request_id=new_id(),
        base_model=registry.BaseModel(
            name=new_name(),
            sha256=scene.sha256,
            size_bytes=_SIZE,
            uri=scene.manifest_uri.rpartition("/")[0] + f"/{scene.sha256}",
            format=registry.BASE_MODEL_FORMAT_GGUF,
        ),
    ),
    "RegistryService/ListBaseModels none": lambda _: registry.ListBaseModelsRequest(),
    "CapacityService/RegisterWorker none": lambda _: capacity.RegisterWorkerRequest(
        worker=capacity.Worker(name=new_name(), incarnation=new_id(), accelerator_kind="cpu", accelerators=1)
    ),
    "CapacityService/RegisterNodePool none": lambda _: capacity.RegisterNodePoolRequest(
        pool="rented", nodes=[capacity.Worker(name=new_name(), incarnation=new_id(), accelerator_kind="cpu", accelerators=1)]
    ),
    "CapacityService/ListWorkers none": lambda _: capacity.ListWorkersRequest(),
    "CapacityService/DeleteWorker none": lambda scene: capacity.DeleteWorkerRequest(request_id=new_id(), name=scene.node),
    "DatasetService/CreateUpload project": lambda scene: datasets.CreateUploadRequest(
        project=scene.project, sha256=scene.sha256, size_bytes=_SIZE
    ),
    "DatasetService/RegisterDataset project": lambda scene: datasets.RegisterDatasetRequest(
        request_id=new_id(),
        dataset=datasets.Dataset(project=scene.project, name=new_name(), sha256=scene.sha256, size_bytes=_SIZE),
    ),
    "DatasetService/ListDatasets project": lambda scene: datasets.ListDatasetsRequest(project=scene.project),
    "QuotaService/GetQuota project": lambda scene: quotas.GetQuotaRequest(project=scene.project),
    "QuotaService/SetQuota project": lambda scene: quotas.SetQuotaRequest(
        request_id=new_id(), quota=quotas.Quota(project=scene.project, max_accelerators={"cpu": 4})
    ),
    "QuotaService/GetQuota none": lambda _: quotas.GetQuotaRequest(organisation=True),
    "QuotaService/SetQuota none": lambda _: quotas.SetQuotaRequest(
        request_id=new_id(), quota=quotas.Quota(team=new_name(), max_accelerators={"cpu": 4})
    ),
    "QuotaService/DeleteQuota project": lambda scene: quotas.DeleteQuotaRequest(request_id=new_id(), project=scene.project),
    "QuotaService/DeleteQuota none": lambda scene: quotas.DeleteQuotaRequest(request_id=new_id(), team=scene.node),
    "QuotaService/SetBudget project": lambda scene: _set_budget(project=scene.project),
    "QuotaService/SetBudget none": lambda _: _set_budget(organisation=True),
    "QuotaService/GetBudget project": lambda scene: budgets.GetBudgetRequest(project=scene.project),
    "QuotaService/GetBudget none": lambda _: budgets.GetBudgetRequest(organisation=True),
    "QuotaService/ListBudgets none": lambda _: budgets.ListBudgetsRequest(),
    "QuotaService/DeleteBudget project": lambda scene: budgets.DeleteBudgetRequest(request_id=new_id(), project=scene.project),
    "QuotaService/DeleteBudget none": lambda scene: budgets.DeleteBudgetRequest(request_id=new_id(), team=scene.node),
    "QuotaService/SetPrice none": lambda _: prices.SetPriceRequest(
        request_id=new_id(), price=prices.Price(accelerator_kind="cpu", micros_per_hour=1)
    ),
    "QuotaService/ListPrices none": lambda _: prices.ListPricesRequest(),
    "QuotaService/DeletePrice none": lambda _: prices.DeletePriceRequest(
        request_id=new_id(), accelerator_kind="cpu", start_time=timestamp_pb2.Timestamp(seconds=FAR)
    ),
    "QuotaService/ListLedgerEntries project": lambda scene: ledgers.ListLedgerEntriesRequest(project=scene.project),
    "QuotaService/ListLedgerEntries none": lambda _: ledgers.ListLedgerEntriesRequest(organisation=True),
    "QuotaService/GetReport project": lambda scene: _report(project=scene.project),
    "QuotaService/GetReport none": lambda _: _report(),
    "QuotaService/ListQuotas none": lambda _: quotas.ListQuotasRequest(),
    "QuotaService/GetUsage project": lambda scene: quotas.GetUsageRequest(project=scene.project),
    "SchedulerService/ExplainJob": lambda scene: scheduler.ExplainJobRequest(job_id=scene.job_id),
    "SchedulerService/ExplainQueue project": lambda scene: scheduler.ExplainQueueRequest(project=scene.project),
    "SchedulerService/GetSnapshot none": lambda _: scheduler.GetSnapshotRequest(page_size=1),
    "SchedulerService/Simulate project": lambda scene: scheduler.SimulateRequest(
        submission=scheduler.Submission(project=scene.project, shape=attempts.Shape(accelerators=1, accelerator_kind="any"))
    ),
    "SchedulerService/Simulate none": lambda scene: scheduler.SimulateRequest(lost_node=scene.node),
    "SchedulerService/CordonNode none": lambda scene: scheduler.CordonNodeRequest(request_id=new_id(), node=scene.node),
    "SchedulerService/UncordonNode none": lambda scene: scheduler.UncordonNodeRequest(request_id=new_id(), node=scene.node),
    "SchedulerService/DrainNode none": lambda scene: scheduler.DrainNodeRequest(request_id=new_id(), node=scene.node),
    "IdentityService/WhoAmI none": lambda _: identity.WhoAmIRequest(),
    "IdentityService/CreateToken project": lambda scene: identity.CreateTokenRequest(
        request_id=new_id(), project=scene.project, name=new_name(), role=projects.ROLE_VIEWER
    ),
    "IdentityService/CreateToken none": lambda _: identity.CreateTokenRequest(
        request_id=new_id(), name=new_name(), role=projects.ROLE_AUDITOR
    ),
    "IdentityService/ListTokens project": lambda scene: identity.ListTokensRequest(project=scene.project),
    "IdentityService/ListTokens none": lambda _: identity.ListTokensRequest(),
    "IdentityService/RevokeToken project": lambda scene: identity.RevokeTokenRequest(
        request_id=new_id(), token_id=scene.token_id
    ),
    "IdentityService/IssueAttemptToken none": lambda scene: identity.IssueAttemptTokenRequest(job_id=scene.job_id, attempt=1),
    "ProjectService/CreateProject none": lambda _: projects.CreateProjectRequest(
        request_id=new_id(), project=projects.Project(name=new_name())
    ),
    "ProjectService/DeleteProject none": lambda scene: projects.DeleteProjectRequest(request_id=new_id(), name="to-be-deleted"),
    "ProjectService/GetProject project": lambda scene: projects.GetProjectRequest(name=scene.project),
    "ProjectService/ListProjects none": lambda _: projects.ListProjectsRequest(),
    "ProjectService/UpdateProject project": lambda scene: projects.UpdateProjectRequest(
        request_id=new_id(), name=scene.project, title="a title"
    ),
    "ProjectService/SetMember project": lambda scene: projects.SetMemberRequest(
        request_id=new_id(),
        member=projects.Member(project=scene.project, subject=f"user:{new_name()}", role=projects.ROLE_VIEWER),
    ),
    "ProjectService/SetMember none": lambda _: projects.SetMemberRequest(
        request_id=new_id(), member=projects.Member(subject=f"user:{new_name()}", role=projects.ROLE_AUDITOR)
    ),
    "ProjectService/RemoveMember project": lambda scene: projects.RemoveMemberRequest(
        request_id=new_id(), project=scene.project, subject=f"user:{scene.token_id}"
    ),
    "ProjectService/RemoveMember none": lambda scene: projects.RemoveMemberRequest(
        request_id=new_id(), subject=f"user:{scene.token_id}"
    ),
    "ProjectService/ListMembers project": lambda scene: projects.ListMembersRequest(project=scene.project),
    "ProjectService/ListMembers none": lambda _: projects.ListMembersRequest(),
    "AuditService/ListAuditRecords project": lambda scene: audit.ListAuditRecordsRequest(project=scene.project),
    "AuditService/ListAuditRecords none": lambda _: audit.ListAuditRecordsRequest(),
    "AuditService/GetAuditHead none": lambda _: audit.GetAuditHeadRequest(),
    "WebhookService/CreateWebhook project": lambda scene: webhooks.CreateWebhookRequest(
        request_id=new_id(), webhook=webhooks.Webhook(project=scene.project, url="https://93.184.215.14/hook")
    ),
    "WebhookService/ListWebhooks project": lambda scene: webhooks.ListWebhooksRequest(project=scene.project),
    "WebhookService/DeleteWebhook project": lambda scene: webhooks.DeleteWebhookRequest(
        request_id=new_id(), webhook_id=scene.webhook_id
    ),
    "WebhookService/ListWebhookDeliveries project": lambda scene: webhooks.ListWebhookDeliveriesRequest(
        webhook_id=scene.webhook_id
    ),
}
