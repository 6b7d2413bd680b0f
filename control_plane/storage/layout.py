"""Where things are in the bucket. Keys name content, but for the pointers to converted base models and the marks of garbage."""

from __future__ import annotations

import re

BASE_MODELS_PREFIX = "base-models"
"""Where base models are, which all projects share."""

_SHA256 = "[0-9a-f]{64}"
_OWNER = rf"(?:projects/[a-z0-9-]{{1,63}}|{BASE_MODELS_PREFIX})"
_MANIFEST = re.compile(rf"{_OWNER}/manifests/({_SHA256})\.json")
_POINTER = re.compile(rf"{BASE_MODELS_PREFIX}/converted/({_SHA256})-[0-9]+\.json")
_COLLECTABLE = re.compile(rf"{_OWNER}/(?:blobs|logs)/{_SHA256}|{_MANIFEST.pattern}|{_POINTER.pattern}")


def project_prefix(project: str) -> str:
    """Where a project's blobs and manifests are."""
    return f"projects/{project}"


def blob_key(prefix: str, sha256: str) -> str:
    """The key of a blob."""
    return f"{prefix}/blobs/{sha256}"


def manifest_key(prefix: str, sha256: str) -> str:
    """The key of a set's manifest."""
    return f"{prefix}/manifests/{sha256}.json"


def is_collectable(key: str) -> bool:
    """Whether a key is of a form that is garbage when nothing refers to it. What has another form is nobody's business here."""
    return _COLLECTABLE.fullmatch(key) is not None


def manifest_sha256(key: str) -> str | None:
    """The hash that a set's manifest must have, by its key; None: it is the key of something else."""
    found = _MANIFEST.fullmatch(key)
    return None if found is None else found[1]


def converted_from(key: str) -> str | None:
    """The hash of the base model whose conversion a pointer leads to, by its key; None: it is the key of something else."""
    found = _POINTER.fullmatch(key)
    return None if found is None else found[1]
