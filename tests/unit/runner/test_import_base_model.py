"""A GGUF becomes a directory that loads offline; what is not a usable model is refused by what it holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from runner_support import Finished
from transformers import AutoModelForCausalLM, AutoTokenizer

from control_plane.jobs.states import FailureKind
from tests.small_model import LAYERS, VOCABULARY
from workers.manifest import sha256_of
from workers.runner.failures import RunnerError
from workers.runner.models import gguf_import
from workers.runner.models.vetting import vet_base_model
from workers.runner.program import Context
from workers.runner.specs import ImportBaseModelSpec


def test_the_imported_directory_loads_by_itself_with_its_chat_template(imported: Finished, base_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_model)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    assert model.dtype == torch.bfloat16
    assert model.config.num_hidden_layers == LAYERS
    assert len(tokenizer) == model.config.vocab_size == VOCABULARY
    assert imported.result["ok"] == {"architecture": "LlamaForCausalLM", "parameters": model.num_parameters()}
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert rendered.endswith("<|im_start|>user\nhello<|im_end|>\n")
    assert tokenizer.decode(tokenizer("the same text")["input_ids"]) == "the same text"
    assert vet_base_model(base_model) == "LlamaForCausalLM"


def _import(path: Path, sha256: str, output_dir: Path, context: Context) -> RunnerError:
    spec = ImportBaseModelSpec(source_path=path, source_sha256=sha256, output_dir=output_dir)
    with pytest.raises(RunnerError) as caught:
        gguf_import.run(context, spec)
    assert not (output_dir / "model").exists()
    return caught.value


def test_other_bytes_than_named_are_refused(small_gguf: Path, tmp_path: Path, context: Context) -> None:
    error = _import(small_gguf, "0" * 64, tmp_path, context)
    assert error.failure.kind is FailureKind.INTEGRITY
    assert "0" * 64 in error.failure.message
    assert sha256_of(small_gguf) in error.failure.message


@pytest.mark.parametrize("content", [b"\x80\x04\x95 a pickle", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, b"GGUF"])
def test_what_is_no_gguf_is_refused(content: bytes, tmp_path: Path, context: Context) -> None:
    source = tmp_path / "source"
    source.write_bytes(content)
    error = _import(source, sha256_of(source), tmp_path, context)
    assert error.failure.kind is FailureKind.INVALID_BASE_MODEL


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("weights.bin", b"\x80\x04", "weights.bin"),
        ("modeling_custom.py", b"print('hello')", "modeling_custom.py"),
        ("config.json", {"auto_map": {"AutoModel": "x.Y"}}, "/auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": "x.Y"}}, "/auto_map"),
        ("config.json", {"architectures": ["MambaForCausalLM"]}, "/architectures"),
        ("config.json", {"architectures": ["LlamaForCausalLM"], "sliding_window": 64}, "/sliding_window"),
        ("config.json", b"[" * 100_000, "config.json"),
        ("config.json", b"[]", "config.json"),
    ],
)
def test_a_directory_is_refused_by_what_it_holds(
    name: str, content: bytes | dict[str, object], says: str, base_model: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(base_model, directory)
    if isinstance(content, dict):
        content = json.dumps({**json.loads((directory / name).read_text()), **content}).encode()
    (directory / name).write_bytes(content)
    with pytest.raises(RunnerError, match=says) as caught:
        vet_base_model(directory)
    assert caught.value.failure.kind is FailureKind.INVALID_BASE_MODEL


def test_a_link_is_refused(base_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(base_model, directory)
    (directory / "extra.json").symlink_to("/etc/hostname")
    with pytest.raises(RunnerError, match="plain files"):
        vet_base_model(directory)
