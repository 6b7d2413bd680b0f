"""The fault classes of datasets. docs/reference/dataset-faults.md lists them, and a test holds the two together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Severity(StrEnum):
    """Whether a dataset with the fault may be trained on."""

    ERROR = "error"
    """Training would stop, or go on with something else than was meant."""
    WARNING = "warning"
    """Training goes on as meant; somebody should know."""


class Code(StrEnum):
    """What can be wrong with a file, with a row, or with rows together."""

    # The file.
    EMPTY_FILE = "empty_file"
    COMPRESSED_FILE = "compressed_file"
    BINARY_FILE = "binary_file"
    SCRIPT_FILE = "script_file"
    UTF16_FILE = "utf16_file"
    BYTE_ORDER_MARK = "byte_order_mark"
    JSON_ARRAY_FILE = "json_array_file"
    PRETTY_PRINTED_JSON = "pretty_printed_json"
    CARRIAGE_RETURN_ENDS = "carriage_return_ends"
    MIXED_LINE_ENDS = "mixed_line_ends"
    TRUNCATED_FILE = "truncated_file"
    UNKNOWN_COLUMNS = "unknown_columns"
    INVALID_PARQUET = "invalid_parquet"
    TOO_MANY_COLUMNS = "too_many_columns"
    ROW_GROUP_TOO_LARGE = "row_group_too_large"
    DUPLICATE_COLUMN = "duplicate_column"
    WRONG_DELIMITER = "wrong_delimiter"
    # A line.
    INVALID_UTF8 = "invalid_utf8"
    LINE_TOO_LONG = "line_too_long"
    INVALID_JSON = "invalid_json"
    NESTED_TOO_DEEPLY = "nested_too_deeply"
    NOT_AN_OBJECT = "not_an_object"
    DUPLICATE_FIELD = "duplicate_field"
    NOT_A_NUMBER = "not_a_number"
    NUMBER_TOO_LARGE = "number_too_large"
    INVALID_CSV_QUOTES = "invalid_csv_quotes"
    RAGGED_ROW = "ragged_row"
    # A row's fields.
    MIXED_FORMATS = "mixed_formats"
    MIXED_COLUMNS = "mixed_columns"
    MISSING_FIELD = "missing_field"
    UNKNOWN_FIELD = "unknown_field"
    WRONG_TYPE = "wrong_type"
    NULL_VALUE = "null_value"
    EMPTY_TEXT = "empty_text"
    INVISIBLE_TEXT = "invisible_text"
    NULL_CHARACTER = "null_character"
    CONTROL_CHARACTER = "control_character"
    INVALID_UNICODE = "invalid_unicode"
    REPLACEMENT_CHARACTER = "replacement_character"
    CONTROL_SEQUENCE = "control_sequence"
    # Conversations.
    NO_MESSAGES = "no_messages"
    UNKNOWN_ROLE = "unknown_role"
    SYSTEM_NOT_FIRST = "system_not_first"
    FIRST_TURN_NOT_USER = "first_turn_not_user"
    REPEATED_ROLE = "repeated_role"
    NO_ASSISTANT_TURN = "no_assistant_turn"
    LAST_TURN_NOT_ASSISTANT = "last_turn_not_assistant"
    LAST_TURN_NOT_USER = "last_turn_not_user"
    ALL_TURNS_MASKED = "all_turns_masked"
    # Preferences.
    CHOSEN_EQUALS_REJECTED = "chosen_equals_rejected"
    PROMPTS_DIFFER = "prompts_differ"
    LABEL_NOT_BOOLEAN = "label_not_boolean"
    ONE_LABEL_ONLY = "one_label_only"
    # Rows together.
    DUPLICATE_ROW = "duplicate_row"
    NEAR_DUPLICATE_ROW = "near_duplicate_row"
    CONTRADICTING_ROW = "contradicting_row"
    EVAL_OVERLAP = "eval_overlap"
    EVAL_NEAR_OVERLAP = "eval_near_overlap"
    TOO_FEW_ROWS = "too_few_rows"
    NOTHING_TO_EVALUATE = "nothing_to_evaluate"
    # What the policy may ask for.
    SECRET = "secret"  # noqa: S105 - the name of a fault
    PERSONAL_DATA = "personal_data"
    # With a base model.
    NO_CHAT_TEMPLATE = "no_chat_template"
    NO_GENERATION_MARKERS = "no_generation_markers"
    TEMPLATE_REFUSES_ROW = "template_refuses_row"
    NOTHING_TO_TRAIN = "nothing_to_train"
    TRUNCATED_ROW = "truncated_row"

    @property
    def severity(self) -> Severity:
        """Whether it keeps the dataset from being trained on."""
        return Severity.WARNING if self in _WARNINGS else Severity.ERROR

    @property
    def hint(self) -> str:
        """What to do about it."""
        return _HINTS[self]


_WARNINGS = frozenset(
    {
        Code.MIXED_LINE_ENDS,
        Code.CONTROL_CHARACTER,
        Code.REPLACEMENT_CHARACTER,
        Code.DUPLICATE_ROW,
        Code.NEAR_DUPLICATE_ROW,
        Code.EVAL_NEAR_OVERLAP,
        Code.TRUNCATED_ROW,
    }
)

_HINTS = {
    Code.EMPTY_FILE: "write at least one row",
    Code.COMPRESSED_FILE: "decompress the file first; Parquet is compressed by itself",
    Code.BINARY_FILE: "export the rows as JSON lines, CSV or Parquet",
    Code.SCRIPT_FILE: "run the script yourself and give its rows; scripts are never run here",
    Code.UTF16_FILE: "convert the file: iconv -f UTF-16 -t UTF-8",
    Code.BYTE_ORDER_MARK: "save the file as UTF-8 without a byte order mark",
    Code.JSON_ARRAY_FILE: "write an object a line: jq -c '.[]'",
    Code.PRETTY_PRINTED_JSON: "write each object on one line: jq -c .",
    Code.CARRIAGE_RETURN_ENDS: "end lines with a line feed: tr '\\r' '\\n'",
    Code.MIXED_LINE_ENDS: "files were probably joined; look at where the ends change, or use dos2unix",
    Code.TRUNCATED_FILE: "the file was cut off; write or copy it again",
    Code.UNKNOWN_COLUMNS: "rename the columns to those of one format",
    Code.INVALID_PARQUET: "write or copy the file again",
    Code.TOO_MANY_COLUMNS: "keep only the columns of the format",
    Code.ROW_GROUP_TOO_LARGE: "write the file with smaller row groups: row_group_size=10000",
    Code.DUPLICATE_COLUMN: "give each column a name of its own",
    Code.WRONG_DELIMITER: "separate the columns with commas",
    Code.INVALID_UTF8: "find the encoding the text came from and convert it to UTF-8",
    Code.LINE_TOO_LONG: "split the document, or remove what is no text, such as encoded images",
    Code.INVALID_JSON: "write rows with a JSON library, one object a line",
    Code.NESTED_TOO_DEEPLY: "rows are objects of texts or messages",
    Code.NOT_AN_OBJECT: "write each row as an object with named fields",
    Code.DUPLICATE_FIELD: "keep one of the two; readers differ in which they take",
    Code.NOT_A_NUMBER: "JSON has neither NaN nor Infinity; leave the field out",
    Code.NUMBER_TOO_LARGE: "write the value as a string, or leave the field out",
    Code.INVALID_CSV_QUOTES: "write the file with a CSV library; quotes inside quotes are doubled",
    Code.RAGGED_ROW: "quote texts that hold commas or line ends",
    Code.MIXED_FORMATS: "put rows of each format into a file of their own",
    Code.MIXED_COLUMNS: "give every row the same columns; reward functions read them",
    Code.MISSING_FIELD: "add the field, or remove the row",
    Code.UNKNOWN_FIELD: "remove or rename the field; nothing would read it",
    Code.WRONG_TYPE: "give a value of the type that is expected",
    Code.NULL_VALUE: "give a text, or remove the row; training libraries take null in silence",
    Code.EMPTY_TEXT: "give a text, or remove the row",
    Code.INVISIBLE_TEXT: "give a text that can be read, or remove the row",
    Code.NULL_CHARACTER: "remove U+0000",
    Code.CONTROL_CHARACTER: "remove the character, unless the model is to write it",
    Code.INVALID_UNICODE: "the text was cut within a character; cut it between characters",
    Code.REPLACEMENT_CHARACTER: "the text was decoded wrongly somewhere before; decode its source again",
    Code.CONTROL_SEQUENCE: "remove it; the chat template adds control tokens by itself",
    Code.NO_MESSAGES: "give messages, or remove the row",
    Code.UNKNOWN_ROLE: "use system, user or assistant",
    Code.SYSTEM_NOT_FIRST: "make the system message the first, and the only one",
    Code.FIRST_TURN_NOT_USER: "begin with a user message",
    Code.REPEATED_ROLE: "join the two messages, or add the turn between them",
    Code.NO_ASSISTANT_TURN: "add the assistant's answer; without one nothing is trained",
    Code.LAST_TURN_NOT_ASSISTANT: "end with the assistant's answer; what comes after it is never trained",
    Code.LAST_TURN_NOT_USER: "end the prompt with a user message; the answer is the model's to give",
    Code.ALL_TURNS_MASKED: "give at least one assistant message the weight 1, or remove the row",
    Code.CHOSEN_EQUALS_REJECTED: "remove the row; it says nothing about what is better",
    Code.PROMPTS_DIFFER: "compare answers to the same conversation",
    Code.LABEL_NOT_BOOLEAN: "write true or false",
    Code.ONE_LABEL_ONLY: "add rows with the other label",
    Code.DUPLICATE_ROW: "keep it once; repeated rows weigh more",
    Code.NEAR_DUPLICATE_ROW: "look whether both are wanted",
    Code.CONTRADICTING_ROW: "keep one of the two",
    Code.EVAL_OVERLAP: "remove it from one of the files; its score would be of memory",
    Code.EVAL_NEAR_OVERLAP: "look whether the score would be of memory",
    Code.TOO_FEW_ROWS: "add rows",
    Code.NOTHING_TO_EVALUATE: "add rows that share no text with the others",
    Code.SECRET: "remove it, and revoke it: it was in a file",
    Code.PERSONAL_DATA: "remove or mask it, or ask for an exception to the policy",
    Code.NO_CHAT_TEMPLATE: "use an instruct model, or rows of plain text",
    Code.NO_GENERATION_MARKERS: "mark the assistant's text in the template by {% generation %}, or use prompt and completion",
    Code.TEMPLATE_REFUSES_ROW: "bring the row into the form that the model's chat template allows",
    Code.NOTHING_TO_TRAIN: "shorten the prompt, or raise max_tokens",
    Code.TRUNCATED_ROW: "raise max_tokens, or split the row",
}


class Fault(NamedTuple):
    """One thing that is wrong, and where."""

    line: int
    """Line of the file, or row of a Parquet file, from 1; 0 is the file as a whole."""
    pointer: str
    """JSON pointer (RFC 6901) into the row; "" is the row itself."""
    code: Code
    message: str
    """What was found, and what was expected."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "line": self.line,
            "pointer": self.pointer,
            "code": self.code.value,
            "severity": self.code.severity.value,
            "message": self.message,
            "hint": self.code.hint,
        }


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may be made of at most, so that a hostile one cannot exhaust the machine."""

    line_bytes: int = 1024 * 1024
    depth: int = 32
    columns: int = 64
    row_group_bytes: int = 1024 * 1024 * 1024


DEFAULT_LIMITS = Limits()


def pointer_to(*names: str | int) -> str:
    """The JSON pointer that leads through `names`. A name that is itself broken does not break the report."""
    parts: list[str] = []
    for name in names:
        readable = str(name)[:100].encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")
        parts.append("/" + readable.replace("~", "~0").replace("/", "~1"))
    return "".join(parts)


_TYPE_NAMES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


def type_name(value: object) -> str:
    """What JSON calls the value, with its article."""
    if value is None:
        return "null"
    return _TYPE_NAMES.get(type(value)) or next(
        (name for kind, name in _TYPE_NAMES.items() if isinstance(value, kind)), f"a {type(value).__name__}"
    )
