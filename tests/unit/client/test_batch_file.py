"""Several files as one batch, and faults named by the place they were read from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headway_client.batch_file import project_of, read_batch, with_places
from headway_client.job_file import JobFileError

JOB = {"project": "support", "name": "a", "spec": {"fine_tune": {"base_model": "b", "output_model": "o"}}}


def written(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_files_of_both_kinds_come_in_their_order(tmp_path: Path) -> None:
    yaml = written(tmp_path / "one.yaml", "name: y", "priority: 7", "spec: {fine_tune: {base_model: b}}")
    lines = written(tmp_path / "many.jsonl", JOB, "", JOB | {"name": "c"})
    entries = read_batch([yaml, lines])
    assert [(entry.place, entry.item.name) for entry in entries] == [
        (str(yaml), "y"),
        (f"{lines}:1", "a"),
        (f"{lines}:3", "c"),
    ]
    assert (entries[0].item.priority, entries[1].item.HasField("priority")) == (7, False)
    assert project_of(entries) == "support"


def test_every_fault_of_a_file_is_named_by_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "many.jsonl", JOB, JOB | {"nme": "x"}, "{", JOB | {"priority": "high"})
    with pytest.raises(JobFileError) as caught:
        read_batch([path])
    lines = str(caught.value).splitlines()
    assert [line.removeprefix(f"{path}:").partition(":")[0] for line in lines] == ["2", "3", "4"]


def test_jobs_of_two_projects_are_no_batch(tmp_path: Path) -> None:
    path = written(tmp_path / "many.jsonl", JOB, JOB | {"project": "other"})
    with pytest.raises(ValueError, match=r"support .* and other"):
        project_of(read_batch([path]))


def test_a_field_of_the_request_is_named_by_its_place(tmp_path: Path) -> None:
    entries = read_batch([written(tmp_path / "many.jsonl", JOB, JOB)])
    assert with_places("items[1].spec.fine_tune.dataset", entries) == f"{entries[1].place}: spec.fine_tune.dataset"
    assert with_places("items[1]", entries) == entries[1].place
    assert with_places("items[7].name", entries) == "items[7].name"
    assert with_places("job_set", entries) == "job_set"
