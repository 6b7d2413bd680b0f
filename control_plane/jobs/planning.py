"""What a job would do and cost, foretold before anything is held: a pure function from a resolved spec and what is known.

Integers only: accelerator-seconds, and millionths of the price list's currency. Every number that is not known exactly is an
interval of what is possible, and the plan says in words what it rests on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from control_plane.jobs.spec import EvaluationJobSpec, FineTuneSpec, HpoSpec, JobSpec, ResourceSpec, RetrainSpec, RlhfSpec
from control_plane.jobs.specs.fine_tune import DatasetRef, TrainingSpec
from control_plane.jobs.specs.hpo import grid_size
from control_plane.jobs.workflows import waiting_without_workflow
from headway.jobs.v1 import plan_pb2

ANY_KIND = "any"
PRICE_MICROS_MAX = 10**9
"""Most for one accelerator-hour: a thousand of the currency. Costs of everything a spec may ask for then fit 64 bits."""

_COUNT_MAX = 2**63 - 1
"""Most that the wire's integers hold."""

Queue = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What is known of a dataset."""

    rows: int
    """Distinct rows."""
    tokens: int
    """Tokens that carry loss, of all rows together."""


@dataclass(frozen=True, slots=True)
class PriceList:
    """What accelerators cost.

    Raises:
        ValueError: a price is not within 0 to `PRICE_MICROS_MAX`.
    """

    currency: str
    """ISO 4217 code."""
    micros_per_hour: Mapping[str, int]
    """Millionths of the currency for one accelerator-hour, by kind."""

    def __post_init__(self) -> None:
        for kind, micros in self.micros_per_hour.items():
            if not 0 <= micros <= PRICE_MICROS_MAX:
                raise ValueError(f"the price of {kind} is {micros}; expected 0 to {PRICE_MICROS_MAX:,} millionths an hour")


@dataclass(frozen=True, slots=True)
class Interval:
    """A whole number that is not known exactly; both ends are possible."""

    low: int
    high: int

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class PlannedLease:
    """Leases of one shape."""

    accelerators: int
    accelerator_kind: str
    max_run_seconds: int
    leases: int = 1
    at_once: int = 1
    steps: int = 0


@dataclass(frozen=True, slots=True)
class PlannedPhase:
    """One phase of a job."""

    name: str
    queue: Queue = "cpu"
    lease: PlannedLease | None = None


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """How many tokens are trained on."""

    per_pass: int
    trained: Interval
    passes_thousandths: Interval


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Money."""

    currency: str
    micros: Interval


@dataclass(frozen=True, slots=True)
class JobPlan:
    """As headway.jobs.v1.JobPlan."""

    phases: tuple[PlannedPhase, ...]
    steps: int
    tokens: TokenEstimate | None
    accelerator_seconds: Interval
    cost: CostEstimate | None
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Trained:
    """One training that the job consists of."""

    phase: str
    dataset: DatasetRef
    training: TrainingSpec
    runs: int = 1
    """At most, of the full length."""
    certain: int = 1
    """Of those, how many go their full length whatever happens."""


@dataclass(slots=True)
class _Outline:
    """What differs between the types of job."""

    phases: list[PlannedPhase]
    trained: list[_Trained] = field(default_factory=list[_Trained])
    unknown_tokens: str = ""
    """Why the tokens cannot be foretold, whatever is known of the data."""
    least_seconds: int = 0
    """Accelerator-seconds that are used whatever happens."""
    most_seconds: int | None = None
    """A limit on all accelerator-seconds beyond that of the leases."""
    most_micros: int | None = None
    assumptions: list[str] = field(default_factory=list[str])


def plan(spec: JobSpec, data: Mapping[str, DataFacts], prices: PriceList | None) -> JobPlan:
    """What `spec` would do and cost.

    Args:
        spec: a resolved spec.
        data: what is known of the datasets it names, by name; nothing need be.
        prices: the price list, if there is one.
    """
    outline = _outline(spec)
    assumptions = outline.assumptions
    leases = [phase.lease for phase in outline.phases if phase.lease is not None]
    most = sum(lease.leases * lease.accelerators * lease.max_run_seconds for lease in leases)
    if outline.most_seconds is not None:
        most = min(most, outline.most_seconds)
    seconds = Interval(min(outline.least_seconds, most), most)
    assumptions.append(
        "accelerator-seconds: at most what the limits allow, every lease held for its longest run time; at least one second "
        "for each lease that the job cannot do without; no measured speed is used"
    )
    tokens = _tokens(outline, data)
    cost = _cost(seconds, {lease.accelerator_kind for lease in leases}, prices, outline)
    warnings = [waiting_without_workflow(spec.type)]
    if tokens is not None and tokens.passes_thousandths.low < 1_000:
        share = tokens.passes_thousandths.low
        warnings.append(
            f"training ends before it has seen all rows once: it sees {share / 10:g} % of them; raise steps to see all"
        )
    return JobPlan(
        phases=tuple(outline.phases),
        steps=sum(lease.leases * lease.steps for lease in leases),
        tokens=tokens,
        accelerator_seconds=seconds,
        cost=cost,
        assumptions=tuple(assumptions),
        warnings=tuple(warning for warning in warnings if warning),
    )


def _outline(spec: JobSpec) -> _Outline:
    match spec:
        case FineTuneSpec():
            return _fine_tune(spec)
        case HpoSpec():
            return _hpo(spec)
        case RetrainSpec():
            return _retrain(spec)
        case RlhfSpec():
            return _rlhf(spec)
        case EvaluationJobSpec():
            return _evaluation(spec)


_ENDING = (PlannedPhase("gate"), PlannedPhase("package"), PlannedPhase("register"))


def _held(name: str, resources: ResourceSpec, *, leases: int = 1, at_once: int = 1, steps: int = 0) -> PlannedPhase:
    lease = PlannedLease(resources.accelerators, resources.accelerator_kind, resources.max_run_seconds, leases, at_once, steps)
    return PlannedPhase(name, "gpu", lease)


def _fine_tune(spec: FineTuneSpec, *, runs: int = 1, at_once: int = 1) -> _Outline:
    train = _held("train", spec.resources, leases=runs, at_once=at_once, steps=spec.training.steps)
    evaluate = _held("evaluate", spec.resources, leases=runs, at_once=at_once)
    return _Outline(
        [PlannedPhase("prepare"), train, evaluate, *_ENDING],
        [_Trained("train", spec.dataset, spec.training, runs)],
        least_seconds=2 * spec.resources.accelerators,
    )


def _hpo(spec: HpoSpec) -> _Outline:
    trials = min(spec.max_trials, grid_size(spec)) if spec.sampler == "grid" else spec.max_trials
    outline = _fine_tune(spec.trial, runs=trials, at_once=min(trials, spec.max_parallel_trials))
    outline.trained[0] = replace(outline.trained[0], certain=0)
    resources = spec.trial.resources
    limits = [spec.max_parallel_trials * resources.accelerators * spec.max_run_seconds]
    if spec.max_accelerator_seconds:
        limits.append(spec.max_accelerator_seconds)
    outline.most_seconds = min(limits)
    outline.assumptions.append("every trial that may be tried is counted at its full length; early stopping makes it less")
    searched = {"training.micro_batch_size", "training.gradient_accumulation"} & set(spec.search_space)
    if searched:
        outline.unknown_tokens = f"the search varies how many sequences a step has ({', '.join(sorted(searched))})"
    return outline


def _retrain(spec: RetrainSpec) -> _Outline:
    runs = min(spec.max_runs_per_period, -(-spec.period_seconds // spec.min_interval_seconds))
    outline = _fine_tune(spec.fine_tune, runs=runs)
    outline.least_seconds = 0
    outline.most_seconds = spec.budget.max_accelerator_seconds or None
    outline.most_micros = spec.budget.max_cost_micros or None
    outline.assumptions.append(
        f"everything is for one period of {spec.period_seconds:,} seconds, in which at most {runs} runs begin; none may"
    )
    outline.unknown_tokens = "each run takes the data as it is then"
    return outline


def _rlhf(spec: RlhfSpec) -> _Outline:
    trained: list[_Trained] = []
    if spec.warm_up is not None:
        trained.append(_Trained("warm_up", spec.warm_up.dataset, spec.warm_up.training))
    policy: TrainingSpec | None = None
    if spec.preference is not None:
        trained.append(_Trained("preference", spec.preference.dataset, spec.preference.training))
    elif spec.policy is not None:
        policy = spec.policy.training
        source = spec.policy.reward_model
        if source is not None and source.train is not None:
            trained.append(_Trained("reward_model", source.train.dataset, source.train.training))
    stages = [_held(stage.phase, spec.resources, steps=stage.training.steps) for stage in trained]
    if policy is not None:
        stages.append(_held("policy", spec.resources, steps=policy.steps))
    phases = [PlannedPhase("prepare"), *stages, _held("evaluate", spec.resources), *_ENDING]
    return _Outline(
        phases,
        trained,
        unknown_tokens="" if policy is None else "how long a policy's answers will be is not known",
        least_seconds=(len(stages) + 1) * spec.resources.accelerators,
    )


def _evaluation(spec: EvaluationJobSpec) -> _Outline:
    return _Outline(
        [PlannedPhase("prepare"), _held("evaluate", spec.resources), PlannedPhase("report")],
        least_seconds=spec.resources.accelerators,
    )


def _tokens(outline: _Outline, data: Mapping[str, DataFacts]) -> TokenEstimate | None:
    if not outline.trained:
        return None
    unknown = outline.unknown_tokens
    if missing := sorted({stage.dataset.name for stage in outline.trained if stage.dataset.name not in data}):
        unknown = unknown or f"dataset {', '.join(missing)} has not been counted yet"
    if unknown:
        outline.assumptions.append(f"tokens: not known; {unknown}")
        return None
    stages = [_stage_tokens(stage, data[stage.dataset.name]) for stage in outline.trained]
    trained = _sum(
        Interval(stage.trained.low * part.certain, stage.trained.high * part.runs)
        for stage, part in zip(stages, outline.trained, strict=True)
    )
    if trained.high > _COUNT_MAX:
        outline.assumptions.append(f"tokens: more than {_COUNT_MAX:,}, which is the most that can be said here")
        return None
    outline.assumptions.append("tokens: the rows held out are taken to be as long as the others")
    return TokenEstimate(
        per_pass=sum(stage.per_pass for stage in stages),
        trained=trained,
        passes_thousandths=Interval(
            min(stage.passes_thousandths.low for stage in stages), max(stage.passes_thousandths.high for stage in stages)
        ),
    )


def _stage_tokens(stage: _Trained, facts: DataFacts) -> TokenEstimate:
    training = stage.training
    held_out = facts.rows * round(stage.dataset.eval_fraction * 1_000_000) // 1_000_000
    rows = max(1, facts.rows - held_out)
    # What is longer than `max_tokens` is cut.
    per_pass = min(-(-facts.tokens * rows // max(1, facts.rows)), rows * training.max_tokens)
    sequences = training.steps * training.micro_batch_size * training.gradient_accumulation
    whole, rest = divmod(sequences, rows)
    return TokenEstimate(
        per_pass=per_pass,
        # Which rows are in the last, incomplete pass is not known; none is without tokens, and none longer than `max_tokens`.
        trained=Interval(whole * per_pass + min(rest, per_pass), whole * per_pass + min(rest * training.max_tokens, per_pass)),
        passes_thousandths=Interval(sequences * 1_000 // rows, -(-sequences * 1_000 // rows)),
    )


def _sum(intervals: Iterable[Interval]) -> Interval:
    return sum(intervals, start=Interval(0, 0))


def _cost(seconds: Interval, kinds: set[str], prices: PriceList | None, outline: _Outline) -> CostEstimate | None:
    if prices is None:
        outline.assumptions.append("cost: not known; there is no price list")
        return None
    listed = prices.micros_per_hour
    used = set(listed) if ANY_KIND in kinds else kinds
    if missing := sorted(used - set(listed)):
        outline.assumptions.append(f"cost: not known; the price list has no {', '.join(missing)}")
        return None
    if not used:
        outline.assumptions.append("cost: not known; the price list is empty")
        return None
    cheapest, dearest = min(listed[kind] for kind in used), max(listed[kind] for kind in used)
    low, high = seconds.low * cheapest // 3_600, -(-seconds.high * dearest // 3_600)
    if outline.most_micros is not None:
        high = min(high, outline.most_micros)
    span = f"{cheapest:,}" if cheapest == dearest else f"{cheapest:,} to {dearest:,}"
    outline.assumptions.append(f"cost: {span} millionths of {prices.currency} for an accelerator-hour, by the price list")
    return CostEstimate(prices.currency, Interval(min(low, high), high))


def to_proto(planned: JobPlan) -> plan_pb2.JobPlan:
    """The plan for the wire."""
    return plan_pb2.JobPlan(
        phases=[_phase_to_proto(phase) for phase in planned.phases],
        steps=planned.steps,
        tokens=None
        if planned.tokens is None
        else plan_pb2.TokenEstimate(
            per_pass=planned.tokens.per_pass,
            trained=_interval(planned.tokens.trained),
            passes_thousandths=_interval(planned.tokens.passes_thousandths),
        ),
        accelerator_seconds=_interval(planned.accelerator_seconds),
        cost=None
        if planned.cost is None
        else plan_pb2.CostEstimate(currency=planned.cost.currency, micros=_interval(planned.cost.micros)),
        assumptions=planned.assumptions,
        warnings=planned.warnings,
    )


def _interval(interval: Interval) -> plan_pb2.Interval:
    return plan_pb2.Interval(low=interval.low, high=interval.high)


def _phase_to_proto(phase: PlannedPhase) -> plan_pb2.PlannedPhase:
    queue = plan_pb2.PHASE_QUEUE_GPU if phase.queue == "gpu" else plan_pb2.PHASE_QUEUE_CPU
    lease = phase.lease
    if lease is None:
        return plan_pb2.PlannedPhase(name=phase.name, queue=queue)
    return plan_pb2.PlannedPhase(
        name=phase.name,
        queue=queue,
        lease=plan_pb2.PlannedLease(
            accelerators=lease.accelerators,
            accelerator_kind=lease.accelerator_kind,
            max_run_seconds=lease.max_run_seconds,
            leases=lease.leases,
            at_once=lease.at_once,
            steps=lease.steps,
        ),
    )
