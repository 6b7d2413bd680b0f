"""How much of a model is trained: every weight, or a LoRA adapter; and how the trained weights are kept.

adapter:     adapter_model.safetensors, adapter_config.json (the layout of the peft library)
full model:  model.safetensors, or shards with model.safetensors.index.json, and config.json (the layout of transformers)
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter
from typing_extensions import override

from control_plane.jobs.spec import LoraSpec
from control_plane.jobs.specs.rlhf import AdaptationSpec
from control_plane.jobs.states import FailureKind
from workers.runner.failures import RunnerError
from workers.runner.models.adapters import (
    WEIGHTS_NAME,
    adapter_config,
    adapter_tensors,
    inject_lora,
    restore_adapter,
    save_adapter,
    trainable,
)
from workers.runner.models.loading import load_base_model
from workers.runner.models.sharding import assign, whole

_SHARD_BYTES = 5_000_000_000
_INDEX_NAME = "model.safetensors.index.json"
_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")


class Adaptation(ABC):
    """The trained weights of one causal language model."""

    result_name: str
    """The directory of the result below the output directory."""

    def __init__(self, model: Any) -> None:
        self.model: Any = model
        """The causal language model: `model.model` gives hidden states, `model.lm_head` logits. Adapters are inside of it."""

    @abstractmethod
    def parameters(self) -> dict[str, Parameter]:
        """What is trained, by name, in the model's order."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """A copy of the trained weights on the CPU, under the names they are saved with."""

    @abstractmethod
    def save(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Writes weights that `tensors` gave."""

    @abstractmethod
    def load(self, folder: Path) -> dict[str, Tensor]:
        """Saved weights, as `tensors` gave them."""

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Replaces the trained weights by saved ones.

        Raises:
            RunnerError: INTEGRITY if they are of another shape.
        """

    def release(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Writes weights with all that is needed to use them beside the base model."""
        self.save(folder, tensors)

    @abstractmethod
    def reference(self) -> AbstractContextManager[Any]:
        """Gives the model as it was before training, for inference; `self.model` is not to be used within."""


class LoraAdaptation(Adaptation):
    """A LoRA adapter on a frozen model."""

    result_name = "adapter"

    def __init__(self, model: Any, spec: LoraSpec, seed: int) -> None:
        self._adapted: PeftModel = inject_lora(model, spec, seed)
        super().__init__(self._adapted.get_base_model())
        self._config = adapter_config(self._adapted)

    @override
    def parameters(self) -> dict[str, Parameter]:
        return trainable(self._adapted)

    @override
    def tensors(self) -> dict[str, Tensor]:
        return adapter_tensors(self._adapted)

    @override
    def save(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        save_adapter(folder, tensors, self._config)

    @override
    def load(self, folder: Path) -> dict[str, Tensor]:
        return load_file(folder / WEIGHTS_NAME)

    @override
    def restore(self, folder: Path) -> None:
        restore_adapter(self._adapted, folder)

    @override
    @contextmanager
    def reference(self) -> Generator[Any]:
        training = self.model.training
        self.model.eval()
        try:
            with self._adapted.disable_adapter():
                yield self.model
        finally:
            self.model.train(training)


class FullAdaptation(Adaptation):
    """Every weight of the model."""

    result_name = "model"

    def __init__(self, model: Any, base_model_dir: Path) -> None:
        super().__init__(model)
        self._base_model_dir = base_model_dir
        self._reference: Any = None

    @override
    def parameters(self) -> dict[str, Parameter]:
        # Weights that two layers share are named once.
        return dict(self.model.named_parameters())

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {name: whole(weight.detach()).to("cpu", copy=True).contiguous() for name, weight in self.parameters().items()}

    @override
    def save(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        plan = split_torch_state_dict_into_shards(
            tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=_SHARD_BYTES
        )
        for name, members in plan.filename_to_tensors.items():
            save_file({member: tensors[member] for member in members}, folder / name, metadata={"format": "pt"})
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (folder / _INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        self.model.config.save_pretrained(folder)

    @override
    def load(self, folder: Path) -> dict[str, Tensor]:
        return {name: value for path in folder.glob("model*.safetensors") for name, value in load_file(path).items()}

    @override
    def restore(self, folder: Path) -> None:
        left = self.parameters()
        for path in sorted(folder.glob("model*.safetensors")):
            # A shard at a time: the whole model is in memory once already.
            for name, value in load_file(path).items():
                expected = left.pop(name, None)
                if expected is None or expected.shape != value.shape:
                    raise _foreign(path.name)
                assign(expected, value)
        if left:
            raise _foreign("model.safetensors")

    @override
    def release(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Also copies tokenizer and generation settings, so that the directory is a base model by itself."""
        for path in sorted(self._base_model_dir.iterdir()):
            if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES) and path.name != "manifest.json":
                shutil.copyfile(path, folder / path.name)
        self.save(folder, tensors)

    @override
    @contextmanager
    def reference(self) -> Generator[Any]:
        # A copy, made when it is first asked for: what is precomputed cannot serve texts that are yet to be generated.
        if self._reference is None:
            self._reference = load_base_model(self._base_model_dir).eval().requires_grad_(requires_grad=False)
        yield self._reference


def _foreign(name: str) -> RunnerError:
    return RunnerError(FailureKind.INTEGRITY, f"{name}: expected the tensors of this job's model, found others")


def adapt(base_model_dir: Path, spec: AdaptationSpec, seed: int) -> Adaptation:
    """Loads a base model and makes ready what is to be trained of it.

    Raises:
        RunnerError: INVALID_BASE_MODEL; USER_ERROR if this machine cannot train it in this way.
    """
    match spec.method:
        case "full":
            return FullAdaptation(load_base_model(base_model_dir), base_model_dir)
        case "lora":
            return LoraAdaptation(load_base_model(base_model_dir), spec.lora, seed)
        case "qlora":
            if not torch.cuda.is_available() or find_spec("bitsandbytes") is None:
                raise RunnerError(
                    FailureKind.USER_ERROR,
                    "adaptation.method is qlora, which needs a CUDA GPU and the library bitsandbytes, and this worker lacks "
                    "one of them; use lora, or ask for an accelerator that has both",
                )
            return LoraAdaptation(load_base_model(base_model_dir, four_bit=True), spec.lora, seed)
