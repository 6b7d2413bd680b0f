"""Options that many commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="The control plane. Default: HEADWAY_ADDRESS, else what `headway up` wrote to .headway/state.json.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: one document, or a line each in a stream.")]
Project = Annotated[str, typer.Option("--project", "-p", envvar="HEADWAY_PROJECT", help="The project.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]
RequestId = Annotated[
    str | None,
    typer.Option(metavar="UUID", help="Makes the command safe to repeat. Default: a new one each time.", show_default=False),
]
License = Annotated[str, typer.Option("--license", help="An SPDX expression or free text.")]
Attribution = Annotated[str, typer.Option(help="Who made it and where it is from.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name, of [a-z0-9.-].", show_default=False)]
