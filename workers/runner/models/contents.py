"""What a model's or a checkpoint's files may hold, by their bytes and not by their names. No torch here.

A name says what a file claims to be; whoever loads it goes by that. So before anything is loaded, each file must be what its
name says, and nothing that a loader would run, fetch or swell up on.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_HEADER_BYTES_MAX = 25 * 1024 * 1024
"""Of a safetensors file. A header of a model with ten thousand tensors has about one."""
_JSON_BYTES_MAX = 256 * 1024 * 1024
_TEXT_BYTES_MAX = 256 * 1024 * 1024
_TEMPLATE_BYTES_MAX = 256 * 1024
_DTYPES_BY_BITS = {
    64: ("F64", "I64", "U64"),
    32: ("F32", "I32", "U32"),
    16: ("F16", "BF16", "I16", "U16"),
    8: ("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
}
_DTYPE_BITS = {dtype: bits for bits, dtypes in _DTYPES_BY_BITS.items() for dtype in dtypes}
_FORBIDDEN_KEYS = frozenset(
    {
        "auto_map",
        "trust_remote_code",
        "custom_pipelines",
        "custom_generate",
        "_attn_implementation_internal",
        "_attn_implementation",
    }
)
"""Settings by which a configuration names code to load. See CVE-2026-4372 for the last two."""
_VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json"})
"""Their keys are words of a vocabulary, where anything may stand."""


class UnfitError(ValueError):
    """A file holds what it must not; says where, what was found and what was expected."""


def check_file(path: Path) -> None:
    """Refuses a file that is not what its name says.

    Args:
        path: ends in .safetensors, .json, .jinja, .txt or .model.

    Raises:
        UnfitError: it is something else.
    """
    match path.suffix:
        case ".safetensors":
            check_safetensors(path)
        case ".json":
            _check_settings(path)
        case ".jinja":
            check_chat_template(path.name, _text(path, _TEMPLATE_BYTES_MAX))
        case ".txt":
            _text(path, _TEXT_BYTES_MAX)
        case ".model":
            _check_sentencepiece(path)
        case _:
            raise UnfitError(f"{path.name}: expected a file ending in .safetensors, .json, .jinja, .txt or .model")


def check_checkpoint(directory: Path) -> None:
    """Refuses a checkpoint that holds anything but safetensors and JSON.

    Raises:
        UnfitError: it does.
    """
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            continue
        if path.suffix not in {".safetensors", ".json"}:
            raise UnfitError(f"{path.relative_to(directory)}: expected safetensors or JSON; nothing else is ever loaded")
        check_file(path)


def check_safetensors(path: Path) -> dict[str, Any]:
    """The header of a safetensors file whose tensors lie one behind the other and fill the file.

    Raises:
        UnfitError: it is no such file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_BYTES_MAX):
            raise UnfitError(
                f"{path.name}: expected safetensors with a header of at most {_HEADER_BYTES_MAX:,} bytes, all in the file, "
                f"found a length of {length:,} in {size:,} bytes"
            )
        content = file.read(length)
    if not content.startswith(b"{"):
        raise UnfitError(f"{path.name}: expected the header of safetensors, found {content[:8]!r}")
    header = _object(path.name, content)
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    try:
        places = sorted((*_place(value), name) for name, value in tensors.items())
    except (KeyError, TypeError, ValueError) as error:
        raise UnfitError(f"{path.name}: expected dtype, shape and data_offsets of each tensor ({error!r})") from error
    end = 0
    for start, stop, bits, name in places:
        if start != end or (stop - start) * 8 != bits:
            raise UnfitError(f"{path.name}: {name!r} is at {start} to {stop}; expected {bits // 8} bytes from {end}")
        end = stop
    if end != size - 8 - length:
        raise UnfitError(f"{path.name}: expected {end} bytes of tensors, as its header says, found {size - 8 - length}")
    return tensors


def _place(tensor: dict[str, Any]) -> tuple[int, int, int]:
    start, stop = tensor["data_offsets"]
    shape = tensor["shape"]
    if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)):
        raise ValueError("a negative size, or one that is no integer")
    return start, stop, prod(shape) * _DTYPE_BITS[tensor["dtype"]]


def _check_settings(path: Path) -> None:
    settings = _object(path.name, _bytes(path, _JSON_BYTES_MAX))
    if path.name in _VOCABULARIES:
        return
    if path.name.endswith(".safetensors.index.json"):
        _check_index(path.name, settings)
    for place, key, value in _members(settings):
        if key in _FORBIDDEN_KEYS and value not in (False, None):
            raise UnfitError(f"{path.name}: {place} names custom code, which is never run; expected a model without it")
        if key == "chat_template" and isinstance(value, str):
            check_chat_template(f"{path.name}: {place}", value)
        # A list of templates, each with its name.
        if key == "template" and isinstance(value, str) and place.startswith("/chat_template/"):
            check_chat_template(f"{path.name}: {place}", value)


def _check_index(name: str, index: dict[str, Any]) -> None:
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and file.endswith(".safetensors") and not set(file) & set("/\\\0")
        for file in cast("dict[str, Any]", files).values()
    ):
        raise UnfitError(f"{name}: expected /weight_map to name safetensors files of the same directory")


def _members(settings: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """JSON pointer, key and value of every member of every object, however deep."""
    found: list[tuple[str, str, Any]] = []
    waiting: list[tuple[str, Any]] = [("", settings)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            members = [(f"{place}/{key}", str(key), below) for key, below in cast("dict[str, Any]", value).items()]
            found += members
            waiting += [(below_place, below) for below_place, _, below in members]
        elif isinstance(value, list):
            waiting += [(f"{place}/{index}", below) for index, below in enumerate(cast("list[Any]", value))]
    return found


def check_chat_template(where: str, template: str) -> None:
    """Refuses a template that is none, or that reaches for more than the messages it is given.

    Raises:
        UnfitError: naming the line.
    """
    if len(template.encode()) > _TEMPLATE_BYTES_MAX:
        raise UnfitError(f"{where}: expected a chat template of at most {_TEMPLATE_BYTES_MAX:,} bytes")
    try:
        tree = _TEMPLATES.parse(template)
    except (TemplateError, RecursionError, ValueError, OverflowError) as error:
        raise UnfitError(f"{where}: expected a chat template in Jinja ({error})") from error
    for node in tree.find_all(nodes.Node):
        said = _reaching(node)
        if said:
            raise UnfitError(
                f"{where}: line {node.lineno} of the chat template {said}; expected one that only writes messages out"
            )


def _reaching(node: nodes.Node) -> str | None:
    """How a part of a template reaches outside; None: it does not."""
    match node:
        case nodes.Import() | nodes.FromImport() | nodes.Include() | nodes.Extends():
            return "loads another template"
        case nodes.Getattr(attr=name) if name.startswith("_"):
            return f"asks for {name!r}"
        case nodes.Getitem(arg=nodes.Const(value=str() as name)) if name.startswith("_"):
            return f"asks for {name!r}"
        case nodes.Filter(name="attr"):
            return "asks for an attribute by a name that is made up as it runs"
        case nodes.Const(value=str() as value) if "__" in value and value.strip("_").isidentifier():
            return f"holds {value!r}"
        case _:
            return None


class _Generation(Extension):
    """The block that marks what an assistant says, as transformers' templates have it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: Parser) -> nodes.Node:
        """Its body is all that counts here."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


_TEMPLATES = ImmutableSandboxedEnvironment(extensions=[_Generation, loopcontrols])


def _check_sentencepiece(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(2)
    # A ModelProto begins with its first piece: field 1, a message.
    if not start.startswith(b"\x0a"):
        raise UnfitError(f"{path.name}: expected a SentencePiece model, found {start!r}")


def _text(path: Path, bytes_max: int) -> str:
    try:
        text = _bytes(path, bytes_max).decode()
    except UnicodeDecodeError as error:
        raise UnfitError(f"{path.name}: expected text ({error})") from error
    if "\0" in text:
        raise UnfitError(f"{path.name}: expected text, found a NUL character")
    return text


def _bytes(path: Path, bytes_max: int) -> bytes:
    size = path.stat().st_size
    if size > bytes_max:
        raise UnfitError(f"{path.name}: expected at most {bytes_max:,} bytes, found {size:,}")
    return path.read_bytes()


def _object(name: str, content: bytes) -> dict[str, Any]:
    try:
        value: Any = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UnfitError(f"{name}: expected JSON ({error})") from error
    if not isinstance(value, dict):
        raise UnfitError(f"{name}: expected a JSON object, found {type(value).__name__}")
    return cast("dict[str, Any]", value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two values of one key, two readers may take different ones.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return found
