"""Loads a vetted base model and its tokenizer from a directory, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from control_plane.jobs.states import FailureKind
from workers.runner.failures import RunnerError
from workers.runner.models.documents import ATTENTION
from workers.runner.models.vetting import vet_base_model


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_threads(threads: int) -> None:
    """Gives torch its share of cores. The result of a sum depends on how it is divided, so this is part of a run's identity."""
    torch.set_num_threads(threads)


def autocast() -> torch.autocast:
    """bfloat16 matrix products on a GPU; on the CPU nothing is cast, so that runs are exact to the last bit."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=device().type == "cuda")


def load_base_model(directory: Path, *, four_bit: bool = False) -> Any:
    """The causal language model in fp32, on `device()`, attending within documents only (documents.py).

    Args:
        directory: a base model's.
        four_bit: hold the linear layers in NF4 with quantised constants (Dettmers et al. 2023, arXiv:2305.14314); needs CUDA
            and bitsandbytes.

    Raises:
        RunnerError: INVALID_BASE_MODEL.
    """
    architecture = vet_base_model(directory)
    options: dict[str, Any] = {"quantization_config": _four_bit(), "device_map": device()} if four_bit else {}
    try:
        model = getattr(transformers, architecture).from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation=ATTENTION,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except (ValueError, OSError, KeyError) as error:
        raise RunnerError(FailureKind.INVALID_BASE_MODEL, f"base model cannot be loaded: {error}") from error
    return model if four_bit else model.to(device())


def _four_bit() -> transformers.BitsAndBytesConfig:
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def end_tokens(model: Any) -> frozenset[int]:
    """The tokens at which generation stops."""
    value = model.generation_config.eos_token_id
    return frozenset(value if isinstance(value, list) else [] if value is None else [value])
