"""What can be wrong with the messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from enum import Enum, auto
from typing import Any, cast

from dataset_checks.faults import Code, Fault, pointer_to, type_name
from dataset_checks.texts import TextChecker

ROLES = ("system", "user", "assistant")
_FIELDS = {"role", "content"}
_WEIGHT = "weight"


class Part(Enum):
    """Which part of a conversation some messages are."""

    WHOLE = auto()
    """From the first message to the assistant's last."""
    PROMPT = auto()
    """Up to what the assistant is to answer."""
    ANSWER = auto()
    """The assistant's answer alone."""


def check_messages(line: int, pointer: str, value: object, part: Part, texts: TextChecker, found: list[Fault]) -> None:
    """Appends what is wrong with `value`, which should be messages that form `part` of a conversation."""
    if not isinstance(value, list):
        code = Code.NULL_VALUE if value is None else Code.WRONG_TYPE
        found.append(Fault(line, pointer, code, f"{pointer[1:]} is {type_name(value)}; expected an array of messages"))
        return
    messages = cast("list[Any]", value)
    if not messages:
        found.append(Fault(line, pointer, Code.NO_MESSAGES, f"{pointer[1:]} is empty; expected messages"))
        return
    roles = [_check_message(line, f"{pointer}/{index}", message, texts, found) for index, message in enumerate(messages)]
    # The order of turns says nothing where it is not known whose turn one is.
    if None not in roles:
        known = cast("list[str]", roles)
        if part is Part.ANSWER:
            _check_answer(line, pointer, known, found)
        else:
            _check_order(line, pointer, known, part, found)
        _check_weights(line, pointer, messages, known, found)


def _check_message(line: int, pointer: str, message: Any, texts: TextChecker, found: list[Fault]) -> str | None:
    """The message's role, or None when it is not known."""
    if not isinstance(message, dict):
        found.append(Fault(line, pointer, Code.WRONG_TYPE, f"{pointer[1:]} is {type_name(message)}; expected a message"))
        return None
    fields = cast("dict[str, Any]", message)
    if fields.keys() != _FIELDS:
        for name in fields.keys() - _FIELDS - {_WEIGHT}:
            unknown = f"{name!r} is unknown; expected role, content and, if wanted, weight"
            found.append(Fault(line, pointer + pointer_to(name), Code.UNKNOWN_FIELD, unknown))
        for name in sorted(_FIELDS - fields.keys()):
            found.append(Fault(line, f"{pointer}/{name}", Code.MISSING_FIELD, f"{name} is missing; expected a string"))
    if "content" in fields:
        texts.check(line, f"{pointer}/content", fields["content"], found)
    weight = fields.get(_WEIGHT)
    # Parquet has null where a field is left out.
    if weight is not None and (type(weight) not in (int, float) or weight not in (0, 1)):
        found.append(Fault(line, f"{pointer}/weight", Code.WRONG_TYPE, f"weight is {weight!r:.40}; expected 0 or 1"))
    if "role" not in fields:
        return None
    return _check_role(line, f"{pointer}/role", fields["role"], found)


def _check_role(line: int, pointer: str, role: object, found: list[Fault]) -> str | None:
    if role in ROLES:
        return cast("str", role)
    if not isinstance(role, str):
        code = Code.NULL_VALUE if role is None else Code.WRONG_TYPE
        found.append(Fault(line, pointer, code, f"role is {type_name(role)}; expected one of {', '.join(ROLES)}"))
        return None
    meant = get_close_matches(role.strip().lower()[:40], ROLES, n=1)
    guess = f"; did you mean {meant[0]}?" if meant else ""
    message = f"role is {role[:40]!r}; expected one of {', '.join(ROLES)}{guess}"
    found.append(Fault(line, pointer, Code.UNKNOWN_ROLE, message))
    return None


def _check_answer(line: int, pointer: str, roles: Sequence[str], found: list[Fault]) -> None:
    if "assistant" not in roles:
        message = f"{pointer[1:]} has no assistant message; expected the assistant's answer"
        found.append(Fault(line, pointer, Code.NO_ASSISTANT_TURN, message))
        return
    if roles[0] != "assistant":
        message = f"{pointer[1:]} begins with a {roles[0]} message; expected the assistant's answer"
        found.append(Fault(line, f"{pointer}/0", Code.REPEATED_ROLE, message))
    if roles[-1] != "assistant":
        _last_turn(line, pointer, roles, "assistant", Code.LAST_TURN_NOT_ASSISTANT, found)
    _check_alternation(line, pointer, roles, 0, found)


def _check_order(line: int, pointer: str, roles: Sequence[str], part: Part, found: list[Fault]) -> None:
    if part is Part.WHOLE and "assistant" not in roles:
        message = f"{pointer[1:]} has no assistant message; expected one, since only those are trained"
        found.append(Fault(line, pointer, Code.NO_ASSISTANT_TURN, message))
        return
    begin = 1 if roles[0] == "system" else 0
    if begin < len(roles) and roles[begin] == "assistant":
        message = "the conversation begins with the assistant; expected a user message first"
        found.append(Fault(line, f"{pointer}/{begin}", Code.FIRST_TURN_NOT_USER, message))
    _check_alternation(line, pointer, roles, begin, found)
    if part is Part.WHOLE and roles[-1] == "user":
        _last_turn(line, pointer, roles, "assistant", Code.LAST_TURN_NOT_ASSISTANT, found)
    elif part is Part.PROMPT and roles[-1] in ("assistant", "system"):
        _last_turn(line, pointer, roles, "user", Code.LAST_TURN_NOT_USER, found)


def _last_turn(line: int, pointer: str, roles: Sequence[str], expected: str, code: Code, found: list[Fault]) -> None:
    message = f"the last message is of the {roles[-1]}; expected one of the {expected}"
    found.append(Fault(line, f"{pointer}/{len(roles) - 1}", code, message))


def _check_alternation(line: int, pointer: str, roles: Sequence[str], begin: int, found: list[Fault]) -> None:
    before = ""
    for index in range(begin, len(roles)):
        role = roles[index]
        if role == "system":
            message = f"message {index} is of the system; expected that at the beginning only"
            found.append(Fault(line, f"{pointer}/{index}", Code.SYSTEM_NOT_FIRST, message))
            continue
        if role == before:
            message = f"message {index} is of the {role}, as the one before; expected turns to alternate"
            found.append(Fault(line, f"{pointer}/{index}", Code.REPEATED_ROLE, message))
        before = role


def _check_weights(
    line: int, pointer: str, messages: Sequence[Mapping[str, Any]], roles: Sequence[str], found: list[Fault]
) -> None:
    weights = [message.get(_WEIGHT, 1) for message, role in zip(messages, roles, strict=True) if role == "assistant"]
    if weights and all(weight == 0 for weight in weights):
        message = "every assistant message has weight 0; expected at least one to train on"
        found.append(Fault(line, pointer, Code.ALL_TURNS_MASKED, message))
