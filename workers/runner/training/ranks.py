"""The processes that make one training together; one is rank 0, which alone speaks and writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import distributed

from control_plane.jobs.states import FailureKind
from workers.runner.failures import RunnerError
from workers.runner.models.adaptation import Adaptation
from workers.runner.models.documents import MODEL_FUNCTIONS
from workers.runner.models.loading import device
from workers.runner.models.sharding import shard
from workers.runner.rank import RENDEZVOUS_VARIABLE, rank_of_this_process

ValueT = TypeVar("ValueT")
_SEED_STRIDE = 1_000_003


class Ranks:
    """This process among its like. With one process every method is the plain thing.

    Every rank deals the same micro-batches and takes its share of them, so that the step's loss is the same mean over the
    same rows as with one process. Methods that every rank must call, in the same order, say so.
    """

    def __init__(self) -> None:
        """Meets the other processes that the environment names, as torchrun or our own launcher sets it. Every rank."""
        self.rank = rank_of_this_process()
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count > 1 and not distributed.is_initialized():
            if device().type == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            place = os.environ.get(RENDEZVOUS_VARIABLE)
            distributed.init_process_group(
                "nccl" if device().type == "cuda" else "gloo",
                init_method=f"file://{place}" if place else "env://",
                rank=self.rank,
                world_size=self.count,
            )

    def share(self, adaptation: Adaptation, passes: int, seed: int) -> None:
        """Splits the model among the processes and gives each a random state of its own. Every rank.

        Raises:
            RunnerError: USER_ERROR if a step's passes cannot be dealt out evenly.
        """
        if self.count == 1:
            return
        if passes % self.count:
            raise RunnerError(
                FailureKind.USER_ERROR,
                f"gradient_accumulation is {passes}; expected a multiple of the {self.count} processes, which share the passes",
            )
        shard(adaptation.model, MODEL_FUNCTIONS)
        if self.rank:
            torch.manual_seed(seed + _SEED_STRIDE * self.rank)

    def mine(self, batches: Sequence[ValueT]) -> Sequence[ValueT]:
        """This process's share of what is dealt to all."""
        return batches[self.rank :: self.count]

    def any(self, flag: bool) -> bool:
        """Whether the flag is up anywhere. Every rank."""
        return any(self.gather(flag)) if self.count > 1 else flag

    def gather(self, value: ValueT) -> list[ValueT]:
        """Everybody's value, by rank. Every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def close(self) -> None:
        """Parts from the others."""
        if self.count > 1 and distributed.is_initialized():
            distributed.destroy_process_group()
