"""Job files: what is read, and for everything else the file, line and field with what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.jobs.v1 import job_spec_pb2
from headway.jobs.v1.job_service_pb2 import SubmitJobRequest
from headway_client.job_file import JobFileError, read_job_file


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    text = """\
# A comment.
project: support
name: "no"
priority: 0
spec:
  fine_tune:
    base_model: no
    dataset: {name: questions, eval_fraction: 1e-1}
    output_model: "1.0"
    training: {steps: 10, learning_rate: 1}
    evaluation:
      sample_prompts:
        - Who are you?
        - "yes"
"""
    expected = SubmitJobRequest(
        project="support",
        name="no",
        priority=0,
        spec=job_spec_pb2.JobSpec(
            fine_tune=job_spec_pb2.FineTuneSpec(
                base_model="no",
                dataset=job_spec_pb2.DatasetRef(name="questions", eval_fraction=0.1),
                output_model="1.0",
                training=job_spec_pb2.TrainingSpec(steps=10, learning_rate=1.0),
                evaluation=job_spec_pb2.EvaluationSpec(sample_prompts=["Who are you?", "yes"]),
            )
        ),
    )
    assert read_job_file(written(tmp_path, text)) == expected


def test_words_for_enums_and_for_what_the_platform_chooses(tmp_path: Path) -> None:
    text = """\
spec:
  hpo:
    trial:
      training: {learning_rate: auto, steps: 20, warmup_steps: auto, auto: [max_tokens]}
    sampler: grid
    objective: {direction: DIRECTION_MAXIMIZE}
    search_space:
      lora.rank: {choices: {numbers: [4, 8]}}
"""
    hpo = read_job_file(written(tmp_path, text)).spec.hpo
    assert list(hpo.trial.training.auto) == ["max_tokens", "learning_rate", "warmup_steps"]
    assert not hpo.trial.training.HasField("learning_rate")
    assert hpo.sampler == job_spec_pb2.SAMPLER_GRID
    assert hpo.objective.direction == job_spec_pb2.DIRECTION_MAXIMIZE
    assert list(hpo.search_space["lora.rank"].choices.numbers) == [4, 8]


FAULTS = {
    "nothing": ("", [": holds nothing; expected fields and their values"]),
    "a list": ("- a\n", [":1: holds a list; expected fields and their values"]),
    "two documents": ("a: 1\n---\nb: 2\n", [":2: is not valid YAML: expected a single document in the stream"]),
    "not YAML": ("spec: [1\n", [":2: is not valid YAML: while parsing a flow sequence"]),
    "tab": ("spec:\n\tfine_tune: 1\n", [":2: is not valid YAML: while scanning for the next token"]),
    "control character": ("name: a\x00b\n", [": is not valid YAML: "]),
    "not UTF-8": (b"name: a\nproject: \xff\n", [":2: is not UTF-8 text; expected YAML"]),
    "alias": ("name: &a x\nproject: *a\n", [":2: has a YAML alias (*name)"]),
    "tag": ("name: !!python/name:os.system x\n", [":1: has a YAML tag (tag:yaml.org,2002:python/name:os.system)"]),
    "too deep": ("a: " + "[" * 5_000, [": is nested too deeply"]),
    "too large": ("name: " + "x" * 1_100_000, [": is larger than 1,048,576 bytes"]),
    "unknown at the top": ("nam: x\n", [":1: nam: is not a field here; did you mean name?"]),
    "not for a file": ("request_id: x\n", [":1: request_id: is not a field here; expected one of name, priority, project"]),
    "key that is a list": ("? [a]\n: b\n", [":1: a list: is not a field here"]),
    "twice": ("name: a\nproject: b\nname: c\n", [":3: name: stands here for the second time, first on line 1"]),
    "text for number": ('priority: "3"\n', [':1: priority: is the text "3"; expected a whole number']),
    "fraction for number": ("priority: 1.5\n", [":1: priority: is the number 1.5; expected a whole number"]),
    "truth for number": ("priority: true\n", [":1: priority: is the truth value true; expected a whole number"]),
    "too big": ("priority: 3000000000\n", [":1: priority: is the number 3000000000; expected -2,147,483,648 to"]),
    "thousands of digits": ("priority: " + "9" * 9_000 + "\n", [":1: priority: is the number 9999"]),
    "number for text": ("project: 12\n", [":1: project: is the number 12; expected text; put it in quotes"]),
    "empty": ("name:\n", [":1: name: is empty; expected text"]),
    "not finite": (
        "spec: {fine_tune: {lora: {dropout: .nan}, training: {learning_rate: -.inf}}}\n",
        [
            ":1: spec.fine_tune.lora.dropout: is the number .nan; expected a finite number",
            ":1: spec.fine_tune.training.learning_rate: is the number -.inf; expected a finite number",
        ],
    ),
    "every fault of a file, each with its line": (
        "spec:\n  fine_tune:\n    lora: 8\n    training:\n      step: 3\n    dataset: [x]\n"
        "    evaluation:\n      sample_prompts:\n      - a\n      - 3\n",
        [
            ":3: spec.fine_tune.lora: is the number 8; expected fields and their values",
            ":5: spec.fine_tune.training.step: is not a field here; did you mean steps?",
            ":6: spec.fine_tune.dataset: is a list; expected fields and their values",
            ":10: spec.fine_tune.evaluation.sample_prompts[1]: is the number 3; expected text; put it in quotes",
        ],
    ),
    "one value for a list": (
        "spec: {fine_tune: {evaluation: {sample_prompts: hello}}}\n",
        [':1: spec.fine_tune.evaluation.sample_prompts: is the text "hello"; expected a list'],
    ),
    "unknown job type": (
        "spec: {astrology: {}}\n",
        [":1: spec.astrology: is not a field here; expected one of evaluation, fine_tune, hpo, retrain, rlhf"],
    ),
    "two job types": (
        "spec:\n  hpo: {}\n  rlhf: {}\n",
        [":2: spec: has hpo and rlhf; expected exactly one of them"],
    ),
    "word that is none of an enum's": (
        "spec:\n  hpo:\n    sampler: best\n",
        [':3: spec.hpo.sampler: is the text "best"; expected one of random, tpe, grid'],
    ),
    "two kinds of values in one dimension": (
        "spec:\n  hpo:\n    search_space:\n      lora.rank:\n        whole: {low: 1, high: 8}\n        choices: {}\n",
        [':5: spec.hpo.search_space["lora.rank"]: has whole and choices; expected exactly one of them'],
    ),
    "fault inside a map, a list and a oneof": (
        "spec:\n  rlhf:\n    policy:\n      reward_functions:\n        - name: length\n        - {name: other, weigth: 2}\n",
        [":6: spec.rlhf.policy.reward_functions[1].weigth: is not a field here; did you mean weight?"],
    ),
    "auto where nothing is chosen": (
        "spec: {fine_tune: {lora: {rank: auto}, evaluation: {batch_size: auto}}}\n",
        [
            ':1: spec.fine_tune.lora.rank: is the text "auto"; expected a whole number',
            ':1: spec.fine_tune.evaluation.batch_size: is the text "auto"; expected a whole number',
        ],
    ),
}


@pytest.mark.parametrize(("text", "expected"), FAULTS.values(), ids=FAULTS.keys())
def test_faults(tmp_path: Path, text: str | bytes, expected: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(JobFileError) as caught:
        read_job_file(path)
    lines = [f"{path}{fault}" for fault in caught.value.faults]
    assert len(lines) == len(expected)
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(f"{path}{beginning}")
    assert str(caught.value) == "\n".join(lines)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match=r"gone\.yaml: cannot be read: No such file or directory"):
        read_job_file(tmp_path / "gone.yaml")
