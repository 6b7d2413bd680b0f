"""LoRA adapters: injected, saved and loaded as safetensors in the layout of the peft library."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from control_plane.jobs.spec import LoraSpec
from control_plane.jobs.states import FailureKind
from workers.runner.failures import RunnerError
from workers.runner.models.sharding import assign, whole

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"


def inject_lora(model: Any, spec: LoraSpec, seed: int) -> PeftModel:
    """Puts a fresh adapter on every linear layer but the output head and freezes the rest.

    The adapter starts as the identity: its second factor is zero (Hu et al. 2021, arXiv:2106.09685).
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=_linear_layers(model),
        task_type=TaskType.CAUSAL_LM,
    )
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 has renamed; transformers 6 needs a newer peft.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)  # noqa: S101 - narrows the library's union, whose other member needs mixed=True
    return adapted


def _linear_layers(model: Any) -> list[str]:
    """Last parts of the names of all linear layers but the output head."""
    names = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted({name.rpartition(".")[2] for name in names} - {"lm_head"})


def trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """A copy of the adapter's weights on the CPU, under the names they are saved with."""
    tensors: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: whole(tensor.detach()).to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def adapter_config(model: PeftModel) -> dict[str, Any]:
    """The adapter's configuration, equal for equal adapters: no path of this machine, lists in order."""
    fields: dict[str, Any] = model.peft_config["default"].to_dict()
    fields.update(base_model_name_or_path=None, inference_mode=True)
    return {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}


def save_adapter(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Writes the adapter's two files."""
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")


def restore_adapter(model: PeftModel, folder: Path) -> None:
    """Replaces the weights of the model's adapter by the saved ones.

    Raises:
        RunnerError: INTEGRITY if the saved adapter is of another shape.
    """
    saved = load_file(folder / WEIGHTS_NAME)
    # Views of the adapter's parameters, by the names they are saved with.
    current: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    if {name: tensor.shape for name, tensor in saved.items()} != {name: tensor.shape for name, tensor in current.items()}:
        raise RunnerError(FailureKind.INTEGRITY, f"{WEIGHTS_NAME}: expected the tensors of this job's adapter, found others")
    for name, tensor in current.items():
        assign(tensor, saved[name])


def load_adapted(model: Any, folder: Path) -> PeftModel:
    """The base model with a saved adapter, for inference.

    Raises:
        RunnerError: INTEGRITY if the directory does not hold a LoRA adapter as safetensors for this model.
    """
    # Left to itself the library would open a pickle where there are no safetensors.
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        if not (folder / name).is_file():
            raise RunnerError(FailureKind.INTEGRITY, f"adapter: expected the file {name}, found none")
    fields = json.loads((folder / CONFIG_NAME).read_text())
    if fields.get("peft_type") != "LORA" or fields.get("auto_mapping"):
        raise RunnerError(FailureKind.INTEGRITY, f"{CONFIG_NAME}: expected a LoRA adapter without custom classes")
    adapted = inject_lora(model, LoraSpec(rank=fields["r"], alpha=fields["lora_alpha"]), seed=0)
    restore_adapter(adapted, folder)
    return adapted.eval()
