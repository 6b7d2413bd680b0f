"""What a base model's directory may hold. Looked at before anything in it is loaded; no torch here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from control_plane.jobs.states import FailureKind
from workers.runner.failures import RunnerError
from workers.runner.models.contents import UnfitError, check_file

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Decoders whose attention is plain and causal and whose logits are the output head's product, nothing more."""

_SUFFIXES = {".json", ".safetensors", ".jinja", ".txt", ".model"}
_MAX_JSON_BYTES = 256 * 1024 * 1024


def vet_base_model(directory: Path) -> str:
    """Refuses a base model that could run code or that the runner does not know; returns its architecture.

    Raises:
        RunnerError: INVALID_BASE_MODEL, naming file, what was found and what was expected.
    """
    if not directory.is_dir():
        raise _invalid(f"{directory.name}: expected a directory with config.json, weights and tokenizer")
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.suffix not in _SUFFIXES:
            raise _invalid(
                f"{path.relative_to(directory)}: expected only plain files ending in {', '.join(sorted(_SUFFIXES))}; "
                "weights come as safetensors, never as pickles, and custom code is never run"
            )
        try:
            check_file(path)
        except UnfitError as error:
            raise _invalid(str(error)) from error
    config = _read_json(directory, "config.json")
    _read_json(directory, "tokenizer_config.json")
    return check_architecture(config)


def check_architecture(config: dict[str, Any]) -> str:
    """Returns the architecture of a model's configuration if the runner can train it.

    Raises:
        RunnerError: INVALID_BASE_MODEL.
    """
    found: Any = config.get("architectures")
    if not isinstance(found, list) or len(cast("list[Any]", found)) != 1 or found[0] not in ARCHITECTURES:
        raise _invalid(f"config.json: /architectures is {found!r}; expected one of {', '.join(ARCHITECTURES)}")
    if config.get("sliding_window") is not None and config.get("use_sliding_window") is not False:
        raise _invalid("config.json: /sliding_window is set; expected a model that attends to all of its context")
    return str(cast("list[Any]", found)[0])


def _read_json(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    if not path.is_file():
        raise _invalid(f"{name}: expected the file to be there")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise _invalid(f"{name}: expected at most {_MAX_JSON_BYTES} bytes, found {path.stat().st_size}")
    try:
        value: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{name}: expected JSON ({error})") from error
    if not isinstance(value, dict):
        raise _invalid(f"{name}: expected a JSON object, found {type(value).__name__}")
    return cast("dict[str, Any]", value)


def _invalid(message: str) -> RunnerError:
    return RunnerError(FailureKind.INVALID_BASE_MODEL, f"base model refused: {message}")
