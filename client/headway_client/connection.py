"""Where the control plane is, and where a caller's spans go: said by the caller, the environment, or `headway up`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA_DIR = Path(".headway")
"""Where `headway up` keeps its state unless told otherwise."""


class NoAddressError(Exception):
    """Nothing says where the control plane is."""


@dataclass(frozen=True, slots=True)
class Connection:
    """What a client needs to know."""

    address: str
    """host:port of the control plane."""
    otlp_traces_url: str | None = None
    """Where spans go; None: nowhere."""
    otlp_headers: Mapping[str, str] = field(default_factory=dict[str, str])


def resolve(address: str | None, environment: Mapping[str, str] = os.environ, data_dir: Path = DATA_DIR) -> Connection:
    """The connection to use: `address`, else HEADWAY_ADDRESS, else what `headway up` wrote into the data directory.

    Raises:
        NoAddressError: none of them says one, or the state file cannot be read.
    """
    named = address or environment.get("HEADWAY_ADDRESS")
    otlp_url = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if named:
        return Connection(named, otlp_url)
    state_path = data_dir / "state.json"
    if not state_path.exists():
        raise NoAddressError(
            f"no control plane is named: expected --address HOST:PORT, HEADWAY_ADDRESS, or {state_path} in the working "
            "directory, which `headway up` writes"
        )
    found = _read(state_path).get("control_plane")
    if not isinstance(found, str) or not found:
        raise NoAddressError(f"{state_path} names no control plane; expected the file that `headway up` writes")
    if otlp_url:
        return Connection(found, otlp_url)
    telemetry = _read(data_dir / "settings.json").get("telemetry", {})
    return Connection(found, telemetry.get("otlp_traces_url"), telemetry.get("otlp_headers", {}))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise NoAddressError(f"{path} cannot be read: {error}; expected the file that `headway up` writes") from error
    if not isinstance(content, dict):
        raise NoAddressError(f"{path} is not a JSON object; expected the file that `headway up` writes")
    return content
