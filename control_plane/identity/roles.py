"""Roles in the contract's words, and who may give and take them."""

from __future__ import annotations

from collections.abc import Iterable

from control_plane.call import current_call
from control_plane.errors import Reason, RefusedError, invalid_field
from control_plane.identity.principal import ORGANISATION_ROLES, PROJECT_ROLES, Principal, Role
from headway.projects.v1 import project_service_pb2 as pb

MEMBER_ROLES = {True: PROJECT_ROLES, False: ORGANISATION_ROLES}
"""Roles that a member may have, by whether it is in a project."""
TOKEN_ROLES = {True: PROJECT_ROLES, False: ORGANISATION_ROLES | {Role.WORKER}}
"""Roles that a token may have, by whether it is for a project."""

# APPROVER is beside them, not among them: whoever steers jobs must not choose who judges what they made.
_ORDER = (Role.VIEWER, Role.SUBMITTER, Role.MAINTAINER)


def role_of(number: int, path: str, allowed: frozenset[Role]) -> Role:
    """The role of a request.

    Args:
        number: of headway.projects.v1.Role.
        path: the request's field.
        allowed: roles that fit the scope of the request.

    Raises:
        RefusedError: it is none of them.
    """
    known = {value.number: value.name for value in pb.DESCRIPTOR.enum_types_by_name["Role"].values}
    name = known.get(number, str(number))
    if name.removeprefix("ROLE_") not in allowed:
        expected = ", ".join(f"ROLE_{role}" for role in Role if role in allowed)
        raise invalid_field(path, f"is {name}; expected one of {expected}")
    return Role(name.removeprefix("ROLE_"))


def role_number(role: str) -> pb.Role.ValueType:
    """The role in the contract's words."""
    return pb.Role.Value(f"ROLE_{role}")


def roles_and_where(roles: Iterable[Role], project: str) -> str:
    """Roles with where they are held, such as "MAINTAINER in project support, or ORG_ADMIN in the organisation".

    Args:
        roles: any of which would do.
        project: which is concerned; empty: no particular one.
    """
    wanted = [role for role in Role if role in frozenset(roles)]
    held_in = {
        f"project {project}" if project else "a project": [role for role in wanted if role in PROJECT_ROLES],
        "the organisation": [role for role in wanted if role not in PROJECT_ROLES],
    }
    return ", or ".join(f"{' or '.join(held)} in {scope}" for scope, held in held_in.items() if held)


def require_may_give(caller: Principal, project: str, role: Role) -> None:
    """Holds whoever gives or takes a role to what they hold themselves.

    Args:
        caller: who asks.
        project: where; empty: the organisation.
        role: what is given, or taken.

    Raises:
        RefusedError: it takes more than the caller has.
    """
    if caller.org_admin:
        return
    own = caller.project_roles.get(project) if project else None
    if own is Role.MAINTAINER and role in _ORDER:
        return
    needed = Role.MAINTAINER if project and role in _ORDER else Role.ORG_ADMIN
    raise RefusedError(
        Reason.PERMISSION_DENIED,
        f"{caller.subject} may not give or take the role {role} in {f'project {project}' if project else 'the organisation'}; "
        f"it takes the role {roles_and_where([needed], project)}",
        {"method": current_call().method, "role_required": str(needed), "project": project},
    )
