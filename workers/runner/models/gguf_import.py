"""Turns a GGUF file into a directory of safetensors, configuration and tokenizer that loads offline.

Quantised weights are dequantised and stored as bfloat16: what was lost when they were quantised stays lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, GgufConfig

from control_plane.jobs.states import FailureKind
from workers.manifest import sha256_of
from workers.runner.failures import PreemptedError, RunnerError
from workers.runner.files import atomic_directory
from workers.runner.models.vetting import ARCHITECTURES, check_architecture, vet_base_model
from workers.runner.program import Context
from workers.runner.specs import ImportBaseModelOk, ImportBaseModelSpec

_MAGIC = b"GGUF"


def run(context: Context, spec: ImportBaseModelSpec) -> ImportBaseModelOk:
    """Imports `spec.source_path` to `<output_dir>/model/`.

    Raises:
        RunnerError: INTEGRITY if the bytes are not those that were named, INVALID_BASE_MODEL if they are no usable model.
        PreemptedError: the program was asked to stop.
    """
    _check_source(spec)
    if context.stop.is_set():
        raise PreemptedError
    try:
        config = _read_config(spec.source_path)
        architecture = check_architecture(config.to_dict())
        context.events.log(f"importing a {architecture} from GGUF")
        model: Any = getattr(transformers, architecture).from_pretrained(
            spec.source_path.parent,
            gguf_file=spec.source_path.name,
            config=config,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(
            spec.source_path.parent, gguf_file=spec.source_path.name, local_files_only=True
        )
    except MemoryError:
        raise
    # A damaged or hostile file can make the parser fail in any way; all of them say the same about the file.
    except Exception as error:
        raise RunnerError(
            FailureKind.INVALID_BASE_MODEL, f"the GGUF file cannot be read as a model: {type(error).__name__}: {error}"
        ) from error
    if not tokenizer.chat_template:
        raise RunnerError(FailureKind.INVALID_BASE_MODEL, "the GGUF file has no chat template; expected an instruct model")
    if context.stop.is_set():
        raise PreemptedError
    with atomic_directory(spec.output_dir / "model") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        vet_base_model(folder)
    return ImportBaseModelOk(architecture=architecture, parameters=model.num_parameters())


def _check_source(spec: ImportBaseModelSpec) -> None:
    found = sha256_of(spec.source_path)
    if found != spec.source_sha256:
        raise RunnerError(
            FailureKind.INTEGRITY, f"base model file: expected SHA-256 {spec.source_sha256}, found {found}; fetch it again"
        )
    with spec.source_path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise RunnerError(FailureKind.INVALID_BASE_MODEL, "base model file: expected GGUF, found something else")


def _read_config(source: Path) -> Any:
    config: Any = AutoConfig.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    # GGUF names a family ("llama"), not a class: the class is the one that transformers pairs with the family.
    for architecture in ARCHITECTURES:
        if getattr(transformers, architecture).config_class is type(config):
            config.architectures = [architecture]
    return config
