"""What the specs' fields are made of: names, hashes, text, and the rules every spec keeps."""

from __future__ import annotations

import json
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# ASCII only and anchored at both ends: `\w` and `$` would let look-alike letters and a trailing newline through.
_NAME_PATTERN = r"\A[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?\z"
_PROJECT_PATTERN = r"\A[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\z"
_KIND_PATTERN = r"\A[a-z0-9](?:[a-z0-9.-]{0,30}[a-z0-9])?\z"
_SHA256_PATTERN = r"\A[0-9a-f]{64}\z"
_PIN_PATTERN = r"\A(?:[0-9a-f]{64})?\z"
_TEXT_PATTERN = r"\A[^\x00]*\z"
_SYMBOL_PATTERN = r"\A[a-z][a-z0-9_]{0,63}\z"
_COLUMN_PATTERN = r"\A[a-zA-Z][a-zA-Z0-9_-]{0,63}\z"
_METRIC_PATTERN = r"\A[a-z0-9][a-z0-9_.-]{0,63}(?:/[a-z0-9][a-z0-9_.-]{0,63})?\z"
_CRON_PATTERN = r"\A[0-9*,/ -]{9,100}\z"

PATTERN_MEANINGS = {
    _NAME_PATTERN: "expected 1 to 64 characters of [a-z0-9.-], a letter or digit at both ends",
    _PROJECT_PATTERN: "expected 1 to 63 characters of [a-z0-9-], a letter or digit at both ends",
    _KIND_PATTERN: "expected 1 to 32 characters of [a-z0-9.-], a letter or digit at both ends",
    _SHA256_PATTERN: "expected 64 lower-case hex digits",
    _PIN_PATTERN: "expected 64 lower-case hex digits, or nothing",
    _TEXT_PATTERN: "expected text without NUL",
    _SYMBOL_PATTERN: "expected 1 to 64 characters of [a-z0-9_], a letter first",
    _COLUMN_PATTERN: "expected 1 to 64 characters of [a-zA-Z0-9_-], a letter first",
    _METRIC_PATTERN: "expected METRIC or SUITE/METRIC, each part 1 to 64 characters of [a-z0-9_.-], a letter or digit first",
    _CRON_PATTERN: "expected 9 to 100 characters of [0-9*,/ -]",
}
"""What each pattern means to a person. The comments of job_spec.proto say the same words after "expected"."""

ResourceName = Annotated[str, StringConstraints(pattern=_NAME_PATTERN)]
"""Name of a base model, dataset or registered model: 1 to 64 characters of [a-z0-9.-], letter or digit at both ends."""
ProjectName = Annotated[str, StringConstraints(pattern=_PROJECT_PATTERN)]
"""Name of a project: 1 to 63 characters of [a-z0-9-], letter or digit at both ends."""
Sha256Hex = Annotated[str, StringConstraints(pattern=_SHA256_PATTERN)]
"""A SHA-256 in lower-case hex."""
Pin = Annotated[str, StringConstraints(pattern=_PIN_PATTERN)]
"""A SHA-256 in lower-case hex, or nothing: what the name means at submit."""
AcceleratorKind = Annotated[str, StringConstraints(pattern=_KIND_PATTERN)]
"""Kind of accelerator, or "any": 1 to 32 characters of [a-z0-9.-], letter or digit at both ends."""
Text = Annotated[str, StringConstraints(pattern=_TEXT_PATTERN)]
"""Text that PostgreSQL can hold: any character but NUL."""
Symbol = Annotated[str, StringConstraints(pattern=_SYMBOL_PATTERN)]
"""Name in a registry of code. It has no dots, so that it cannot be taken for a place to import from."""
ColumnName = Annotated[str, StringConstraints(pattern=_COLUMN_PATTERN)]
"""Name of a field at the top of a row."""
MetricName = Annotated[str, StringConstraints(pattern=_METRIC_PATTERN)]
"""A number that an evaluation finds: METRIC, or SUITE/METRIC."""
CronText = Annotated[str, StringConstraints(pattern=_CRON_PATTERN)]
"""Text of the characters that a cron expression may have; `specs.cron` reads it."""

SEED_MAX = 2**31 - 1
Seed = Annotated[int, Field(ge=0, le=SEED_MAX)]
"""Seed of random choices."""
ACCELERATOR_SECONDS_MAX = 10**12
"""Most accelerator-seconds that may be asked for in all: 32 thousand accelerator-years. Sums of them stay within 64 bits."""


class SpecModel(BaseModel):
    """Closed, immutable, strict: no coercion of "8" to 8, no unknown field, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def replaced(self, **changes: Any) -> Self:
        """As `model_copy(update=changes)`, at a fifth of its cost: it is done for every job of a batch."""
        new = object.__new__(type(self))
        put = object.__setattr__  # past the model's own setter, which refuses
        put(new, "__dict__", {**self.__dict__, **changes})
        put(new, "__pydantic_fields_set__", self.__pydantic_fields_set__ | changes.keys())
        put(new, "__pydantic_extra__", None)
        put(new, "__pydantic_private__", None)
        return new


class RuleError(ValueError):
    """A rule over several fields does not hold.

    Attributes:
        path: the field at fault, below the message whose rule it is, such as "training.warmup_steps"; empty for the message.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def shown_key(key: str) -> str:
    """A key of a map as it stands in a field path. It may hold anything, and is shown escaped and shortened."""
    return json.dumps(key if len(key) <= 64 else key[:61] + "...")


def exactly_one(spec: SpecModel, names: tuple[str, ...]) -> None:
    """Holds the fields of a oneof to its rule.

    Raises:
        RuleError: none of them, or more than one, is set.
    """
    present = [name for name in names if getattr(spec, name) is not None]
    if len(present) != 1:
        found = f"has {' and '.join(present)}" if present else "is incomplete"
        raise RuleError("", f"{found}; expected exactly one of {', '.join(names)}")


def no_duplicates(path: str, values: tuple[object, ...]) -> None:
    """Holds a list to having nothing twice.

    Raises:
        RuleError: the path of the first item that was there before.
    """
    seen: set[object] = set()
    for index, value in enumerate(values):
        if value in seen:
            raise RuleError(f"{path}[{index}]", f"is {value!r} for the second time; expected each once")
        seen.add(value)
