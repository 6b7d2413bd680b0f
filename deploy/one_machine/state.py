"""The state file: what runs now and where. Written by the supervisor, read by clients, `status` and `down`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from deploy.one_machine.component import State
from deploy.one_machine.errors import OneMachineError, Reason
from deploy.one_machine.layout import Layout, write_private
from deploy.one_machine.supervised import Supervised


class ComponentState(BaseModel):
    """A component, as it was when the file was written."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: State
    pid: int | None
    """None while no process is it."""
    address: str
    url: str
    restarts: int
    log: str


class MachineState(BaseModel):
    """Content of `state.json`."""

    model_config = ConfigDict(frozen=True)

    supervisor_pid: int
    control_plane: str
    """host:port."""
    admin_token_file: str = ""
    """The file with the token of this machine's administrator."""
    mlflow_url: str
    traces_url: str
    """Where a person can look at traces; `{trace_id}` stands for the 32 hex digits of one."""
    temporal_address: str
    temporal_ui_url: str
    s3_url: str
    components: list[ComponentState]


def describe(supervised: Supervised) -> ComponentState:
    """What the file says about a component."""
    component = supervised.component
    return ComponentState(
        name=component.name,
        state=supervised.state,
        pid=supervised.pid,
        address=component.address,
        url=component.url,
        restarts=supervised.restarts,
        log=str(supervised.log),
    )


def write(layout: Layout, state: MachineState) -> None:
    """Replaces the state file."""
    write_private(layout.state, state.model_dump_json(indent=1))


def read(layout: Layout) -> MachineState | None:
    """The state file; None if there is none.

    Raises:
        OneMachineError: it is not one that a supervisor wrote.
    """
    try:
        return MachineState.model_validate_json(layout.state.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise OneMachineError(
            Reason.DAMAGED_STATE, f"{layout.state} is damaged ({error.errors()[0]['msg']}); `headway up` writes it anew"
        ) from error
