"""Which evaluated step of a run was the best, and when it is no use to go on. Pure."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Selection(BaseModel):
    """What the evaluations of a run have come to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    evaluated_step: int = 0
    """The last step that was evaluated; 0 for none."""
    best_step: int = 0
    best_loss: float = 0.0
    """The evaluation's loss at the best step."""
    without_gain: int = 0
    """Evaluations since the best."""

    def evaluated(self, step: int, loss: float, min_gain: float) -> Selection:
        """After one more evaluation: a step becomes the best by a loss below the best before it by more than `min_gain`."""
        better = self.best_step == 0 or loss < self.best_loss - min_gain
        return Selection(
            evaluated_step=step,
            best_step=step if better else self.best_step,
            best_loss=loss if better else self.best_loss,
            without_gain=0 if better else self.without_gain + 1,
        )

    def exhausted(self, patience: int | None) -> bool:
        """Whether `patience` evaluations in a row brought no gain."""
        return patience is not None and self.without_gain >= patience
