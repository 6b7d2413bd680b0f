"""A runner program that trains nothing and otherwise keeps the runner's contract; what it does at each step is in SCRIPT.

SCRIPT is JSON, step to deed: "wait" (until asked to stop, then save and end as preempted), "die" (by SIGSEGV), "nan"
(the verdict NUMERIC), "noise" (events that are none, and long lines). Every second step is saved. What it does when it is to go
on from step N is under "from N": "refuse" (the verdict INTEGRITY), "damage" (once, a byte of the checkpoint changes first).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from workers.manifest import ManifestError, verify_checkpoint, write_manifest


class ScriptedRunner:
    def __init__(self, spec: dict[str, Any], script: dict[str, str]) -> None:
        self.spec = spec
        self.script = script
        self.output = Path(spec["output_dir"])
        self.pipe = os.fdopen(int(os.environ["HEADWAY_RUNNER_PIPE_FD"]), "wb", 0)
        self.sequence = 0
        self.stopping = False
        signal.signal(signal.SIGTERM, self.on_stop)

    def on_stop(self, *_: object) -> None:
        self.stopping = True

    def emit(self, kind: str, **fields: object) -> None:
        self.sequence += 1
        event = {"sequence": self.sequence, "time": time.time(), "type": kind, "trace_id": "", "span_id": "", **fields}
        self.pipe.write(json.dumps(event).encode() + b"\n")

    def save(self, step: int) -> None:
        folder = self.output / f"checkpoints/step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": step}))
        write_manifest(folder, {"step": step})
        self.emit("checkpoint", step=step, path=str(folder))

    def end(self, code: int, **result: object) -> NoReturn:
        (self.output / "result.json").write_text(json.dumps(result))
        sys.exit(code)

    def wait_for_stop(self, step: int) -> NoReturn:
        while not self.stopping:
            signal.pause()
        self.save(step)
        self.end(75, preempted={"step": step})

    def act(self, deed: str, step: int) -> None:
        match deed:
            case "wait":
                self.wait_for_stop(step)
            case "die":
                print("about to fall over", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGSEGV)
            case "nan":
                self.end(76, failure={"kind": "NUMERIC", "message": f"loss is NaN at step {step}"})
            case "noise":
                self.pipe.write(b'not json\n{"type": "surprise"}\n["list"]\n{"type": "progress"}\n')
                print("x" * 40_000, flush=True)
            case _:
                raise ValueError(deed)

    def resume(self, checkpoint: Path) -> int:
        step = json.loads((checkpoint / "state.json").read_text())["step"]
        deed = self.script.get(f"from {step}")
        damaged = checkpoint.with_name("damaged-once")
        if deed == "damage" and not damaged.exists():
            damaged.touch()
            (checkpoint / "state.json").write_text("?")
        try:
            verify_checkpoint(checkpoint)
        except ManifestError as error:
            self.end(1, failure={"kind": "INTEGRITY", "message": str(error)})
        if deed == "refuse":
            self.end(1, failure={"kind": "INTEGRITY", "message": "of another run"})
        return step

    def run(self) -> NoReturn:
        first = 1
        if self.spec["resume_from"]:
            first = self.resume(Path(self.spec["resume_from"])) + 1
        total = self.spec["training"]["steps"]
        for step in range(first, total + 1):
            self.emit("log", level="INFO", text=f"step {step}")
            self.emit("progress", phase="train", step=step, total_steps=total, metrics={"loss": 1 / step})
            if deed := self.script.get(str(step)):
                self.act(deed, step)
            if step % 2 == 0:
                self.save(step)
        adapter = self.output / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text(json.dumps({"resumed": first}))
        self.end(0, ok={"final_loss": 1 / total, "steps": total, "tokens_per_second": 1.0, "resumed_from_step": first - 1})


if __name__ == "__main__":
    content = json.loads(Path(sys.argv[1]).read_text())
    Path(content["output_dir"]).mkdir(parents=True, exist_ok=True)
    ScriptedRunner(content, json.loads(os.environ["SCRIPT"])).run()
