"""The policy has a row for every method and for nothing else, says what the requests can bear, and is what the docs show."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any, ClassVar

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from control_plane.app import SERVICES
from control_plane.identity.principal import ORGANISATION_ROLES, PROJECT_ROLES, Role
from control_plane.rpc.chain import MisorderedError, composed, mutates
from control_plane.rpc.exchange import Exchange, Proceed
from control_plane.rpc.policy import BYTES_MAX, POLICY, REFLECTION, AttemptUse, Kind, Unnamed, policy
from control_plane.rpc.policy_table import table

ROLES_PAGE = Path(__file__).parents[2] / "docs/reference/roles.md"
OTHERS = ("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")


def _methods() -> dict[str, MethodDescriptor]:
    pool = descriptor_pool.Default()
    services = [pool.FindServiceByName(name) for name in (*SERVICES, *OTHERS)]
    return {f"{service.full_name}/{method.name}": method for service in services for method in service.methods}


def _ours() -> list[str]:
    return [name for name in _methods() if name.startswith("headway.")]


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    assert set(POLICY) == set(_methods())


def test_every_service_of_the_contract_is_served() -> None:
    protos = Path(__file__).parents[2] / "protos"
    declared: set[str] = set()
    for path in protos.rglob("*.proto"):
        module = str(path.relative_to(protos)).removesuffix(".proto").replace("/", ".")
        services = importlib.import_module(f"{module}_pb2").DESCRIPTOR.services_by_name
        declared |= {service.full_name for service in services.values()}
    assert declared == set(SERVICES)


@pytest.mark.parametrize("name", _ours())
def test_a_row_names_fields_that_there_are(name: str) -> None:
    rule, request = POLICY[name], _methods()[name].input_type
    for place in rule.places:
        descriptor: Any = request
        *outer, last = place.path.split(".")
        for field in outer:
            descriptor = descriptor.fields_by_name[field].message_type
        assert descriptor.fields_by_name[last].type == FieldDescriptor.TYPE_STRING
    if rule.attempt is AttemptUse.WRITES:
        assert [(place.kind, place.path) for place in rule.places] == [(Kind.JOB, "job_id")]
        assert not rule.roles
    if rule.access == "roles" and not rule.places and rule.unnamed is not Unnamed.VISIBLE:
        assert rule.roles <= ORGANISATION_ROLES | {Role.WORKER}, "roles of a project count only where a project is named"


@pytest.mark.parametrize("name", _ours())
def test_what_changes_something_is_not_for_those_who_only_look(name: str) -> None:
    rule = POLICY[name]
    if mutates(name) and rule.access == "roles":
        assert rule.roles.isdisjoint({Role.VIEWER, Role.AUDITOR, Role.APPROVER})


@pytest.mark.parametrize("name", _ours())
def test_an_organisations_admin_may_do_all_that_anybody_may_but_a_workers_part(name: str) -> None:
    rule = POLICY[name]
    if rule.access == "roles" and rule.attempt is not AttemptUse.WRITES and Role.WORKER not in rule.roles:
        assert Role.ORG_ADMIN in rule.roles
        assert rule.roles <= PROJECT_ROLES | ORGANISATION_ROLES


def test_only_health_is_open() -> None:
    assert {name for name, rule in POLICY.items() if rule.access == "everyone"} == {
        f"grpc.health.v1.Health/{verb}" for verb in ("Check", "List", "Watch")
    }


def test_reflection_is_for_admins_unless_the_settings_say_otherwise() -> None:
    assert policy("org_admins")[REFLECTION].roles == {Role.ORG_ADMIN}
    assert policy("everyone")[REFLECTION].access == "anyone"


def test_no_request_may_be_longer_than_the_server_reads() -> None:
    assert BYTES_MAX == 4 * 2**20
    assert POLICY["headway.jobs.v1.JobService/BatchSubmitJobs"].bytes_max == BYTES_MAX


def test_the_page_of_roles_shows_the_policy() -> None:
    assert table() in ROLES_PAGE.read_text(encoding="utf-8"), (
        "docs/reference/roles.md is stale: put there what `python -m control_plane.rpc.policy_table` prints"
    )


class _Named:
    """A step that notes when it ran."""

    name: ClassVar[str] = ""
    after: ClassVar[frozenset[str]] = frozenset()
    ran: ClassVar[list[str]] = []

    async def around(self, exchange: Exchange, proceed: Proceed) -> Any:
        self.ran.append(self.name)
        return await proceed(exchange)


class _First(_Named):
    name: ClassVar[str] = "first"


class _Second(_Named):
    name: ClassVar[str] = "second"
    after: ClassVar[frozenset[str]] = frozenset({"first"})


class _Third(_Named):
    name: ClassVar[str] = "third"
    after: ClassVar[frozenset[str]] = frozenset({"first", "second"})


async def test_steps_run_in_their_order_and_no_other_is_accepted() -> None:
    async def last(exchange: Exchange) -> str:
        del exchange
        _Named.ran.append("servicer")
        return "answer"

    chain = (_First(), _Second(), _Third())
    for order in itertools.permutations(chain):
        if order == chain:
            _Named.ran.clear()
            exchange: Any = None
            assert await composed(order, last)(exchange) == "answer"
            assert _Named.ran == ["first", "second", "third", "servicer"]
        else:
            with pytest.raises(MisorderedError, match="must come after"):
                composed(order, last)
