"""The rolls of one command: what became of its other roles, when one was cut short."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.roll.site import Site

if TYPE_CHECKING:
    from toolkit.roll.conduct import RollResult


@dataclass(frozen=True, slots=True)
class RollGroup:
    """The rolls of one command.

    Attributes:
        id: The same for all of them.
        roles: Which roles the command is for, in their order.
    """

    id: str
    roles: tuple[str, ...]


def new_group(roles: Sequence[str]) -> RollGroup:
    """Return the group of a command that is about to roll these roles, in this order."""
    return RollGroup(secrets.token_hex(4), tuple(roles))


def not_gone_back(site: Site, role: str, group: RollGroup | None) -> str:
    """Return how an operator goes on who stopped before a rollback: the same command goes too far.

    It would take those back again that have gone back already.
    """
    roles = group.roles[group.roles.index(role) :] if group else (role,)
    commands = [f"'toolkit rollback {site.environment.name} {one}'" for one in roles]
    return f"{', '.join(roles)} did not begin: {', '.join(commands)} goes on"


def rest_of_group(site: Site, results: Sequence[RollResult]) -> list[str]:
    """Return what became of the other roles of commands whose rolls were taken up, as sentences.

    A roll of several roles that is cut short is taken up for the one role that was under way.
    """
    name = site.environment.name
    sentences = []
    for result in results:
        record = next(one for one in site.ledger.rolls(name, result.role) if one.id == result.roll)
        group = record.order.get("group")
        if not group:
            continue
        roles = group["roles"]
        waiting = roles[roles.index(result.role) + 1 :]
        rolled = [role for role in roles if role != result.role and _has_rolled(site, role, group)]
        if result.outcome == "rolled" and waiting:
            commands = [f"'toolkit rollback {name} {role}'" for role in waiting]
            if not record.is_rollback:
                release = f" --release {record.release}" if record.release else ""
                commands = [f"'toolkit roll {name}{release}'"]
            sentences.append(f"{', '.join(waiting)} did not begin: {', '.join(commands)} goes on")
        elif result.outcome in {"discarded", "rolled-back"} and rolled:
            sentences.append(
                f"{', '.join(rolled)} had been rolled by the same command, and stay so"
                + ("" if record.is_rollback else f": 'toolkit rollback {name} ROLE' takes one back")
            )
    return sentences


def _has_rolled(site: Site, role: str, group: Mapping[str, Any]) -> bool:
    return any(
        one.outcome == "rolled" and (one.order.get("group") or {}).get("id") == group["id"]
        for one in site.ledger.rolls(site.environment.name, role)
    )
