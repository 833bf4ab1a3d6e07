"""Proof on live machines: what is granted is there and right, and nothing else is anywhere.

The auditing process knows no value. Machines report keyed digests of their credentials; for each
environment and role whose password the operator holds, a process of its own opens the one vault,
returns digests under the same key, and searches what all machines show. Here the two meet.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit.machines.evidence import Subject
from toolkit.project.load import environment_names, load_environment
from toolkit.project.model import CONFIG_CREDENTIAL, Project
from toolkit.secrets.declarations import load_matrix
from toolkit.secrets.grants import BALANCER, Matrix, credential_names
from toolkit.secrets.rotate import is_dying
from toolkit.secrets.search import VaultPlace, search
from toolkit.state import State

EXPIRES_SOON_DAYS = 30
DAY_S = 86400.0
KEY_BYTES = 32
DELIVERED = "/run/host/credentials/"
UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True)
class Cell:
    """One secret of one environment on one machine.

    Attributes:
        machine: Name of the machine.
        role: Its role.
        environment: Whose secret.
        secret: Its name.
        is_granted: Whether the machine may know it.
        state: `right` or `absent` where all is well; `unverified` where the machine has something
            that nothing was compared with; else `missing`, `wrong` or `extra`.
        places: Where something was found that should not be there, or is wrong.
    """

    machine: str
    role: str
    environment: str
    secret: str
    is_granted: bool
    state: str
    places: tuple[str, ...] = ()

    @property
    def is_well(self) -> bool:
        """Whether it is as it should be."""
        return self.state == ("right" if self.is_granted else "absent")

    @property
    def is_failure(self) -> bool:
        """Whether it is known not to be as it should be."""
        return not self.is_well and self.state != UNVERIFIED

    def __str__(self) -> str:
        found = f": {', '.join(self.places)}" if self.places else ""
        return f"{self.machine}: {self.environment} {self.secret} is {self.state}{found}"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found.

    Attributes:
        environment: Whose machines.
        cells: Every machine × every secret.
        unopened: Vaults that could not be opened, with the reason.
        broken: Those of them that are missing or damaged and are the environment's own: without
            their values the audit proves nothing.
        warnings: What is not wrong yet.
        searched_bytes: Read once for each vault.
        seconds: Wall time.
    """

    environment: str
    cells: tuple[Cell, ...]
    unopened: tuple[str, ...]
    broken: tuple[str, ...]
    warnings: tuple[str, ...]
    searched_bytes: int
    seconds: float

    @property
    def failures(self) -> tuple[Cell, ...]:
        """The cells that are not as they should be."""
        return tuple(cell for cell in self.cells if cell.is_failure)

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "environment": self.environment,
            "ok": not self.failures and not self.broken,
            "cells": [asdict(cell) for cell in self.cells],
            "unopened": list(self.unopened),
            "warnings": list(self.warnings),
            "searched_bytes": self.searched_bytes,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a secret without its value.

    Attributes:
        environment: Whose.
        name: Of the secret.
        digests: Part to keyed digest.
        expires: Seconds since the epoch; None for what does not.
        created: When the value was made, seconds since the epoch.
        is_searchable: Whether the value is long enough to be told from what is there by chance.
    """

    environment: str
    name: str
    digests: Mapping[str, str]
    expires: float | None
    created: float
    is_searchable: bool


@dataclass(slots=True)
class _Traces:
    """Where the values of secrets were found: subject and `environment secret` to places."""

    found: dict[tuple[str, str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, subject: str, environment: str, secret: str, place: str) -> None:
        places = self.found[subject, environment, secret]
        if place not in places:
            places.append(place)


def new_key() -> bytes:
    """Return the key of the digests of one audit."""
    return secrets.token_bytes(KEY_BYTES)


def audit(
    project: Project,
    state: State,
    environment: str,
    subjects: Sequence[Subject],
    *,
    key: bytes,
    served: str | None,
) -> AuditReport:
    """Compare what machines hold and show with what they may.

    Args:
        project: Its declarations are the policy.
        state: Where passwords are by default.
        environment: Whose machines.
        subjects: Its machines, and its balancer; gathered with the same key.
        key: Of the digests.
        served: The certificate that the balancer shows, as PEM, if there is one.
    """
    began = time.monotonic()
    names = environment_names(project)
    matrix = load_matrix(project, names)
    places = [
        VaultPlace(load_environment(project, name), role)
        for name in names
        for role in matrix.roles(name)
    ]
    files = _files(subjects)
    results = search(
        [place for place in places if place.path.is_file()],
        [path for path, _ in files],
        state=state,
        digest_key=key,
        pass_fds=[one.spool.descriptor for one in subjects],
    )
    known: dict[tuple[str, str], Known] = {}
    certificates: dict[tuple[str, str], str] = {}
    traces = _Traces()
    broken = [
        f"{environment}.{place.role}: {place.path}: there is no such file"
        for place in places
        if place.environment.name == environment and not place.path.is_file()
    ]
    unopened = list(broken)
    for result in results:
        whose = result["environment"]
        if result["error"]:
            unopened.append(f"{whose}.{result['role']}: {result['error']}")
            if whose == environment and not result["is_key_missing"]:
                broken.append(unopened[-1])
        for one in result["secrets"]:
            known[whose, one["name"]] = Known(
                whose,
                one["name"],
                one["digests"],
                one["expires"],
                one["created"],
                one["is_searchable"],
            )
            if one["certificate"]:
                certificates[whose, one["name"]] = one["certificate"]
        for hit in result["hits"]:
            for subject, place in files[hit["file"]][1]:
                where = place or subject.spool.place_at(hit["offset"])
                traces.add(subject.name, whose, hit["secret"], f"{where} ({hit['form']})")
    cells = [
        cell
        for subject in subjects
        for cell in judge(environment, matrix, subject, known, traces.found)
    ]
    if served is not None:
        cells = _judge_served(cells, environment, served, certificates)
    return AuditReport(
        environment,
        tuple(cells),
        tuple(unopened),
        tuple(broken),
        tuple(warnings(matrix, known.values(), now=time.time())),
        sum(_size(path) for path, _ in files),
        time.monotonic() - began,
    )


def judge(
    environment: str,
    matrix: Matrix,
    subject: Subject,
    known: Mapping[tuple[str, str], Known],
    traces: Mapping[tuple[str, str, str], Sequence[str]],
) -> list[Cell]:
    """Return the cells of one machine. Pure.

    Args:
        environment: Of the machine.
        matrix: The policy, of all environments.
        subject: The machine.
        known: Environment and name to what is known of the secret.
        traces: Machine, environment and name to where the value was found.
    """
    granted = {
        spec.name: credential_names(spec) for spec in matrix.secrets(environment, subject.role)
    }
    declared = {(g.environment, g.secret.name) for g in matrix.grants}
    cells = []
    found = {(whose, name) for machine, whose, name in traces if machine == subject.name}
    for whose, name in sorted(declared | set(known) | found):
        secret = known.get((whose, name))
        is_granted = whose == environment and name in granted
        places = list(traces.get((subject.name, whose, name), ()))
        if secret is None:
            if not is_granted and (whose, name) not in found:
                continue
            # No vault that could be opened has it: that it is there is all that can be said.
            secret = Known(whose, name, {}, None, 0.0, is_searchable=False)
        bad: list[str] = []
        if is_granted:
            missing: list[str] = []
            if subject.role != BALANCER:
                missing, bad = _delivered(granted[name], secret, subject)
            is_known = set(granted[name]) <= set(secret.digests)
            state = (
                "missing" if missing else "wrong" if bad else "right" if is_known else UNVERIFIED
            )
            bad += missing
        else:
            state = "absent"
            if not is_dying(name):
                hidden = {d for part, d in secret.digests.items() if part != "certificate"}
                places += [p for p, d in subject.credentials.items() if d in hidden]
        if places:
            state = "extra"
        cells.append(
            Cell(subject.name, subject.role, whose, name, is_granted, state, (*places, *bad))
        )
    allowed = {CONFIG_CREDENTIAL, *(name for names in granted.values() for name in names.values())}
    cells += [
        Cell(subject.name, subject.role, environment, path, False, "extra", ("not granted",))
        for path in sorted(subject.credentials)
        if path.rpartition("/")[2] not in allowed
    ]
    return cells


def warnings(matrix: Matrix, known: Iterable[Known], *, now: float) -> list[str]:
    """Return what is not wrong yet, or is no matter of machines. Pure."""
    found = []
    by_digest: dict[str, set[str]] = defaultdict(set)
    periods = {(g.environment, g.secret.name): g.secret.rotate_days for g in matrix.grants}
    for one in known:
        label = f"{one.environment} {one.name}"
        if one.expires is not None and one.expires - now < EXPIRES_SOON_DAYS * DAY_S:
            days = (one.expires - now) / DAY_S
            found.append(
                f"{label}: expires in {days:.0f} days" if days > 0 else f"{label}: expired"
            )
        age_days, period = (now - one.created) / DAY_S, periods.get((one.environment, one.name))
        if period and age_days > period:
            found.append(f"{label}: is {age_days:.0f} days old, to be rotated after {period}")
        if not one.is_searchable:
            found.append(f"{label}: is too short or too common to be searched for")
        if is_dying(one.name):
            found.append(f"{label}: a rotation is not finished")
        for digest in one.digests.values():
            by_digest[digest].add(one.environment)
    shared = {
        one.name for one in known for digest in one.digests.values() if len(by_digest[digest]) > 1
    }
    found += [f"{name}: has the same value in several environments" for name in sorted(shared)]
    return found


def _delivered(
    names: Mapping[str, str], secret: Known, subject: Subject
) -> tuple[list[str], list[str]]:
    """Return what is missing and what is wrong of a granted secret's credentials."""
    missing, wrong = [], []
    for part, name in names.items():
        held = {p: d for p, d in subject.credentials.items() if p.rpartition("/")[2] == name}
        if DELIVERED + name not in held:
            missing.append(DELIVERED + name)
        expected = secret.digests.get(part)
        wrong += [path for path, digest in held.items() if expected and digest != expected]
    return missing, wrong


def _judge_served(
    cells: Sequence[Cell],
    environment: str,
    served: str,
    certificates: Mapping[tuple[str, str], str],
) -> list[Cell]:
    """Compare the certificate that the balancer shows with the one that it should have."""
    judged = []
    for cell in cells:
        certificate = certificates.get((environment, cell.secret))
        is_its_own = cell.role == BALANCER and cell.is_granted
        if is_its_own and certificate and served.strip() not in certificate:
            judged.append(replace(cell, state="wrong", places=("another one is served",)))
        else:
            judged.append(cell)
    return judged


def _files(
    subjects: Sequence[Subject],
) -> list[tuple[Path | str, list[tuple[Subject, str]]]]:
    """Return what to search, each with the machines that it belongs to and the place's name."""
    found: dict[Path | str, list[tuple[Subject, str]]] = {}
    for subject in subjects:
        found[f"/proc/self/fd/{subject.spool.descriptor}"] = [(subject, "")]
        for path in subject.volumes:
            found[path] = [(subject, f"volume {path}")]
        for name, path in subject.layers.items():
            found.setdefault(path, []).append((subject, f"layer {name} of the image"))
    return list(found.items())


def _size(path: Path | str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
