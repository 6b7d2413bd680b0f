"""The body of `prepare`: one pass over the dataset finds every fault and tokenises; a second deals the rows to two files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from control_plane.jobs.states import FailureKind
from workers.manifest import sha256_of
from workers.runner.data.chat import Renderer, load_tokenizer, template_sha256
from workers.runner.data.rows import Code, Row, Violations, read_dataset
from workers.runner.data.split import Splitter
from workers.runner.data.tokenized import TokenizedRow
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

    def add(self, row: TokenizedRow) -> None:
        self.rows += 1
        self.tokens += len(row.tokens)
        self.target_tokens += row.target_count
        self.longest = max(self.longest, len(row.tokens))


def run(context: Context, spec: PrepareSpec) -> PrepareOk:
    """Prepares the dataset in `<output_dir>/data/`.

    Raises:
        RunnerError: INVALID_DATASET with every fault, or INVALID_BASE_MODEL.
        PreemptedError: the program was asked to stop.
    """
    vet_base_model(spec.base_model_dir)
    tokenizer = load_tokenizer(spec.base_model_dir)
    renderer = Renderer(tokenizer, spec.max_tokens)
    splitter = Splitter()
    with atomic_directory(spec.output_dir / "data") as folder:
        duplicates = _tokenize(context, spec, renderer, splitter, folder / _TOKENIZED_NAME)
        train, held_out = _deal(splitter.split(spec.eval_fraction, spec.split_seed), folder)
        statistics = {
            "dataset_sha256": sha256_of(spec.dataset_path),
            "chat_template_sha256": template_sha256(tokenizer),
            "max_tokens": spec.max_tokens,
            "eval_fraction": spec.eval_fraction,
            "split_seed": spec.split_seed,
            "duplicate_rows": duplicates,
            "truncated_rows": renderer.truncated_rows,
            "truncated_tokens": renderer.truncated_tokens,
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
        truncated_rows=renderer.truncated_rows,
        truncated_tokens=renderer.truncated_tokens,
    )


def _tokenize(context: Context, spec: PrepareSpec, renderer: Renderer, splitter: Splitter, target: Path) -> int:
    """Writes the distinct, tokenised rows to `target` and collects them in `splitter`; returns the number of duplicates."""
    violations = Violations()
    duplicates = 0
    with target.open("w", encoding="ascii") as file:
        for batch in _batches(read_dataset(spec.dataset_path, violations)):
            if context.stop.is_set():
                raise PreemptedError
            rows = [row for row in batch if splitter.is_new(row)]
            duplicates += len(batch) - len(rows)
            for row, tokenized in zip(rows, renderer.render(rows, violations), strict=True):
                if tokenized is not None:
                    splitter.add(row)
                    file.write(tokenized.to_json() + "\n")
    if violations.count == 0:
        _check_enough(spec, splitter, violations)
    if violations.count:
        raise RunnerError(
            FailureKind.INVALID_DATASET, violations.summary(), violations.listed, violation_count=violations.count
        )
    return duplicates


def _check_enough(spec: PrepareSpec, splitter: Splitter, violations: Violations) -> None:
    if splitter.rows < MINIMUM_ROWS:
        message = f"{splitter.rows} distinct rows; expected at least {MINIMUM_ROWS}"
        violations.add(0, "", Code.TOO_FEW_ROWS, message)
        return
    held_out = sum(splitter.split(spec.eval_fraction, spec.split_seed))
    if held_out < _MINIMUM_EVAL_ROWS:
        message = (
            f"{held_out} rows could be held out without sharing a question or an answer with the rows trained on (the largest "
            f"group of linked rows has {splitter.largest_group()} of {splitter.rows}); expected at least {_MINIMUM_EVAL_ROWS}"
        )
        violations.add(0, "", Code.NOTHING_TO_EVALUATE, message)


def _deal(held_out: Sequence[bool], folder: Path) -> tuple[_Part, _Part]:
    """Moves the tokenised rows into train.jsonl and eval.jsonl."""
    train, evaluated = _Part(), _Part()
    source = folder / _TOKENIZED_NAME
    with (
        source.open(encoding="ascii") as lines,
        (folder / "train.jsonl").open("w", encoding="ascii") as train_file,
        (folder / "eval.jsonl").open("w", encoding="ascii") as eval_file,
    ):
        for line, held in zip(lines, held_out, strict=True):
            (evaluated if held else train).add(TokenizedRow.from_json(line))
            (eval_file if held else train_file).write(line)
    source.unlink()
    return train, evaluated


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator: Iterator[Any] = iter(rows)
    while batch := list(islice(iterator, _BATCH_ROWS)):
        yield batch
