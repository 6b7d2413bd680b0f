"""What happens to the cluster of a scenario besides its load."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from scheduler.simulation.cluster import BudgetSpec, Count, Name, QuotaSpec, ResourceName, Spec
from scheduler.simulation.units import Duration


class Repeat(Spec):
    """How often a change comes again."""

    every: Annotated[Duration, Field(gt=0)]
    times: Count


class _Change(Spec):
    at: Duration
    """After the start of the scenario."""


class _Repeatable(_Change):
    repeat: Repeat | None = None
    """In all `times` times."""


class NodeLost(_Repeatable):
    """Nodes fall silent; what runs on them ends when the scheduler notices."""

    kind: Literal["node_lost"]
    nodes: str
    """A pattern of names."""


class NodeBack(_Repeatable):
    """Lost nodes return, started anew; others that match stay as they are."""

    kind: Literal["node_back"]
    nodes: str


class Cordon(_Repeatable):
    """Nodes take nothing new."""

    kind: Literal["cordon"]
    nodes: str


class Uncordon(_Repeatable):
    """Nodes take new work again."""

    kind: Literal["uncordon"]
    nodes: str


class QuotaChange(_Repeatable):
    """A node of the quota tree gets another quota of one cell."""

    kind: Literal["quota"]
    queue: str
    pool: Name
    resource: ResourceName
    quota: QuotaSpec


class PriorityChange(_Repeatable):
    """A set gets another priority, what waits and runs of it too; repeated, the priorities take turns."""

    kind: Literal["priority"]
    set: Name
    priorities: Annotated[tuple[Annotated[int, Field(ge=0, le=1_000)], ...], Field(min_length=1)]


class BudgetChange(_Repeatable):
    """A node of the quota tree has another sum left to spend."""

    kind: Literal["budget"]
    queue: str
    budget: BudgetSpec


class SpotLoss(_Change):
    """From `at` on single nodes are taken at random times, and each comes back later."""

    kind: Literal["spot_loss"]
    nodes: str
    mean_interval: Annotated[Duration, Field(gt=0)]
    """Between losses, exponential."""
    back_after: Duration
    losses: Count


Change: TypeAlias = Annotated[
    NodeLost | NodeBack | Cordon | Uncordon | QuotaChange | PriorityChange | BudgetChange | SpotLoss,
    Field(discriminator="kind"),
]
