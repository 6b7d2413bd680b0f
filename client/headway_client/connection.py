"""Where the control plane is, how a caller proves who they are, and where their spans go.

Said by the caller, by the environment, or by `headway up`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway_client.credentials import ANONYMOUS, Credentials, FileToken, Tls, TokenSource

DATA_DIR = Path(".headway")
"""Where `headway up` keeps its state unless told otherwise."""
ADMIN_TOKEN_NAME = "admin.token"  # noqa: S105  a file's name
"""The file in there with the token of its administrator."""


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
    credentials: Credentials = ANONYMOUS
    """Who calls, and how the server is recognised."""


def resolve(
    address: str | None,
    environment: Mapping[str, str] = os.environ,
    data_dir: Path = DATA_DIR,
    token_file: Path | None = None,
) -> Connection:
    """The connection to use.

    Address: `address`, else HEADWAY_ADDRESS, else what `headway up` wrote into the data directory. Token: `token_file`, else
    HEADWAY_TOKEN, else the file that HEADWAY_TOKEN_FILE names, else the administrator's of the data directory, which goes to
    that directory's control plane and to no other.

    Raises:
        NoAddressError: nothing says an address, or the state file cannot be read.
        CredentialsError: a file that is named cannot be used.
    """
    named = address or environment.get("HEADWAY_ADDRESS")
    otlp_url = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if named:
        own = _own_address(data_dir, optional=True) == named
        return Connection(named, otlp_url, credentials=_credentials(environment, token_file, data_dir if own else None))
    state_path = data_dir / "state.json"
    if not state_path.exists():
        raise NoAddressError(
            f"no control plane is named: expected --address HOST:PORT, HEADWAY_ADDRESS, or {state_path} in the working "
            "directory, which `headway up` writes"
        )
    found = _own_address(data_dir)
    known = _credentials(environment, token_file, data_dir)
    if otlp_url:
        return Connection(found, otlp_url, credentials=known)
    telemetry = _read(data_dir / "settings.json").get("telemetry", {})
    return Connection(found, telemetry.get("otlp_traces_url"), telemetry.get("otlp_headers", {}), known)


def _own_address(data_dir: Path, *, optional: bool = False) -> str:
    state_path = data_dir / "state.json"
    try:
        found = _read(state_path).get("control_plane")
    except NoAddressError:
        if optional:
            return ""
        raise
    if isinstance(found, str) and found:
        return found
    if optional:
        return ""
    raise NoAddressError(f"{state_path} names no control plane; expected the file that `headway up` writes")


def _credentials(environment: Mapping[str, str], token_file: Path | None, data_dir: Path | None) -> Credentials:
    return Credentials(
        token=_token(environment, token_file, data_dir),
        tls=_tls(environment),
        allow_insecure=environment.get("HEADWAY_ALLOW_INSECURE") == "1",
    )


def _token(environment: Mapping[str, str], token_file: Path | None, data_dir: Path | None) -> TokenSource | None:
    if token_file is None:
        text = environment.get("HEADWAY_TOKEN")
        if text:
            return lambda: text
        if text is not None:
            # A secret that came to nothing must not make its caller somebody else.
            raise NoAddressError("HEADWAY_TOKEN is set and empty; expected a token, or the variable not to be set")
        if name := environment.get("HEADWAY_TOKEN_FILE"):
            token_file = Path(name)
    if token_file is not None:
        return FileToken(token_file)
    if data_dir is not None and (own := data_dir / ADMIN_TOKEN_NAME).exists():
        return FileToken(own)
    return None


def _tls(environment: Mapping[str, str]) -> Tls | None:
    files = [environment.get(f"HEADWAY_TLS_{name}_FILE") for name in ("CA", "CERTIFICATE", "KEY")]
    if any(files):
        return Tls.from_files(*(Path(name) if name else None for name in files))
    return Tls() if environment.get("HEADWAY_TLS") == "1" else None


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
