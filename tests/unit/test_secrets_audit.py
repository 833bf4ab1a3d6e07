"""What an audit says about what was found."""

import hmac
from pathlib import Path

import pytest

from tests.unit.test_leak_gate import VALUE, Place, change_the_key, damage
from toolkit.cli.audit import _sign
from toolkit.machines.evidence import Spool, Subject
from toolkit.project.model import SecretSpec
from toolkit.secrets.audit import DAY_S, Known, audit, judge, warnings
from toolkit.secrets.grants import BALANCER, Grant, Matrix

NOW = 1_800_000_000.0
GIVEN = "/run/host/credentials/"


def spec(name: str, kind: str = "password", rotate_days: int | None = None) -> SecretSpec:
    return SecretSpec(name, kind, "x", (), rotate_days)


MATRIX = Matrix(
    tuple(
        Grant(environment, role, secret)
        for environment in ("development", "production")
        for role, secret in (
            ("app", spec("password", rotate_days=90)),
            ("web", spec("tls", kind="tls")),
        )
    )
)


def known(name: str, environment: str = "production", **changed: object) -> Known:
    settings = {
        "digests": {"value": f"{environment} {name}"},
        "expires": None,
        "created": NOW,
        "is_searchable": True,
    }
    return Known(environment, name, **{**settings, **changed})


@pytest.mark.parametrize(
    ("secret", "warning"),
    [
        (known("tls", expires=NOW + 29.5 * DAY_S), "production tls: expires in 30 days"),
        (known("tls", expires=NOW - 1), "production tls: expired"),
        (known("tls", expires=NOW + 31 * DAY_S), None),
        (
            known("password", created=NOW - 91 * DAY_S),
            "production password: is 91 days old, to be rotated after 90",
        ),
        (known("password", created=NOW - 89 * DAY_S), None),
        (known("tls", created=NOW - 900 * DAY_S), None),
        (
            known("password", is_searchable=False),
            "production password: is too short or too common to be searched for",
        ),
        (known("password.previous"), "production password.previous: a rotation is not finished"),
    ],
)
def test_what_is_not_wrong_yet(secret: Known, warning: str | None) -> None:
    assert warnings(MATRIX, [secret], now=NOW) == ([warning] if warning else [])


def test_a_value_in_two_environments_is_named() -> None:
    same = {"value": "the same"}
    shared = [known("password", where, digests=same) for where in ("development", "production")]
    assert warnings(MATRIX, shared, now=NOW) == [
        "password: has the same value in several environments"
    ]
    # Two roles of one environment may share a value, by declaring the same name.
    twice = [known("password", digests=same), known("other", digests=same)]
    assert warnings(MATRIX, twice, now=NOW) == []
    assert warnings(MATRIX, [shared[0], known("password")], now=NOW) == []


SECRETS = {
    (where, name): known(name, where, digests={part: f"{where} {name} {part}" for part in parts})
    for where in ("development", "production")
    for name, parts in (("password", ["value"]), ("tls", ["certificate", "key"]))
}
APP = {GIVEN + "password": "production password value", GIVEN + "config": "anything"}


@pytest.mark.parametrize(
    ("credentials", "traces", "wrong"),
    [
        (APP, {}, {}),
        ({GIVEN + "config": "x"}, {}, {("production", "password"): "missing"}),
        ({**APP, GIVEN + "password": "other"}, {}, {("production", "password"): "wrong"}),
        (
            {**APP, "/run/credentials/app.service/password": "older"},
            {},
            {("production", "password"): "wrong"},
        ),
        # By another name, another role's, another environment's.
        ({**APP, GIVEN + "x": "y"}, {}, {("production", GIVEN + "x"): "extra"}),
        (
            {**APP, GIVEN + "config": "production tls key"},
            {},
            {("production", "tls"): "extra"},
        ),
        # A certificate is public.
        ({**APP, GIVEN + "config": "production tls certificate"}, {}, {}),
        (
            {**APP, GIVEN + "config": "development password value"},
            {},
            {("development", "password"): "extra"},
        ),
        (
            APP,
            {("m", "development", "tls"): ["journal (raw)"]},
            {("development", "tls"): "extra"},
        ),
        # Also what it may know, where it may not be.
        (
            APP,
            {("m", "production", "password"): ["/etc/x (raw)"]},
            {("production", "password"): "extra"},
        ),
        (APP, {("other", "production", "tls"): ["journal (raw)"]}, {}),
    ],
)
def test_every_cell_of_a_machine_is_judged(
    credentials: dict[str, str],
    traces: dict[tuple[str, str, str], list[str]],
    wrong: dict[tuple[str, str], str],
) -> None:
    spool = Spool("m")
    try:
        subject = Subject("m", "app", spool, credentials=credentials, layers={"app": Path("x")})
        cells = judge("production", MATRIX, subject, SECRETS, traces)
    finally:
        spool.close()
    assert {(c.environment, c.secret): c.state for c in cells if not c.is_well} == wrong
    assert {(c.environment, c.secret) for c in cells} >= set(SECRETS)


@pytest.mark.parametrize(
    ("role", "credentials", "known_parts", "state"),
    [
        ("app", APP, None, "unverified"),
        ("app", {GIVEN + "config": "x"}, None, "missing"),
        ("app", APP, {}, "unverified"),
        ("web", {GIVEN + "tls.crt": "c", GIVEN + "tls.key": "k"}, {"key": "k"}, "unverified"),
        ("web", {GIVEN + "tls.crt": "c", GIVEN + "tls.key": "x"}, {"key": "k"}, "wrong"),
        ("balancer", {}, None, "unverified"),
        ("balancer", {}, {"certificate": "c", "key": "k"}, "right"),
    ],
)
def test_what_nothing_was_compared_with_is_not_right(
    role: str, credentials: dict[str, str], known_parts: dict[str, str] | None, state: str
) -> None:
    edge = Grant("production", BALANCER, spec("tls", kind="tls"))
    matrix = Matrix((*MATRIX.grants, edge))
    name = "password" if role == "app" else "tls"
    found = {("production", name): known(name, digests=known_parts)} if known_parts else {}
    spool = Spool("m")
    try:
        subject = Subject("m", role, spool, credentials=credentials, layers={})
        cells = judge("production", matrix, subject, found, {})
    finally:
        spool.close()
    (cell,) = [c for c in cells if c.is_granted]
    assert (cell.state, cell.is_well) == (state, state == "right")
    assert cell.is_failure == (state in {"missing", "wrong"})
    assert (_sign(cell) == "✓") == (state == "right")
    assert (_sign(cell) == "?") == (state == "unverified")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "reason", "is_broken"),
    [
        (lambda _place: None, None, False),
        (damage, "cut off or damaged", True),
        (change_the_key, "does not open it", True),
        (lambda place: place.vaults.path("app").unlink(), "no such file", True),
        (lambda place: place.keys.path("app").unlink(), "no vault password", False),
    ],
)
def test_without_a_vault_nothing_is_proven(place: Place, spoil, reason, is_broken) -> None:
    """But a key that this operator does not hold is no fault of the environment."""
    spoil(place)
    key = b"k" * 32
    digest = hmac.digest(key, VALUE, "sha256").hex()
    spool = Spool("m")
    try:
        given = {GIVEN + "api_token": digest}
        subject = Subject("m", "app", spool, credentials=given, layers={})
        report = audit(place.project, place.state, "test", [subject], key=key, served=None)
    finally:
        spool.close()
    assert [one.state for one in report.cells] == ["unverified" if reason else "right"]
    assert all(reason in one for one in report.unopened)
    assert len(report.unopened) == (reason is not None)
    assert report.broken == (report.unopened if is_broken else ())
    assert report.as_data()["ok"] is not is_broken
    assert report.failures == ()
