"""The quota tree over the API: organisation, teams and projects, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from headway.projects.v1 import project_service_pb2 as projects_pb
from headway.quotas.v1 import quota_service_pb2 as pb
from tests.integration.control_plane.callers import OTHER_PROJECT, PROJECT
from tests.integration.control_plane.conftest import Api, new_id, refused
from tests.integration.control_plane.test_capacity import node, registered

GPUS: Any = {"pool": "h200", "resource": pb.RESOURCE_ACCELERATORS}


async def put(api: Api, **quota: Any) -> pb.Quota:
    """Sets a quota with a new request id."""
    return (await api.quotas.SetQuota(pb.SetQuotaRequest(request_id=new_id(), quota=pb.Quota(**quota)))).quota


async def test_a_node_of_each_kind_keeps_all_that_was_set(api: Api) -> None:
    cells: Any = [
        pb.QuotaCell(pool="h200", resource=pb.RESOURCE_ACCELERATORS, nominal=64, borrowing_limit=8, lending_limit=0),
        pb.QuotaCell(pool="h200", resource=pb.RESOURCE_CPU_MILLIS, nominal=96_000),
    ]
    nodes: list[tuple[dict[str, Any], str]] = [
        ({"organisation": True}, ""),
        ({"team": "research"}, ""),
        ({"team": "vision"}, "research"),
        ({"project": PROJECT}, ""),
    ]
    for named, parent in nodes:
        stored = await put(api, **named, parent=parent, weight=2_500, cells=cells)
        kept = (await api.quotas.GetQuota(pb.GetQuotaRequest(**named))).quota
        assert kept == stored
        assert (kept.weight, list(kept.cells), kept.parent) == (2_500, cells, parent)
    assert (await put(api, project=PROJECT, parent="vision")).weight == 1_000
    listed = (await api.quotas.ListQuotas(pb.ListQuotasRequest(tree=True, page_size=2))).next_page_token
    rest = await api.quotas.ListQuotas(pb.ListQuotasRequest(tree=True, page_size=2, page_token=listed))
    assert [quota.team for quota in rest.quotas] == ["research", "vision"]
    assert [quota.project for quota in (await api.quotas.ListQuotas(pb.ListQuotasRequest())).quotas] == [PROJECT]


async def test_the_shorthand_is_a_cell_without_borrowing(api: Api) -> None:
    stored = await put(api, project=PROJECT, max_accelerators={"h200": 4})
    assert list(stored.cells) == [pb.QuotaCell(**GPUS, nominal=4, borrowing_limit=0)]
    # What was read can be written.
    assert (await put(api, project=PROJECT, max_accelerators=stored.max_accelerators, cells=stored.cells)).cells == stored.cells
    lent = await put(api, project=PROJECT, cells=[pb.QuotaCell(**GPUS, nominal=4)])
    assert dict(lent.max_accelerators) == {}
    both = pb.Quota(project=PROJECT, max_accelerators={"h200": 5}, cells=lent.cells)
    answer = await refused(api.quotas.SetQuota(pb.SetQuotaRequest(request_id=new_id(), quota=both)))
    assert answer.fields == ["quota.max_accelerators[h200]"]


@pytest.mark.parametrize(
    ("quota", "field"),
    [
        ({"weight": 0}, "quota.weight"),
        ({"weight": -1}, "quota.weight"),
        ({"weight": 2**31 - 1}, "quota.weight"),
        ({"cells": [{**GPUS, "nominal": -1}]}, "quota.cells[0].nominal"),
        ({"cells": [{**GPUS, "nominal": 2**63 - 1}]}, "quota.cells[0].nominal"),
        ({"cells": [{**GPUS, "borrowing_limit": -1}]}, "quota.cells[0].borrowing_limit"),
        ({"cells": [{**GPUS, "lending_limit": 1_000_001}]}, "quota.cells[0].lending_limit"),
        ({"cells": [{"pool": "h200", "resource": pb.RESOURCE_MEMORY_MIB, "nominal": 10**12 + 1}]}, "quota.cells[0].nominal"),
        ({"cells": [{"pool": "h200", "nominal": 1}]}, "quota.cells[0].resource"),
        ({"cells": [{"pool": "H 200", "resource": 1}]}, "quota.cells[0].pool"),
        ({"cells": [GPUS, GPUS]}, "quota.cells[1]"),
        ({"cells": [{**GPUS, "pool": f"p{n}"} for n in range(257)]}, "quota.cells"),
        ({"max_accelerators": {"h200": -1}}, "quota.max_accelerators[h200]"),
        ({"max_accelerators": {"h200": 2**31 - 1}}, "quota.max_accelerators[h200]"),
        ({"team": "both"}, "quota"),
        ({"parent": "nowhere"}, "quota.parent"),
        ({"parent": "No Name"}, "quota.parent"),
    ],
)
async def test_what_breaks_a_limit_is_refused_by_its_field(api: Api, quota: dict[str, Any], field: str) -> None:
    request = pb.SetQuotaRequest(request_id=new_id(), quota=pb.Quota(project=PROJECT, **quota))
    answer = await refused(api.quotas.SetQuota(request))
    assert (answer.code, answer.reason, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", [field])
    assert (await refused(api.quotas.GetQuota(pb.GetQuotaRequest(project=PROJECT)))).reason == "RESOURCE_NOT_FOUND"


async def test_a_pool_that_no_node_is_in_yet_may_be_named_and_is_told_of(api: Api) -> None:
    await registered(api, node("n1"), pool="known")
    await registered(api, node("n2", spot=True, pool=""), pool="bare")
    await api.sql("UPDATE workers SET pool = '' WHERE name = 'n2'")
    cells = [pb.QuotaCell(pool=pool, resource=pb.RESOURCE_ACCELERATORS) for pool in ("known", "h200-spot", "knwon", "h200")]
    assert list((await put(api, project=PROJECT, cells=cells)).unknown_pools) == ["h200", "knwon"]
    await registered(api, node("n3"), pool="knwon")
    for quotas in (
        [(await api.quotas.GetQuota(pb.GetQuotaRequest(project=PROJECT))).quota],
        (await api.quotas.ListQuotas(pb.ListQuotasRequest())).quotas,
    ):
        assert [list(quota.unknown_pools) for quota in quotas] == [["h200"]]


async def test_nobody_is_named_by_mistake(api: Api) -> None:
    for quota in (pb.Quota(), pb.Quota(organisation=True, parent="research"), pb.Quota(team="a b")):
        answer = await refused(api.quotas.SetQuota(pb.SetQuotaRequest(request_id=new_id(), quota=quota)))
        assert answer.reason == "INVALID_FIELD"


async def test_the_tree_stays_a_tree(api: Api) -> None:
    await put(api, team="a")
    await put(api, team="b", parent="a")
    await put(api, team="c", parent="b")
    for team, parent in (("a", "a"), ("a", "c"), ("b", "c")):
        move = pb.SetQuotaRequest(request_id=new_id(), quota=pb.Quota(team=team, parent=parent))
        assert (await refused(api.quotas.SetQuota(move))).fields == ["quota.parent"]
    await put(api, team="c")
    assert (await put(api, team="a", parent="c")).parent == "c"


async def test_two_moves_that_make_a_circle_together_do_not_both_happen(api: Api) -> None:
    await put(api, team="a")
    await put(api, team="b")
    moved = await asyncio.gather(put(api, team="a", parent="b"), put(api, team="b", parent="a"), return_exceptions=True)
    assert sorted(isinstance(one, grpc.aio.AioRpcError) for one in moved) == [False, True]


async def test_teams_in_a_row_are_bounded(api: Api) -> None:
    parent = ""
    for level in range(8):
        await put(api, team=f"t{level}", parent=parent)
        parent = f"t{level}"
    ninth = pb.SetQuotaRequest(request_id=new_id(), quota=pb.Quota(team="t8", parent=parent))
    assert "at most 8" in (await refused(api.quotas.SetQuota(ninth))).message
    await put(api, team="top")
    above = pb.SetQuotaRequest(request_id=new_id(), quota=pb.Quota(team="t0", parent="top"))
    assert "at most 8" in (await refused(api.quotas.SetQuota(above))).message
    # A project hangs where a team may not.
    assert (await put(api, project=PROJECT, parent=parent)).parent == parent


async def test_a_team_with_children_is_not_deleted(api: Api) -> None:
    await put(api, team="research")
    await put(api, project=PROJECT, parent="research")
    delete = pb.DeleteQuotaRequest(request_id=new_id(), team="research")
    answer = await refused(api.quotas.DeleteQuota(delete))
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STILL_NEEDED")
    assert answer.metadata == {"team": "research", "children": "1"}
    await api.quotas.DeleteQuota(pb.DeleteQuotaRequest(request_id=new_id(), project=PROJECT))
    for _ in range(2):  # the same request again changes nothing
        await api.quotas.DeleteQuota(delete)
    missing = pb.DeleteQuotaRequest(request_id=new_id(), team="research")
    assert (await refused(api.quotas.DeleteQuota(missing))).reason == "RESOURCE_NOT_FOUND"


async def test_a_closed_project_leaves_its_place(api: Api) -> None:
    await put(api, team="research")
    project = projects_pb.CreateProjectRequest(request_id=new_id(), project=projects_pb.Project(name="short-lived"))
    await api.projects.CreateProject(project)
    await put(api, project="short-lived", parent="research")
    await api.projects.DeleteProject(projects_pb.DeleteProjectRequest(request_id=new_id(), name="short-lived"))
    await api.quotas.DeleteQuota(pb.DeleteQuotaRequest(request_id=new_id(), team="research"))


async def test_members_see_the_teams_above_their_projects_and_no_others(api: Api) -> None:
    await put(api, organisation=True)
    for team, parent in (("ours", ""), ("inner", "ours"), ("theirs", "")):
        await put(api, team=team, parent=parent)
    await put(api, project=PROJECT, parent="inner")
    await put(api, project=OTHER_PROJECT, parent="theirs")
    viewer = await api.acting_as("VIEWER")
    listed = (await viewer.quotas.ListQuotas(pb.ListQuotasRequest(tree=True))).quotas
    assert [quota.project or quota.team for quota in listed] == ["", PROJECT, "inner", "ours"]
    assert (await viewer.quotas.GetQuota(pb.GetQuotaRequest(team="ours"))).quota.team == "ours"
    hidden = await refused(viewer.quotas.GetQuota(pb.GetQuotaRequest(team="theirs")))
    missing = await refused(viewer.quotas.GetQuota(pb.GetQuotaRequest(team="nobody")))
    assert hidden.code is grpc.StatusCode.NOT_FOUND
    assert hidden.message.replace("theirs", "nobody") == missing.message
