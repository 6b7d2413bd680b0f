"""headway workers, nodes: what there is to run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headway_client.cli.options import AsJson, Reason, RequestId
from headway_client.cli.output import as_dict, print_json, print_table
from headway_client.cli.session import connected, connecting

if TYPE_CHECKING:
    from headway.capacity.v1.capacity_service_pb2 import Worker

nodes = typer.Typer(no_args_is_help=True, help="The nodes that leases are placed on, and taking them out of service.")
NodeName = Annotated[str, typer.Argument(metavar="NODE", help="Its name.", show_default=False)]


@connecting
def workers(as_json: AsJson = False) -> None:
    """Lists the workers that train and evaluate.

    \b
    Examples:
      headway workers
      headway workers --json | jq '.workers[] | select(.alive)'
    """
    with connected() as client:
        found = list(client.list_workers())
    if as_json:
        print_json({"workers": [as_dict(worker) for worker in found]})
        return
    from headway_client.text import local_time

    rows = [
        (
            worker.name,
            "alive" if worker.alive else "lost",
            worker.accelerator_kind,
            f"{worker.accelerators_leased} of {worker.accelerators} leased",
            local_time(worker.heartbeat_time, with_date=True),
        )
        for worker in found
    ]
    print_table(("WORKER", "STATE", "KIND", "ACCELERATORS", "LAST HEARD"), rows, "no worker has registered")


@nodes.command("list")
@connecting
def nodes_list(as_json: AsJson = False) -> None:
    """Lists the nodes with their pools, whether they take new work, and what is leased on them.

    \b
    Examples:
      headway nodes list
    """
    with connected() as client:
        found = list(client.list_workers())
    if as_json:
        print_json({"nodes": [as_dict(node) for node in found]})
        return
    rows = [
        (
            node.name,
            _service(node),
            (node.pool or node.accelerator_kind) + (" (spot)" if node.spot else ""),
            node.accelerator_kind,
            f"{node.accelerators_leased} of {node.accelerators}",
            " ".join(f"{name}={value}" for name, value in sorted(node.labels.items())),
        )
        for node in found
    ]
    print_table(("NODE", "STATE", "POOL", "KIND", "LEASED", "LABELS"), rows, "no node has registered")


def _service(node: Worker) -> str:
    from headway_client.text import printable

    state = "alive" if node.alive else "lost"
    if not node.draining:
        return f"{state}, cordoned" if node.cordoned else state
    left = "1 lease" if node.leases_held == 1 else f"{node.leases_held} leases"
    said = f" ({printable(node.drain_reason)})" if node.drain_reason else ""
    return (f"{state}, draining: {left} left" if node.leases_held else f"{state}, drained") + said


@nodes.command("cordon")
@connecting
def nodes_cordon(node: NodeName, request_id: RequestId = None, as_json: AsJson = False) -> None:
    """Takes a node out of service for new work; what runs on it goes on.

    \b
    Examples:
      headway nodes cordon gpu-17
    """
    with connected(span="headway nodes cordon") as client:
        found = client.cordon_node(node, request_id=request_id)
    if as_json:
        print_json({"node": as_dict(found)})
    else:
        print(f"{found.name} takes nothing new; {_leased(found)}")


@nodes.command("uncordon")
@connecting
def nodes_uncordon(node: NodeName, request_id: RequestId = None, as_json: AsJson = False) -> None:
    """Puts a node back into service.

    \b
    Examples:
      headway nodes uncordon gpu-17
    """
    with connected(span="headway nodes uncordon") as client:
        found = client.uncordon_node(node, request_id=request_id)
    if as_json:
        print_json({"node": as_dict(found)})
    else:
        print(f"{found.name} takes new work; {_leased(found)}")


@nodes.command("drain")
@connecting
def nodes_drain(node: NodeName, reason: Reason = "", request_id: RequestId = None, as_json: AsJson = False) -> None:
    """Takes a node out of service and asks what runs on it to checkpoint and leave. Repeat it to see what is left.

    \b
    Examples:
      headway nodes drain gpu-17 --reason "a fan is loud"
    """
    with connected(span="headway nodes drain") as client:
        done = client.drain_node(node, reason=reason, request_id=request_id)
    if as_json:
        print_json(as_dict(done))
    else:
        print(
            f"{done.node.name} takes nothing new; it holds {done.leases_held} leases, {done.leases_asked} were asked to leave"
        )


@nodes.command("delete")
@connecting
def nodes_delete(node: NodeName, request_id: RequestId = None, as_json: AsJson = False) -> None:
    """Forgets a node that holds nothing; one that calls again is there again.

    \b
    Examples:
      headway nodes delete gpu-17
    """
    with connected(span="headway nodes delete") as client:
        client.delete_worker(node, request_id=request_id)
    if as_json:
        print_json({})
    else:
        print(f"{node} is forgotten")


def _leased(node: Worker) -> str:
    return f"{node.accelerators_leased} of its {node.accelerators} accelerators are leased"
