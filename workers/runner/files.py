"""Files and directories that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from workers.manifest import flush_directory, write_manifest


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` with `content`, durably: a reader, or a crash, sees the old bytes or the new ones."""
    aside = path.with_name(path.name + ".partial")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    flush_directory(path.parent)


@contextmanager
def atomic_directory(target: Path, extra: Mapping[str, object] | None = None) -> Generator[Path]:
    """Gives a folder beside `target` to fill; when the block ends well it is flushed and takes `target`'s place.

    Args:
        target: what is there already is replaced. Its parent is made.
        extra: if given, a manifest with it is written into the folder, last.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        if extra is None:
            _flush_files(aside)
        else:
            write_manifest(aside, extra)
        # A directory cannot be renamed over another that holds something.
        shutil.rmtree(target, ignore_errors=True)
        aside.replace(target)
        flush_directory(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _flush_files(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    flush_directory(directory)
