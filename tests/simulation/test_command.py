"""`python -m scheduler.simulation`, and what it draws."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from scheduler.simulation.__main__ import app
from scheduler.simulation.plots import in_terminal, span
from scheduler.simulation.results import Results
from scheduler.simulation.running import run_scenario
from scheduler.simulation.scenario import names
from tests.simulation.simulated import SMALL, jobs, scenario

PNG = b"\x89PNG\r\n\x1a\n"
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/explanation/simulation.md"
SETS = [part for override in SMALL["gang_reclaim"] for part in ("--set", override)]


def _invoke(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_run_prints_json_draws_a_picture_and_writes_an_audit_that_replays(tmp_path: Path) -> None:
    picture, audit = tmp_path / "shares.png", tmp_path / "audit.jsonl"
    code, out, _ = _invoke("run", "gang_reclaim", *SETS, "--plot", picture, "--audit", audit, "--json")
    assert code == 0
    results = Results.model_validate_json(out)
    assert results.finished == results.jobs == 81
    assert picture.read_bytes().startswith(PNG)
    assert len(audit.read_text(encoding="utf-8").splitlines()) == results.rounds + 1
    assert _invoke("replay", audit) == (0, "every round is the same\n", "")


def test_replay_names_the_first_difference(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    assert (
        _invoke("run", "kai_fill", *[part for each in SMALL["kai_fill"] for part in ("--set", each)], "--audit", audit)[0] == 0
    )
    head, first, *rest = audit.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = json.loads(first)
    changed["decisions"]["grants"][7][1] = "elsewhere"
    audit.write_text("".join([head, json.dumps(changed) + "\n", *rest]), encoding="utf-8")
    code, out, _ = _invoke("replay", audit)
    assert code == 1
    assert out.splitlines() == [
        f"{audit}:2: decisions.grants[7][1] differs",
        "  recorded: 'elsewhere'",
        "  replayed: 'gpus'",
    ]


def test_run_tells_people_what_came_of_it() -> None:
    code, out, _ = _invoke("run", "gang_reclaim", *SETS)
    assert code == 0
    assert "81 of 81 jobs finished" in out
    assert "all queues" in out
    assert "borrower" in out


def test_list_names_every_scenario() -> None:
    code, out, _ = _invoke("list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line[:1].strip()] == names()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "nothing"), "there is no such scenario"),
        (("run", "kai_fill", "--set", "seed=x"), "seed: is 'x'"),
        (("run", "kai_fill", "--plot", "shares.doc"), "expected one of .png"),
        (("replay", "/nowhere/audit.jsonl"), "No such file"),
    ],
)
def test_what_is_wrong_is_said_with_exit_code_2(arguments: tuple[str, ...], said: str) -> None:
    code, out, err = _invoke(*arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_shares_in_a_terminal_are_as_high_as_they_are() -> None:
    """Red holds all of it for the first half, blue half of it for the second."""
    whole, half = ({"kind": "h100", "accelerators": 8, "members": members} for members in (4, 2))
    load = [jobs(shape=whole), jobs(name="blue", queues="blue", shape=half, start="1h")]
    results = run_scenario(scenario(load=load))
    console = Console(width=40, file=StringIO(), color_system=None)
    with console.capture() as printed:
        console.print(in_terminal(results, 40))
    blue, red, together = printed.get().splitlines()[:3]
    assert red.split()[1].startswith("█" * 8)
    assert blue.rstrip().endswith("▄ 25.0%")
    assert "█▄" in together
    assert "75.0%" in together


def test_spans_are_for_people() -> None:
    assert [span(seconds) for seconds in (0, 0.0052, 1.5, 119, 400, 9_000)] == [
        "0 ms",
        "5.2 ms",
        "1.5 s",
        "119 s",
        "6.67 min",
        "2.5 h",
    ]


def test_the_commands_of_the_page_work_as_they_stand_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for their size: a scenario runs with fewer jobs than it has."""
    text = PAGE.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines]
    assert len(commands) >= 5
    monkeypatch.chdir(tmp_path)
    # The reader's own file.
    shutil.copy(ROOT / "scheduler/simulation/scenarios/kai_fill.yaml", "my_cluster.yaml")
    for python, option, module, *words in commands:
        assert [python, option, module] == ["python", "-m", "scheduler.simulation"]
        fewer = SMALL["kai_fill" if words[1:2] == ["my_cluster.yaml"] else words[1]] if words[0] == "run" else []
        code, out, err = _invoke(*words, *(part for each in fewer for part in ("--set", each)))
        assert code == 0, (words, err)
        if "--json" in words:
            assert Results.model_validate_json(out).finished
    assert Path("shares.png").read_bytes().startswith(PNG)
