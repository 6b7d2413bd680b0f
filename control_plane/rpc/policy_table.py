"""The policy as a table for people: `python -m control_plane.rpc.policy_table` prints what docs/reference/roles.md shows."""

from __future__ import annotations

from collections.abc import Mapping

from control_plane.identity.principal import Role
from control_plane.rpc.policy import POLICY, AttemptUse, Rule, Unnamed

_COLUMNS = (Role.VIEWER, Role.SUBMITTER, Role.MAINTAINER, Role.APPROVER, Role.ORG_ADMIN, Role.AUDITOR, Role.WORKER)


def table(policy: Mapping[str, Rule] = POLICY) -> str:
    """Markdown: a section for each service, a row for each method."""
    lines: list[str] = []
    service = ""
    for name in sorted(policy):
        if name.partition("/")[0] != service:
            service = name.partition("/")[0]
            lines += ["", f"### {service}", ""]
            lines += [f"| method | {' | '.join(role.lower().replace('_', ' ') for role in _COLUMNS)} | attempt | about |"]
            lines += [f"|---|{'---|' * (len(_COLUMNS) + 2)}"]
        rule = policy[name]
        cells = [_cell(rule, role) for role in _COLUMNS]
        lines.append(f"| `{name.partition('/')[2]}` | {' | '.join(cells)} | {_attempt(rule)} | {_about(rule)} |")
    return "\n".join(lines[1:]) + "\n"


def _cell(rule: Rule, role: Role) -> str:
    if rule.access != "roles":
        return "✓"
    if role in rule.roles:
        return "✓"
    return "own jobs" if role in rule.own else ""


def _attempt(rule: Rule) -> str:
    if rule.access != "roles":
        return "✓"
    return {AttemptUse.NONE: "", AttemptUse.READS: "its job", AttemptUse.WRITES: "itself"}[rule.attempt]


def _about(rule: Rule) -> str:
    if rule.access != "roles":
        return "everyone, without a credential too" if rule.access == "everyone" else "every caller with a credential"
    named = [f"`{place.path}`" for place in rule.places]
    if rule.unnamed is Unnamed.VISIBLE:
        named.append("all one may see")
    elif rule.unnamed is Unnamed.ORGANISATION or not rule.places:
        named.append("the organisation")
    return ", else ".join(named) if rule.unnamed is not Unnamed.INCOMPLETE else " and ".join(named)


if __name__ == "__main__":
    print(table(), end="")
