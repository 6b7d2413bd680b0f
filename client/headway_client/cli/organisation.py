"""headway whoami, project, member, token: who may do what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headway_client.cli.failures import InputError
from headway_client.cli.options import AnyProject, AsJson, RequestId
from headway_client.cli.output import as_dict, print_facts, print_json, print_table
from headway_client.cli.session import connected, connecting

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from headway.identity.v1.identity_service_pb2 import Token
    from headway.projects.v1.project_service_pb2 import Project, Role

project = typer.Typer(no_args_is_help=True, help="Projects: who owns jobs, data and models.")
member = typer.Typer(no_args_is_help=True, help="Who may do what in a project, or without --project in the organisation.")
token = typer.Typer(no_args_is_help=True, help="Tokens that services call with.")

Named = Annotated[str, typer.Argument(metavar="PROJECT", help="Its name, of [a-z0-9-].", show_default=False)]
Title = Annotated[str | None, typer.Option(help="For people.", show_default=False)]
PriorityMax = Annotated[int | None, typer.Option(min=0, max=1000, help="The highest priority of its jobs.", show_default=False)]
Subject = Annotated[
    str, typer.Argument(metavar="SUBJECT", help="user:… or service:…, as `headway whoami` shows it.", show_default=False)
]
RoleName = Annotated[str, typer.Option("--role", help="Such as viewer, submitter or maintainer.", show_default=False)]


@connecting
def whoami(as_json: AsJson = False) -> None:
    """Shows whom the control plane takes you for, and what you may do.

    \b
    Examples:
      headway whoami
    """
    with connected() as client:
        found = client.who_am_i()
    if as_json:
        print_json({"caller": as_dict(found)})
        return
    from headway.identity.v1.identity_service_pb2 import CredentialKind

    kind = CredentialKind.Name(found.credential_kind).removeprefix("CREDENTIAL_KIND_").lower()
    print_facts(
        [
            ("you are", found.subject),
            ("proved by", kind),
            ("until", _time(found.expire_time) if found.HasField("expire_time") else "revoked"),
            ("organisation", ", ".join(_role(role) for role in found.organisation_roles)),
            *((f"project {name}", _role(role)) for name, role in sorted(found.project_roles.items())),
        ]
    )


@project.command("create")
@connecting
def project_create(
    name: Named,
    title: Title = None,
    priority_max: PriorityMax = None,
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Creates a project.

    \b
    Examples:
      headway project create support --title "Customer support"
    """
    with connected(span="headway project create") as client:
        found = client.create_project(name, title=title or "", priority_max=priority_max, request_id=request_id)
    _print_project(found, as_json)


@project.command("list")
@connecting
def project_list(as_json: AsJson = False) -> None:
    """Lists the projects you may see.

    \b
    Examples:
      headway project list
    """
    with connected() as client:
        found = list(client.list_projects())
    if as_json:
        print_json({"projects": [as_dict(one) for one in found]})
        return
    rows = [(one.name, one.title, one.priority_max, _time(one.create_time), _time(one.delete_time)) for one in found]
    print_table(("PROJECT", "TITLE", "PRIORITY UP TO", "CREATED", "DELETED"), rows, "you may see no project")


@project.command("get")
@connecting
def project_get(name: Named, as_json: AsJson = False) -> None:
    """Shows a project.

    \b
    Examples:
      headway project get support
    """
    with connected() as client:
        found = client.get_project(name)
    _print_project(found, as_json)


@project.command("update")
@connecting
def project_update(
    name: Named,
    title: Title = None,
    priority_max: PriorityMax = None,
    etag: Annotated[str, typer.Option(help="Refuse if the project has changed since it had this etag.")] = "",
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Changes a project's title or the highest priority of its jobs.

    \b
    Examples:
      headway project update support --priority-max 800
    """
    if title is None and priority_max is None:
        raise InputError("nothing to change; expected --title or --priority-max")
    with connected(span="headway project update") as client:
        found = client.update_project(name, title=title, priority_max=priority_max, etag=etag, request_id=request_id)
    _print_project(found, as_json)


@project.command("delete")
@connecting
def project_delete(name: Named, request_id: RequestId = None, as_json: AsJson = False) -> None:
    """Closes a project: its tokens end and nothing new can be submitted; what it made is kept.

    \b
    Examples:
      headway project delete support
    """
    with connected(span="headway project delete") as client:
        found = client.delete_project(name, request_id=request_id)
    _print_project(found, as_json)


def _print_project(found: Project, as_json: bool) -> None:
    if as_json:
        print_json({"project": as_dict(found)})
        return
    print_facts(
        [
            ("project", found.name),
            ("title", found.title),
            ("priority up to", found.priority_max),
            ("created", f"{_time(found.create_time)} by {found.creator}"),
            ("deleted", _time(found.delete_time)),
        ]
    )


@member.command("set")
@connecting
def member_set(
    subject: Subject, role: RoleName, project: AnyProject = "", request_id: RequestId = None, as_json: AsJson = False
) -> None:
    """Gives a subject a role, instead of the one it has.

    \b
    Examples:
      headway member set user:alice@example.org --role submitter --project support
      headway member set user:bob@example.org --role auditor
    """
    wanted = _role_of(role)
    with connected(span="headway member set") as client:
        found = client.set_member(subject, wanted, project=project, request_id=request_id)
    if as_json:
        print_json({"member": as_dict(found)})
    else:
        print(f"{found.subject} is {_role(found.role)} of {_scope(found.project)}")


@member.command("remove")
@connecting
def member_remove(subject: Subject, project: AnyProject = "", request_id: RequestId = None, as_json: AsJson = False) -> None:
    """Takes a subject's role.

    \b
    Examples:
      headway member remove user:alice@example.org --project support
    """
    with connected(span="headway member remove") as client:
        client.remove_member(subject, project=project, request_id=request_id)
    if as_json:
        print_json({})
    else:
        print(f"{subject} has no role of {_scope(project)}")


@member.command("list")
@connecting
def member_list(project: AnyProject = "", as_json: AsJson = False) -> None:
    """Lists the members of a project, or without --project those of the organisation.

    \b
    Examples:
      headway member list --project support
    """
    with connected() as client:
        found = list(client.list_members(project))
    if as_json:
        print_json({"members": [as_dict(one) for one in found]})
        return
    rows = [(one.subject, _role(one.role), one.grantor, _time(one.create_time)) for one in found]
    print_table(("SUBJECT", "ROLE", "GIVEN BY", "SINCE"), rows, f"{_scope(project)} has no members")


@token.command("create")
@connecting
def token_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The service it stands for.", show_default=False)],
    role: RoleName,
    project: AnyProject = "",
    days: Annotated[float, typer.Option(min=0.001, max=365, help="How long it lives.")] = 90.0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it here, readable for you alone, instead of printing it."),
    ] = None,
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Makes a token. It is shown this once; what is stored is only its hash.

    \b
    Examples:
      headway token create nightly --role submitter --project support --days 30 -o nightly.token
      headway token create gpu-17 --role worker
    """
    wanted = _role_of(role)
    if output is not None and output.exists():
        raise InputError(
            f"{output}: is there already, and is not written over; expected a path where nothing is. No token was made"
        )
    with connected(span="headway token create") as client:
        made = client.create_token(name, wanted, project=project, lifetime_seconds=round(days * 86_400), request_id=request_id)
    if output is not None and made.secret:
        _write_private(output, made.secret + "\n")
        made.secret = ""
    if as_json:
        print_json(as_dict(made))
        return
    _print_token(made.token)
    if output is not None:
        print(f"written to {output}")
    elif made.secret:
        print(f"\n{made.secret}\n\nIt is not shown again.")
    else:
        print("it was made by an earlier request with this id, and is not shown again")


def _write_private(path: Path, text: str) -> None:
    import os

    try:
        # Never over another file, and never readable for others, not even for a moment.
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123  only open() takes a descriptor
            file.write(text)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror}; the token is made but lost: revoke it, see `headway token list`"
        ) from error


@token.command("list")
@connecting
def token_list(project: AnyProject = "", as_json: AsJson = False) -> None:
    """Lists the tokens of a project, or without --project those of the organisation, never the secrets.

    \b
    Examples:
      headway token list --project support
    """
    with connected() as client:
        found = list(client.list_tokens(project))
    if as_json:
        print_json({"tokens": [as_dict(one) for one in found]})
        return
    rows = [
        (one.token_id, one.name, _role(one.role), _time(one.expire_time), _time(one.last_use_time), _time(one.revoke_time))
        for one in found
    ]
    print_table(("TOKEN", "NAME", "ROLE", "ENDS", "LAST USED", "REVOKED"), rows, f"{_scope(project)} has no tokens")


@token.command("revoke")
@connecting
def token_revoke(
    token_id: Annotated[str, typer.Argument(metavar="TOKEN", help="The token's id, never its secret.", show_default=False)],
    request_id: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Ends a token, within a minute on streams too.

    \b
    Examples:
      headway token revoke 0d6a2e6a-7d0f-4c3c-8f55-1d1a1a1f7a10
    """
    with connected(span="headway token revoke") as client:
        found = client.revoke_token(token_id, request_id=request_id)
    if as_json:
        print_json({"token": as_dict(found)})
    else:
        _print_token(found)


def _print_token(found: Token) -> None:
    print_facts(
        [
            ("token", found.token_id),
            ("of", _scope(found.project)),
            ("name", found.name),
            ("role", _role(found.role)),
            ("ends", _time(found.expire_time)),
            ("revoked", _time(found.revoke_time)),
        ]
    )


def _role_of(name: str) -> Role.ValueType:
    from headway.projects.v1.project_service_pb2 import Role

    known = {key.removeprefix("ROLE_").lower().replace("_", "-"): number for key, number in Role.items() if number}
    wanted = name.lower().replace("_", "-")
    if wanted not in known:
        raise InputError(f"--role: {name} is no role; expected one of {', '.join(known)}")
    return known[wanted]


def _role(role: Role.ValueType) -> str:
    from headway.projects.v1.project_service_pb2 import Role

    return Role.Name(role).removeprefix("ROLE_").lower().replace("_", "-")


def _scope(project: str) -> str:
    return f"project {project}" if project else "the organisation"


def _time(stamp: Timestamp) -> str:
    from headway_client.text import local_time

    return local_time(stamp, with_date=True) if stamp.seconds else ""
