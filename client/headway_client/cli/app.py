"""The application: its commands, and the one place where a command ends."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from headway_client.cli import (
    audit,
    budgets,
    capacity,
    catalog,
    comparing,
    jobs,
    one_machine,
    organisation,
    prices,
    quotas,
    scheduling,
    verbs,
    webhooks,
)
from headway_client.cli.exit_codes import ExitCode
from headway_client.cli.failures import describe, show, show_traceback_if_asked

_HELP = """Submit typed jobs to Headway, follow them, and look at what they made.

\b
Start here:
  headway up --detach                            all of Headway on this machine
  headway submit examples/fine_tune.yaml --watch
  headway models --project demo

Exit codes: 0 done, 1 the job did not succeed, 2 invalid input, 3 not found, 4 refused by the state of things,
5 unavailable, 6 the audit log was changed, 70 a fault of Headway, 130 interrupted.
"""


def build(arguments: list[str]) -> typer.Typer:
    """The application for these arguments.

    Raises:
        InputError: they name a command whose extra is not installed.
    """
    app = typer.Typer(
        name="headway",
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    for command in (jobs.submit, jobs.jobs, jobs.get, jobs.watch, jobs.logs):
        app.command()(command)
    for command in (verbs.cancel, verbs.pause, verbs.resume, verbs.preempt, verbs.reprioritize, verbs.update, verbs.rerun):
        app.command()(command)
    app.command()(comparing.diff)
    app.add_typer(comparing.job_set, name="job-set")
    app.add_typer(catalog.dataset, name="dataset")
    app.add_typer(catalog.base_model, name="base-model")
    app.command()(catalog.models)
    app.add_typer(catalog.model, name="model")
    app.command()(capacity.workers)
    app.add_typer(capacity.nodes, name="nodes")
    app.add_typer(quotas.quota, name="quota")
    app.add_typer(budgets.budget, name="budget")
    app.add_typer(prices.price, name="price")
    app.command()(scheduling.why)
    app.command()(scheduling.queue)
    app.add_typer(scheduling.simulate, name="simulate")
    app.command()(organisation.whoami)
    app.add_typer(organisation.project, name="project")
    app.add_typer(organisation.member, name="member")
    app.add_typer(organisation.token, name="token")
    app.add_typer(audit.audit, name="audit")
    app.add_typer(webhooks.webhook, name="webhook")
    one_machine.mount(app, arguments)
    return app


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    arguments = sys.argv[1:]
    # gRPC's own log of connections that come and go would run through the live view; what matters is raised as an error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        build(arguments)(arguments, prog_name="headway")
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:
        report = describe(error)
        show(report, as_json="--json" in arguments)
        show_traceback_if_asked(error)
        sys.exit(report.exit_code)
    sys.exit(ExitCode.OK)
