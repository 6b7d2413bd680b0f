"""The body of `prepare`: one pass over the dataset finds every fault and tokenises; a second deals the rows to two files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from control_plane.jobs.states import FailureKind
from dataset_checks.faults import Code, Fault
from dataset_checks.fingerprints import content
from dataset_checks.formats import RowFormat, described
from dataset_checks.parquet_rows import MissingLibraryError
from dataset_checks.rendering import control_tokens_of
from dataset_checks.rows import Layout
from dataset_checks.validation import Policy, read_rows
from workers.manifest import sha256_of
from workers.runner.data.chat import load_tokenizer, template_sha256
from workers.runner.data.examples import SUPERVISED, Example, ExampleMaker, linking_texts
from workers.runner.data.split import Splitter
from workers.runner.data.violations import Violations
from workers.runner.failures import PreemptedError, RunnerError
from workers.runner.files import atomic_directory
from workers.runner.models.vetting import vet_base_model
from workers.runner.program import Context
from workers.runner.specs import PrepareOk, PrepareSpec

MINIMUM_ROWS = 8
"""Distinct rows below which there is nothing to learn from or to measure on."""
_MINIMUM_EVAL_ROWS = 2  # A standard error needs two.
_BATCH_ROWS = 512
_TOKENIZED_NAME = "tokenized.jsonl"


@dataclass
class _Part:
    """What one of the two files holds."""

    rows: int = 0
    tokens: int = 0
    target_tokens: int = 0
    longest: int = 0

    def add(self, tokens: int, target_tokens: int) -> None:
        self.rows += 1
        self.tokens += tokens
        self.target_tokens += target_tokens
        self.longest = max(self.longest, tokens)


def run(context: Context, spec: PrepareSpec) -> PrepareOk:
    """Prepares the dataset in `<output_dir>/data/`.

    Raises:
        RunnerError: INVALID_DATASET with every fault, or INVALID_BASE_MODEL.
        PreemptedError: the program was asked to stop.
    """
    vet_base_model(spec.base_model_dir)
    tokenizer = load_tokenizer(spec.base_model_dir)
    splitter = Splitter()
    with atomic_directory(spec.output_dir / "data") as folder:
        tokenized = _tokenize(context, spec, tokenizer, splitter, folder / _TOKENIZED_NAME)
        maker, duplicates = tokenized.maker, tokenized.duplicates
        train, held_out = _deal(tokenized, splitter.split(spec.eval_fraction, spec.split_seed), folder)
        statistics = {
            "dataset_sha256": sha256_of(spec.dataset_path),
            "chat_template_sha256": template_sha256(tokenizer),
            "format": tokenized.row_format.value,
            "max_tokens": spec.max_tokens,
            "eval_fraction": spec.eval_fraction,
            "split_seed": spec.split_seed,
            "duplicate_rows": duplicates,
            "warnings": {code.value: count for code, count in sorted(tokenized.warnings.items())},
            "truncated_rows": maker.truncated_rows,
            "truncated_tokens": maker.truncated_tokens,
            "largest_group_rows": splitter.largest_group(),
            "train": asdict(train),
            "eval": asdict(held_out),
        }
        (folder / "statistics.json").write_text(json.dumps(statistics, indent=1, sort_keys=True) + "\n")
    context.events.log(f"{train.rows} rows to train on, {held_out.rows} held out, {duplicates} duplicates left out")
    return PrepareOk(
        train_rows=train.rows,
        eval_rows=held_out.rows,
        train_tokens=train.target_tokens,
        eval_tokens=held_out.target_tokens,
        duplicate_rows=duplicates,
        truncated_rows=maker.truncated_rows,
        truncated_tokens=maker.truncated_tokens,
    )


@dataclass(frozen=True)
class _Tokenized:
    """What the first pass came to."""

    row_format: RowFormat
    maker: ExampleMaker
    duplicates: int
    """Rows left out."""
    sizes: Sequence[Sequence[tuple[int, int]]]
    """Of each row kept, its examples' tokens and target tokens."""
    warnings: Counter[Code]


def _tokenize(context: Context, spec: PrepareSpec, tokenizer: Any, splitter: Splitter, target: Path) -> _Tokenized:
    """Writes the examples of the distinct rows to `target` and collects the rows in `splitter`."""
    violations = Violations()
    policy = Policy(control_tokens=control_tokens_of(tokenizer), near_duplicates=False)
    try:
        opened, found = read_rows(spec.dataset_path, violations.add, policy, spec.row_format)
    except MissingLibraryError as error:
        raise RunnerError(FailureKind.INVALID_DATASET, str(error)) from error
    row_format = opened.layout.row_format if opened.layout else SUPERVISED[0]
    _check_format(row_format, opened.layout, spec, violations)
    maker = ExampleMaker(tokenizer, row_format, spec.max_tokens)
    duplicates = 0
    sizes: list[list[tuple[int, int]]] = []
    with target.open("w", encoding="ascii") as file:
        for batch in _batches(found if violations.count == 0 else ()):
            if context.stop.is_set():
                raise PreemptedError
            rows = [(line, row) for line, row in batch if splitter.is_new(content(row))]
            duplicates += len(batch) - len(rows)
            for (_, row), examples in zip(rows, maker.make(rows, violations), strict=True):
                if examples:
                    splitter.add(linking_texts(row))
                    sizes.append([(example.tokens, example.target_tokens) for example in examples])
                    _write(examples, file)
    if violations.count == 0:
        _check_enough(spec, splitter, violations)
    if violations.count:
        raise RunnerError(
            FailureKind.INVALID_DATASET, violations.summary(), violations.listed, violation_count=violations.count
        )
    return _Tokenized(row_format, maker, duplicates, sizes, violations.warnings)


def _write(examples: Iterable[Example], file: IO[str]) -> None:
    for example in examples:
        file.write(example.line + "\n")


def _check_format(row_format: RowFormat, layout: Layout | None, spec: PrepareSpec, violations: Violations) -> None:
    if spec.row_format is None and row_format not in SUPERVISED:
        expected = " or ".join(map(described, SUPERVISED))
        message = f"rows are {described(row_format)}; expected {expected}"
        violations.add([Fault(0, "", Code.UNKNOWN_COLUMNS, message)])
    if row_format is RowFormat.TEXT:
        violations.add([Fault(0, "", Code.UNKNOWN_COLUMNS, "rows are plain text; expected rows with answers")])
    if row_format is RowFormat.PREFERENCE and layout and not layout.conversational and "prompt" not in layout.columns:
        # Where a prompt ends in a text is not to be guessed.
        violations.add([Fault(0, "/prompt", Code.MISSING_FIELD, "prompt is missing; expected it beside texts")])


def _check_enough(spec: PrepareSpec, splitter: Splitter, violations: Violations) -> None:
    if splitter.rows < MINIMUM_ROWS:
        message = f"{splitter.rows} distinct rows; expected at least {MINIMUM_ROWS}"
        violations.add([Fault(0, "", Code.TOO_FEW_ROWS, message)])
        return
    held_out = sum(splitter.split(spec.eval_fraction, spec.split_seed))
    if held_out < _MINIMUM_EVAL_ROWS:
        message = (
            f"{held_out} rows could be held out without sharing a question or an answer with the rows trained on (the largest "
            f"group of linked rows has {splitter.largest_group()} of {splitter.rows}); expected at least {_MINIMUM_EVAL_ROWS}"
        )
        violations.add([Fault(0, "", Code.NOTHING_TO_EVALUATE, message)])


def _deal(tokenized: _Tokenized, held_out: Sequence[bool], folder: Path) -> tuple[_Part, _Part]:
    """Moves the examples into train.jsonl and eval.jsonl, all of a row into one of them."""
    train, evaluated = _Part(), _Part()
    source = folder / _TOKENIZED_NAME
    with (
        source.open(encoding="ascii") as lines,
        (folder / "train.jsonl").open("w", encoding="ascii") as train_file,
        (folder / "eval.jsonl").open("w", encoding="ascii") as eval_file,
    ):
        for sizes, held in zip(tokenized.sizes, held_out, strict=True):
            for tokens, target_tokens in sizes:
                (evaluated if held else train).add(tokens, target_tokens)
                (eval_file if held else train_file).write(next(lines))
    source.unlink()
    return train, evaluated


def _batches(rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, _BATCH_ROWS)):
        yield batch
