"""The PACKAGE phase: everything that belongs to the model in one set of files."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from temporalio import activity

from control_plane.jobs.states import JobPhase
from workers.activities import heartbeating, translated
from workers.control_plane import ControlPlane
from workers.cpu.model_card import model_card
from workers.manifest import MANIFEST_NAME
from workers.scratch import Scratch
from workers.storage import ObjectStore
from workers.stored_files import download_files, project_prefix, read_file_set, upload
from workers.workflows.contracts import Package, PackageInput, StoredFiles

_TOKENIZER_FILE = re.compile(
    r"(tokenizer.*|special_tokens_map|added_tokens|vocab|merges|chat_template)\.(json|txt|jinja|model)"
)


class PackageActivity:
    """The activity `package` with what it needs."""

    def __init__(self, control_plane: ControlPlane, store: ObjectStore, scratch: Scratch) -> None:
        self._control_plane = control_plane
        self._store = store
        self._scratch = scratch

    @activity.defn
    async def package(self, argument: PackageInput) -> Package:
        """Makes and uploads the package. Safe to repeat: equal input gives an equal package."""
        context = argument.context
        with translated(context), self._scratch.workdir("package") as workdir:
            async with heartbeating():
                await self._control_plane.start_phase(context, JobPhase.PACKAGE)
                stored = await asyncio.to_thread(self._package, argument, workdir / "package")
                await self._control_plane.finish_phase(context, JobPhase.PACKAGE, stored.model_dump())
                return Package(files=stored)

    def _package(self, argument: PackageInput, directory: Path) -> StoredFiles:
        directory.mkdir()
        adapter = read_file_set(self._store, argument.trained.adapter)
        base_model = read_file_set(self._store, argument.prepared.base_model)
        wanted = [file for file in adapter.files if file.name != MANIFEST_NAME]
        wanted += [file for file in base_model.files if _TOKENIZER_FILE.fullmatch(file.name)]
        download_files(self._store, wanted, directory)
        evaluation = argument.scores.model_dump(mode="json")
        (directory / "evaluation.json").write_text(json.dumps(evaluation, indent=1, sort_keys=True) + "\n")
        (directory / "README.md").write_text(model_card(argument))
        return upload(self._store, directory, project_prefix(argument.context.job.project))
