"""What can be wrong with one text of a row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from dataset_checks.faults import Code, Fault, type_name

KNOWN_CONTROL_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|startoftext|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>",
)  # fmt: skip
"""Control tokens of well-known chat templates, looked for where the base model's own are not known. `<s>` is HTML too."""

_INVISIBLE = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180e" + "".join(
    map(chr, (*range(0x2000, 0x2010), *range(0x2028, 0x2030), *range(0x205F, 0x2070), 0x2800, 0x3000, 0x3164, 0xFEFF, 0xFFA0))
)
# Bytes that are never part of what `_SUSPICIOUS` finds: deleting them leaves nothing of an ordinary text, at memory speed.
_ORDINARY = bytes(byte for byte in range(256) if byte not in (*range(9), 11, 12, *range(14, 32), 127, 0xEF))
_CONTROL = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")

LookFor = Callable[[str], Iterable[tuple[Code, str]]]
"""Finds what a policy does not want in a text: codes, and each with a message."""


def look_for_nothing(_text: str) -> Iterable[tuple[Code, str]]:
    """No policy."""
    return ()


class TextChecker:
    """Checks texts against the control tokens of a model and a policy."""

    def __init__(self, control_tokens: Iterable[str] = KNOWN_CONTROL_TOKENS, look_for: LookFor = look_for_nothing) -> None:
        tokens = sorted(control_tokens, key=len, reverse=True)
        self._control_tokens = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
        self._first_characters = tuple({token[0] for token in tokens if token})
        self._look_for = None if look_for is look_for_nothing else look_for

    def check(self, line: int, pointer: str, value: object, found: list[Fault]) -> None:
        """Appends what is wrong with `value`, which should be a text that says something."""
        if type(value) is not str:
            if value is None:
                found.append(Fault(line, pointer, Code.NULL_VALUE, f"{_named(pointer)} is null; expected a text"))
            else:
                message = f"{_named(pointer)} is {type_name(value)}; expected a text"
                found.append(Fault(line, pointer, Code.WRONG_TYPE, message))
            return
        if not value or value.isspace():
            found.append(Fault(line, pointer, Code.EMPTY_TEXT, f"{_named(pointer)} is empty; expected text"))
            return
        if not value.strip(_INVISIBLE):
            message = (
                f"{_named(pointer)} holds only characters that cannot be seen, the first U+{ord(value[0]):04X}; expected text"
            )
            found.append(Fault(line, pointer, Code.INVISIBLE_TEXT, message))
            return
        try:
            suspicious = value.encode().translate(None, _ORDINARY)
        except UnicodeEncodeError as error:
            where = f"at character {error.start + 1}"
            message = f"{_named(pointer)} holds half a surrogate pair {where}; expected whole characters"
            found.append(Fault(line, pointer, Code.INVALID_UNICODE, message))
            suspicious = b"?"
        if suspicious:
            self._check_characters(line, pointer, value, found)
        for first in self._first_characters:
            if first in value:
                if token := self._control_tokens.search(value):
                    message = f"{_named(pointer)} holds the control token {token[0]!r}; expected plain text"
                    found.append(Fault(line, pointer, Code.CONTROL_SEQUENCE, message))
                break
        if self._look_for is not None:
            found += (Fault(line, pointer, code, f"{_named(pointer)} {message}") for code, message in self._look_for(value))

    def _check_characters(self, line: int, pointer: str, text: str, found: list[Fault]) -> None:
        if "\x00" in text:
            message = f"{_named(pointer)} holds U+0000; expected text without it"
            found.append(Fault(line, pointer, Code.NULL_CHARACTER, message))
        if control := _CONTROL.search(text):
            message = f"{_named(pointer)} holds the control character U+{ord(control[0]):04X}; expected printable text"
            found.append(Fault(line, pointer, Code.CONTROL_CHARACTER, message))
        if "\ufffd" in text:
            message = f"{_named(pointer)} holds U+FFFD, which stands where a character was lost; expected the character"
            found.append(Fault(line, pointer, Code.REPLACEMENT_CHARACTER, message))


def _named(pointer: str) -> str:
    return pointer[1:].replace("~1", "/").replace("~0", "~")
