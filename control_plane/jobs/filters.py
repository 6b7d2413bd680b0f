"""The filter grammar of lists and selections: a subset of AIP-160. docs/reference/filters.md is its reference.

    filter     = expression
    expression = term { "AND" term } | term { "OR" term }
    term       = [ "NOT" ] ( "(" expression ")" | field operator value )

AND and OR are never mixed without parentheses: AIP-160 lets OR bind more closely, which hardly anybody expects. What a filter
says reaches the database as bound parameters of expressions made here, never as text.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, and_, func, literal_column, not_, or_

from control_plane.db.tables import jobs
from control_plane.errors import RefusedError, invalid_field
from control_plane.jobs.spec import SPEC_TYPES
from control_plane.jobs.states import JobPhase, JobState
from control_plane.jobs.waiting import WAITING_REASON

LENGTH_MAX = 2_000
"""Characters."""
COMPARISONS_MAX = 100
DEPTH_MAX = 20
"""Of parentheses and NOTs."""
_INT_MAX = 2**31 - 1


class Kind(StrEnum):
    """What a field's values are."""

    WORD = "WORD"
    """One of a fixed list."""
    TEXT = "TEXT"
    NUMBER = "NUMBER"
    TIME = "TIME"
    ID = "ID"


@dataclass(frozen=True, slots=True)
class Field:
    """What can be asked about: a column and how its values are written."""

    name: str
    column: ColumnElement[Any]
    kind: Kind
    words: tuple[str, ...] = ()


FIELDS: Mapping[str, Field] = {
    field.name: field
    for field in (
        Field("job_id", jobs.c.job_id, Kind.ID),
        Field("project", jobs.c.project, Kind.TEXT),
        Field("name", jobs.c.name, Kind.TEXT),
        Field("type", jobs.c.type, Kind.WORD, tuple(SPEC_TYPES)),
        Field("state", jobs.c.state, Kind.WORD, tuple(JobState)),
        # A job has no phase before its first; no word equals that.
        Field("phase", func.coalesce(jobs.c.phase, ""), Kind.WORD, tuple(JobPhase)),
        Field("priority", jobs.c.priority, Kind.NUMBER),
        Field("attempt", jobs.c.attempt, Kind.NUMBER),
        Field("checkpoint_step", jobs.c.checkpoint_step, Kind.NUMBER),
        Field("submitter", jobs.c.submitter, Kind.TEXT),
        Field("job_set", jobs.c.job_set, Kind.TEXT),
        Field("waiting_reason", WAITING_REASON, Kind.TEXT),
        Field("create_time", jobs.c.created_at, Kind.TIME),
        Field("update_time", jobs.c.updated_at, Kind.TIME),
        Field("end_time", jobs.c.ended_at, Kind.TIME),
    )
}


class Operator(StrEnum):
    """How a field is held against a value."""

    EQUAL = "="
    UNEQUAL = "!="
    LESS = "<"
    AT_MOST = "<="
    MORE = ">"
    AT_LEAST = ">="
    HAS = ":"
    """Text: contains the value; begins with it, if that ends with `*`. A lone `*`: the field has any value."""


_EQUALITY = (Operator.EQUAL, Operator.UNEQUAL)
_ORDER = (Operator.LESS, Operator.AT_MOST, Operator.MORE, Operator.AT_LEAST)
_OPERATORS: Mapping[Kind, tuple[Operator, ...]] = {
    Kind.WORD: _EQUALITY,
    Kind.TEXT: (*_EQUALITY, Operator.HAS),
    Kind.NUMBER: (*_EQUALITY, *_ORDER),
    Kind.TIME: (*_EQUALITY, *_ORDER),
    Kind.ID: _EQUALITY,
}
_PRESENCE = frozenset({"phase", "job_set", "waiting_reason", "end_time"})
"""Fields that may be without a value, and so can be asked for having any."""


class Match(StrEnum):
    """What HAS asks of a text."""

    CONTAINS = "CONTAINS"
    BEGINS = "BEGINS"
    ANY = "ANY"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A field held against a value."""

    field: Field
    operator: Operator
    value: str | int | datetime
    match: Match | None = None


@dataclass(frozen=True, slots=True)
class Not:
    """The contrary."""

    term: Filter


@dataclass(frozen=True, slots=True)
class AllOf:
    """All of them."""

    terms: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of them."""

    terms: tuple[Filter, ...]


Filter: TypeAlias = "Comparison | Not | AllOf | AnyOf"


def parse(text: str, path: str = "filter") -> Filter | None:
    """What a filter says; None for an empty one, which says nothing.

    Args:
        text: the filter.
        path: of its field in the request.

    Raises:
        RefusedError: it is not in the grammar; the violation says where, in characters from 1.
    """
    if len(text) > LENGTH_MAX:
        raise invalid_field(path, f"has {len(text):,} characters; expected at most {LENGTH_MAX:,}")
    return _Parser(text, path).parse() if text.strip() else None


def condition(said: Filter) -> ColumnElement[bool]:
    """The filter as a condition on `jobs`. It is never NULL, so that NOT turns it into its contrary."""
    match said:
        case AllOf(terms):
            return and_(*map(condition, terms))
        case AnyOf(terms):
            return or_(*map(condition, terms))
        case Not(term):
            return not_(condition(term))
        case Comparison():
            return _comparison(said)


def states_asked(said: Filter | None) -> frozenset[JobState] | None:
    """The states that any matching job is in, as far as the filter says so outright; None: it may be any."""
    match said:
        case Comparison(Field("state"), Operator.EQUAL, str(word)):
            return frozenset({JobState(word)})
        case Comparison(Field("state"), Operator.UNEQUAL, str(word)):
            return frozenset(JobState) - {JobState(word)}
        case AllOf(terms):
            known = [states for term in terms if (states := states_asked(term)) is not None]
            return frozenset.intersection(*known) if known else None
        case AnyOf(terms):
            each = [states_asked(term) for term in terms]
            return frozenset[JobState]().union(*(states for states in each if states is not None)) if None not in each else None
        case _:
            return None


def _comparison(said: Comparison) -> ColumnElement[bool]:
    column, value = said.field.column, said.value
    if said.operator is Operator.HAS:
        return _has(said)
    compared = _COMPARED[said.operator](column, value)
    if said.field.name == "job_set" and said.operator is Operator.EQUAL and value:
        # The index of job sets leaves out the jobs without one, and the database is told that they do not matter.
        return and_(compared, column != literal_column("''"))
    if said.field.name != "end_time":
        return compared
    # A job that has not ended is neither before nor after anything, and unequal to every time.
    if said.operator is Operator.UNEQUAL:
        return or_(column.is_(None), compared)
    return and_(column.is_not(None), compared)


def _has(said: Comparison) -> ColumnElement[bool]:
    column, value = said.field.column, said.value
    match said.match:
        case Match.ANY:
            return column.is_not(None) if said.field.kind is Kind.TIME else column != ""
        case Match.BEGINS:
            return func.starts_with(column, value)
        case _:
            return func.strpos(column, value) > 0


_COMPARED: Mapping[Operator, Callable[[Any, Any], ColumnElement[bool]]] = {
    Operator.EQUAL: lambda column, value: column == value,
    Operator.UNEQUAL: lambda column, value: column != value,
    Operator.LESS: lambda column, value: column < value,
    Operator.AT_MOST: lambda column, value: column <= value,
    Operator.MORE: lambda column, value: column > value,
    Operator.AT_LEAST: lambda column, value: column >= value,
}

_SPACE = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r"!=|<=|>=|=|<|>|:")
# What needs no quotes: names, numbers, times, ids, and subjects such as user:ada.
_BARE = re.compile(r"[A-Za-z0-9_.:/@+-]+\*?|\*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\*])*)"|\'((?:[^\'\\]|\\[\'\\*])*)\'')
_CHARACTER = re.compile(r"\\.|[^\\]", re.DOTALL)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)")
_KEYWORDS = frozenset({"AND", "OR", "NOT"})


class _Parser:
    """Reads one filter from left to right."""

    def __init__(self, text: str, path: str) -> None:
        self._text = text
        self._path = path
        self._at = 0
        self._comparisons = 0

    def parse(self) -> Filter:
        said = self._expression(0)
        if self._at < len(self._text):
            raise self._error("expected AND, OR or the end")
        return said

    def _expression(self, depth: int) -> Filter:
        terms = [self._term(depth)]
        joint = ""
        while (word := self._peek_word()) in {"AND", "OR"}:
            if joint and word != joint:
                raise self._error("AND and OR stand side by side; expected parentheses that say which goes first")
            joint = word
            self._skip(len(word))
            terms.append(self._term(depth))
        if not joint:
            return terms[0]
        return AllOf(tuple(terms)) if joint == "AND" else AnyOf(tuple(terms))

    def _term(self, depth: int) -> Filter:
        self._skip(0)
        if depth >= DEPTH_MAX:
            raise self._error(f"nested deeper than {DEPTH_MAX}; expected fewer parentheses and NOTs")
        if self._peek_word() == "NOT":
            self._skip(3)
            return Not(self._term(depth + 1))
        if self._text[self._at : self._at + 1] != "(":
            return self._comparison()
        self._skip(1)
        said = self._expression(depth + 1)
        if self._text[self._at : self._at + 1] != ")":
            raise self._error("expected AND, OR or a closing parenthesis")
        self._skip(1)
        return said

    def _comparison(self) -> Comparison:
        self._comparisons += 1
        if self._comparisons > COMPARISONS_MAX:
            raise self._error(f"more than {COMPARISONS_MAX} comparisons; expected fewer")
        name = self._peek_word()
        field = FIELDS.get(name)
        if field is None:
            wrong = f"{name!r} is not a field" if name and name not in _KEYWORDS else "no field"
            raise self._error(f"{wrong}; expected one of {', '.join(sorted(FIELDS))}")
        self._skip(len(name))
        found = _OPERATOR.match(self._text, self._at)
        if found is None:
            raise self._error(f"expected an operator after {name}: {self._operators(field)}")
        operator = Operator(found[0])
        allowed = operator in _OPERATORS[field.kind] or (operator is Operator.HAS and name in _PRESENCE)
        if not allowed:
            raise self._error(f"{name} cannot be compared by {operator}; expected {self._operators(field)}")
        self._skip(len(found[0]))
        return self._valued(field, operator)

    def _valued(self, field: Field, operator: Operator) -> Comparison:
        begin = self._at
        text, starred, quoted = self._value(field)
        if operator is not Operator.HAS:
            plain = f"{text}*" if starred else text
            try:
                value = _VALUES[field.kind](field, plain)
            except ValueError as error:
                self._at = begin
                raise self._error(f"{field.name} {error}") from None
            return Comparison(field, operator, value)
        if starred and not text:
            if field.name not in _PRESENCE:
                self._at = begin
                raise self._error(f"every job has a {field.name}; expected something to look for")
            return Comparison(field, operator, "", Match.ANY)
        if field.kind is not Kind.TEXT or not text:
            self._at = begin
            meant = "`*`, which asks whether there is one" if field.kind is not Kind.TEXT else "something to look for"
            raise self._error(f"{field.name}: has {text!r}; expected {meant}" if quoted or text else f"expected {meant}")
        return Comparison(field, operator, text, Match.BEGINS if starred else Match.CONTAINS)

    def _value(self, field: Field) -> tuple[str, bool, bool]:
        """The value, whether a star ends it, and whether it stood in quotes."""
        if found := _QUOTED.match(self._text, self._at):
            characters: list[str] = _CHARACTER.findall(found[1] if found[1] is not None else found[2])
            starred = characters[-1:] == ["*"]
            self._skip(len(found[0]))
            return "".join(character[-1] for character in characters[: len(characters) - starred]), starred, True
        if found := _BARE.match(self._text, self._at):
            word = found[0]
            if word not in _KEYWORDS:
                self._skip(len(word))
                return word.removesuffix("*"), word.endswith("*"), False
        if self._text[self._at : self._at + 1] in {'"', "'"}:
            raise self._error("a text that is not closed, or has another escape than \\\\, \\* and that of its quote")
        raise self._error(
            f"expected a value of {field.name}; what has other characters than [A-Za-z0-9_.:/@+-] stands in quotes"
        )

    def _peek_word(self) -> str:
        found = _WORD.match(self._text, self._at)
        return found[0] if found else ""

    def _skip(self, characters: int) -> None:
        """Goes on behind so many characters, and behind the white space that follows."""
        found = _SPACE.match(self._text, self._at + characters)
        self._at = found.end() if found else len(self._text)

    def _operators(self, field: Field) -> str:
        operators = [*_OPERATORS[field.kind]]
        if field.name in _PRESENCE and Operator.HAS not in operators:
            operators.append(Operator.HAS)
        return " ".join(operators)

    def _error(self, message: str) -> RefusedError:
        return invalid_field(self._path, f"at character {self._at + 1:,}: {message}")


def _word(field: Field, text: str) -> str:
    if text not in field.words:
        raise ValueError(f"is {_shown(text)}; expected one of {', '.join(field.words)}")
    return text


def _number(field: Field, text: str) -> int:
    del field
    if re.fullmatch(r"[+-]?[0-9]{1,10}", text) is None or abs(int(text)) > _INT_MAX:
        raise ValueError(f"is {_shown(text)}; expected a whole number from -{_INT_MAX:,} to {_INT_MAX:,}")
    return int(text)


def _time(field: Field, text: str) -> datetime:
    del field
    try:
        if _TIME.fullmatch(text) is None:
            raise ValueError
        moment = datetime.fromisoformat(text.upper())
        moment.utctimetuple()  # in a zone that leads out of the calendar it is no time
    except (ValueError, OverflowError):
        raise ValueError(f"is {_shown(text)}; expected a time with its zone, such as 2026-01-31T09:00:00Z (RFC 3339)") from None
    return moment


def _id(field: Field, text: str) -> str:
    del field
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ValueError(f"is {_shown(text)}; expected a UUID") from None


def _text(field: Field, text: str) -> str:
    if "\x00" in text:
        raise ValueError("holds NUL; expected text without it")
    del field
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


_VALUES: Mapping[Kind, Callable[[Field, str], str | int | datetime]] = {
    Kind.WORD: _word,
    Kind.TEXT: _text,
    Kind.NUMBER: _number,
    Kind.TIME: _time,
    Kind.ID: _id,
}
