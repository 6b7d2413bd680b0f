"""What a benchmark says: one figure, its unit, and the ceiling it is held against."""

from __future__ import annotations

import json
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value and the best that the machine allowed in the same run."""

    figure: str
    value: float
    unit: str
    ceiling: float
    ceiling_is: str
    """What was measured as the ceiling."""
    details: dict[str, float] = field(default_factory=dict[str, float])
    """Further values of the same run, each with its unit at the end of its name."""

    @property
    def ratio(self) -> float:
        """Value over ceiling."""
        return self.value / self.ceiling

    def as_json(self) -> str:
        """One line."""
        fields = {
            "figure": self.figure,
            "value": round(self.value, 3),
            "unit": self.unit,
            "ceiling": round(self.ceiling, 3),
            "ceiling_is": self.ceiling_is,
            "ratio": round(self.ratio, 4),
            **{name: round(value, 3) for name, value in self.details.items()},
        }
        return json.dumps(fields)

    def __str__(self) -> str:
        extra = "".join(f", {name} {value:,.1f}" for name, value in self.details.items())
        return (
            f"{self.figure}: {self.value:,.1f} {self.unit} ({self.ratio:.2f} of {self.ceiling:,.1f}, {self.ceiling_is}){extra}"
        )


def percentile(values: list[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(percent / 100 * len(ordered)) - 1))]
