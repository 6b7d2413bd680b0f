"""headway webhook: endpoints that hear of jobs that end, and of budgets."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from headway_client.cli.options import AsJson, JobSet, Project, RequestId, state_of
from headway_client.cli.output import as_dict, print_facts, print_json, print_table
from headway_client.cli.session import connected, connecting

webhook = typer.Typer(no_args_is_help=True, help="Endpoints that hear of a project's jobs that end, and of budgets.")

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="The endpoint's id.", show_default=False)]


@webhook.command("add")
@connecting
def webhook_add(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to: https, a public address.", show_default=False)],
    project: Project,
    state: Annotated[list[str] | None, typer.Option(help="Only jobs that end so; may be repeated.", show_default=False)] = None,
    job_set: JobSet = "",
    budgets: Annotated[bool, typer.Option("--budgets", help="Budgets that reach a level, too.")] = False,
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Adds an endpoint. The secret that its messages are signed with is shown this once.

    \b
    Examples:
      headway webhook add https://hooks.example.org/headway --project support
      headway webhook add https://hooks.example.org/headway -p support --state failed --job-set nightly
      headway webhook add https://hooks.example.org/money -p support --budgets
    """
    states = [state_of(name) for name in state or ()]
    with connected(span="headway webhook add") as client:
        made = client.create_webhook(project, url, states=states, job_set=job_set, budget_alerts=budgets, request_id=request_id)
    if as_json:
        print_json(as_dict(made))
        return
    print_facts([("webhook", made.webhook.webhook_id), ("url", made.webhook.url), ("secret", made.secret)])


@webhook.command("list")
@connecting
def webhook_list(project: Project, as_json: AsJson = False) -> None:
    """Lists a project's endpoints, never their secrets.

    \b
    Examples:
      headway webhook list --project support
    """
    with connected() as client:
        found = list(client.list_webhooks(project))
    if as_json:
        print_json({"webhooks": [as_dict(one) for one in found]})
        return
    from headway_client.watching.view import state_name

    rows = [
        (
            one.webhook_id,
            one.url,
            ", ".join(map(state_name, one.states)) or "all",
            one.job_set or "all",
            "yes" if one.budget_alerts else "no",
            one.creator,
        )
        for one in found
    ]
    print_table(("WEBHOOK", "URL", "STATES", "JOB SET", "BUDGETS", "ADDED BY"), rows, f"project {project} has no webhooks")


@webhook.command("remove")
@connecting
def webhook_remove(webhook_id: WebhookId, request_id: RequestId = None, as_json: AsJson = False) -> None:
    """Removes an endpoint; what was not delivered yet is dropped.

    \b
    Examples:
      headway webhook remove 0d6a2e6a-7d0f-4c3c-8f55-1d1a1a1f7a10
    """
    with connected(span="headway webhook remove") as client:
        client.delete_webhook(webhook_id, request_id=request_id)
    if as_json:
        print_json({})
    else:
        print(f"webhook {webhook_id} is removed")


@webhook.command("deliveries")
@connecting
def webhook_deliveries(
    webhook_id: WebhookId,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The most deliveries to list.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Lists what was sent to an endpoint and what it answered, newest first.

    \b
    Examples:
      headway webhook deliveries 0d6a2e6a-7d0f-4c3c-8f55-1d1a1a1f7a10
    """
    with connected() as client:
        found = list(islice(client.list_webhook_deliveries(webhook_id), limit))
    if as_json:
        print_json({"deliveries": [as_dict(one) for one in found]})
        return
    from headway.webhooks.v1.webhook_service_pb2 import DELIVERY_STATE_PENDING, DeliveryState
    from headway_client.text import local_time

    rows = [
        (
            one.delivery_id,
            one.job_id or "a budget",
            DeliveryState.Name(one.state).removeprefix("DELIVERY_STATE_").lower(),
            one.tries,
            one.last_result,
            local_time(one.next_try_time, with_date=True) if one.state == DELIVERY_STATE_PENDING else "",
        )
        for one in found
    ]
    print_table(("DELIVERY", "JOB", "STATE", "TRIES", "LAST RESULT", "NEXT TRY"), rows, "nothing was sent yet")
