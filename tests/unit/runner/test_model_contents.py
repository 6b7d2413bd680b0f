"""Files of models and checkpoints are refused by what they hold, whatever they are called."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from control_plane.jobs.states import FailureKind
from tests.small_model import write_small_gguf
from workers.manifest import sha256_of, write_manifest
from workers.runner.failures import RunnerError
from workers.runner.models import gguf_import
from workers.runner.models.contents import UnfitError, check_chat_template, check_checkpoint, check_file, check_safetensors
from workers.runner.models.vetting import vet_base_model
from workers.runner.program import Context
from workers.runner.specs import ImportBaseModelSpec
from workers.runner.training.checkpoint import read_state

RAN = Path("/tmp/headway-test-a-pickle-ran")  # noqa: S108 - nothing may ever write it


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (RAN,)


def zipped_pickle() -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    return buffer.getvalue()


PICKLES = {
    "pickle": pickle.dumps(Bomb()),
    "pickle of protocol 0": pickle.dumps(Bomb(), protocol=0),
    "zipped pickle": zipped_pickle(),
    "Python": b"import os\n",
    "ELF": b"\x7fELF" + bytes(60),
}


def safetensors(header: dict[str, Any] | bytes, tensors: bytes = b"", length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + tensors


def tensor(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.fixture
def model(base_model: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    shutil.copytree(base_model, directory)
    return directory


def refused(directory: Path) -> str:
    with pytest.raises(RunnerError) as caught:
        vet_base_model(directory)
    assert caught.value.failure.kind is FailureKind.INVALID_BASE_MODEL
    assert not RAN.exists()
    return caught.value.failure.message


# Python's source and pickles of protocol 0 are ASCII: in a text file they are text, which nobody runs.
_TEXTS = {"Python", "pickle of protocol 0"}
_DISGUISES = [
    (name, kind)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "extra.txt", "extra.model", "x.jinja")
    for kind in PICKLES
    if not (kind in _TEXTS and name.endswith((".txt", ".jinja")))
]


@pytest.mark.parametrize(("name", "kind"), _DISGUISES)
def test_code_is_refused_under_every_name(name: str, kind: str, model: Path) -> None:
    (model / name).write_bytes(PICKLES[kind])
    assert name in refused(model)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "training_args.bin", "rng_state.pth", "optimizer.pt", "a.pkl", "b.py", "c.so"]
)
def test_names_that_loaders_unpickle_or_run_are_refused(name: str, model: Path) -> None:
    (model / name).write_bytes(b"{}")
    assert name in refused(model)


HEADERS: dict[str, bytes] = {
    "empty": b"",
    "cut": b"\x08\0\0",
    "longer than the file": safetensors({}, length=1_000),
    "oversized": safetensors(b"{" + b" " * (26 * 1024 * 1024) + b"}"),
    "of 2^63 bytes": safetensors({}, length=2**63),
    "no JSON": safetensors(b"{]"),
    "not an object": safetensors(b"[]"),
    "nested too deep": safetensors(b'{"a":' + b"[" * 100_000),
    "a key twice": safetensors(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}'),
    "an unknown dtype": safetensors({"a": tensor(0, 4, [1], "OBJECT")}, bytes(4)),
    "no offsets": safetensors({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "a shape that does not fit": safetensors({"a": tensor(0, 4, [2])}, bytes(4)),
    "a shape of text": safetensors({"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}, bytes(4)),
    "a negative shape": safetensors({"a": tensor(0, 4, [-1])}, bytes(4)),
    "a huge shape": safetensors({"a": tensor(0, 4, [2**40, 2**40])}, bytes(4)),
    "overlapping tensors": safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)),
    "a hole": safetensors({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, bytes(12)),
    "tensors beyond the file": safetensors({"a": tensor(0, 8, [2])}, bytes(4)),
    "bytes behind the tensors": safetensors({"a": tensor(0, 4, [1])}, bytes(8)),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_do_not_fit_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(HEADERS[kind])
    with pytest.raises(UnfitError, match=r"a\.safetensors: "):
        check_safetensors(path)


def test_what_the_library_writes_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)
    tensors = {str(dtype): torch.zeros(3, 5, dtype=dtype) for dtype in dtypes} | {
        "empty": torch.zeros(0),
        "one": torch.tensor(1.0),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    assert check_safetensors(path).keys() == load_file(path).keys()


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("config.json", {"auto_map": {"AutoModel": "x.Y"}}, "/auto_map"),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "x.Y"}}}, "/text_config/auto_map"),
        ("config.json", {"layers": [{"trust_remote_code": True}]}, "/layers/0/trust_remote_code"),
        ("config.json", {"_attn_implementation_internal": "someone/kernel"}, "/_attn_implementation_internal"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.Y", None]}}, "/auto_map"),
        ("generation_config.json", {"custom_generate": "someone/generate"}, "/custom_generate"),
    ],
)
def test_configurations_that_name_code_are_refused(name: str, changes: dict[str, Any], says: str, model: Path) -> None:
    path = model / name
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(settings | changes))
    assert says in refused(model)


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd", "weights.bin", "a\\b.safetensors", 3])
def test_an_index_that_leads_elsewhere_is_refused(file: object, model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    assert "/weight_map" in refused(model)


TEMPLATES = {
    "classes": "{{ messages.__class__.__mro__ }}",
    "classes by key": "{{ messages['__class__'] }}",
    "classes by filter": "{{ messages | attr('__class__') }}",
    "classes by a name put together": "{{ messages | attr('__cl' + 'ass__') }}",
    "private names": "{{ self._TemplateReference__context }}",
    "an import": "{% import 'x' as y %}",
    "an include": "{% include '/etc/passwd' %}",
    "a parent": "{% extends 'x' %}",
    "no Jinja": "{% for message in messages %}",
    "an unknown block": "{% shell %}ls{% endshell %}",
    "too long": "x" * (300 * 1024),
    "too deep": "{{ " + "(" * 20_000 + ")" * 20_000 + " }}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_odd_chat_templates_are_refused(kind: str, model: Path) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATES[kind])
    assert "chat_template.jinja: " in refused(model)


@pytest.mark.parametrize("place", ["text", "list"])
def test_chat_templates_inside_the_tokenizers_settings_are_looked_at_too(place: str, model: Path) -> None:
    path = model / "tokenizer_config.json"
    template = TEMPLATES["classes"]
    value = template if place == "text" else [{"name": "default", "template": template}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": value}))
    assert "/chat_template" in refused(model)


def test_templates_of_known_models_are_accepted() -> None:
    check_chat_template(
        "chatml",
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ 'x' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}{% generation %}{{ message.content | trim }}{% endgeneration %}"
        "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% continue %}{% endif %}{% endfor %}"
        "{% if not messages %}{{ raise_exception('no messages') }}{% endif %}"
        "{% set ns = namespace(found=false) %}{% macro one(a) %}{{ a }}{% endmacro %}{{ one(strftime_now('%d')) }}",
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b"\xff\xfe"), ("a.txt", b"text\0"), ("b.jinja", b"\x80\x04"), ("c.exe", b""), ("d.json", b"[1]")],
)
def test_what_is_no_text_and_what_is_no_object_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnfitError, match=name):
        check_file(tmp_path / name)


CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "a pickle": lambda folder: (folder / "optimizer.pt").write_bytes(PICKLES["pickle"]),
    "a pickle as safetensors": lambda folder: (folder / "rng.safetensors").write_bytes(PICKLES["pickle"]),
    "a zipped pickle as JSON": lambda folder: (folder / "state.json").write_bytes(PICKLES["zipped pickle"]),
    "code": lambda folder: (folder / "hook.py").write_text("import os"),
    "an oversized header": lambda folder: (folder / "rng.safetensors").write_bytes(HEADERS["oversized"]),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_whose_manifest_is_right_is_still_looked_into(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "step-00000003"
    folder.mkdir()
    save_file({"cpu": torch.get_rng_state()}, folder / "rng.safetensors")
    (folder / "state.json").write_text("{}")
    write_manifest(folder, {"step": 3})
    check_checkpoint(folder)
    CHECKPOINTS[kind](folder)
    write_manifest(folder, {"step": 3})
    with pytest.raises(RunnerError, match="expected") as caught:
        read_state(folder)
    assert caught.value.failure.kind is FailureKind.INTEGRITY
    assert not RAN.exists()


@pytest.mark.parametrize(
    ("place", "value"),
    [(8, 2**60), (16, 2**60), (8, 2**63), (24, 2**62)],
    ids=["tensors", "keys", "negative", "a key's length"],
)
def test_a_gguf_whose_header_lies_is_refused(place: int, value: int, tmp_path: Path, context: Context) -> None:
    source = tmp_path / "source"
    write_small_gguf(source)
    content = bytearray(source.read_bytes())
    content[place : place + 8] = struct.pack("<Q", value)
    source.write_bytes(bytes(content))
    spec = ImportBaseModelSpec(source_path=source, source_sha256=sha256_of(source), output_dir=tmp_path / "out")
    with pytest.raises(RunnerError) as caught:
        gguf_import.run(context, spec)
    assert caught.value.failure.kind is FailureKind.INVALID_BASE_MODEL
