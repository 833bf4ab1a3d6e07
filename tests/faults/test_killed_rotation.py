"""A rotation killed while machines take up the new value, or forget the old one.

`toolkit abort` leaves a rotation alone: no roll was cut short, and the old value is good until the
new one is everywhere. The same command goes on.
"""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.faults.cases import Case, cases_of
from tests.support.siege import Siege, besieged
from tests.support.site import EchoSite

pytestmark = pytest.mark.host

ROTATION_S = 120.0
"""To go on with a rotation means to rotate: many runs of ansible-vault, and every machine."""


@pytest.fixture(scope="module")
def siege(
    new_echo: Callable[..., EchoSite], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Siege]:
    with besieged(new_echo(), tmp_path_factory.mktemp("load")) as siege:
        yield siege


def token(siege: Siege, role: str) -> dict:
    site = siege.site
    return site.toolkit.result("secrets", "show", site.environment, role, "token", "--yes")


def held_by(siege: Siege, machine: str) -> str:
    """Return the token as the service's own credential inside a machine has it."""
    done = siege.site.run_inside(machine, "cat", "/run/credentials/echo.service/token")
    return done.text.strip()


def rotate(case: Case, siege: Siege, secret: str, *options: str) -> dict:
    """Rotate a secret, killed once, and return what the command says that went on with it.

    The pool has kept its capacity meanwhile, no request has failed, and no machine was replaced.
    """
    site = siege.site
    machines, words = site.machines(), ("secrets", "rotate", site.environment, secret)
    siege.check_load()
    with siege.watched() as watch:
        killed = siege.killed_at(case.point, *words, *options)
        assert killed.exit_code == -9, killed.stderr
        if case.recovery == "abort":
            assert site.toolkit.result("abort", site.environment) == []
            assert site.get().status_code == 200
        began = time.monotonic()
        # Which way it goes is in the vaults: only who turns round has to say so.
        done = site.toolkit.result(*words, *(options if case.recovery == "abort" else ()))
        assert time.monotonic() - began < ROTATION_S
    siege.check_capacity(watch)
    siege.check_load()
    assert site.machines() == machines
    return done


@pytest.mark.parametrize("case", cases_of("rotate"), ids=str)
def test_killed(case: Case, siege: Siege):
    before = token(siege, "echo")
    done = rotate(case, siege, "token")
    assert done["version"] == before["version"] + 1
    assert token(siege, "echo")["value"] != before["value"]
    check_everybody_has_it(siege, done["version"])


@pytest.mark.parametrize("case", cases_of("rotate-back"), ids=str)
def test_killed_on_the_way_back(case: Case, siege: Siege):
    """Some machines have been told the new value when the rotation turns round."""
    site, before = siege.site, token(siege, "echo")
    words = ("secrets", "rotate", site.environment, "token")
    assert siege.killed_at("rotate.renew.committed:2", *words).exit_code == -9
    done = rotate(case, siege, "token", "--back")
    assert (done["version"], done["is_back"]) == (before["version"] + 2, True)
    assert token(siege, "echo")["value"] == before["value"]
    check_everybody_has_it(siege, done["version"])


def check_everybody_has_it(siege: Siege, version: int) -> None:
    """Every machine holds this version of the token, and nothing is left to do."""
    site = siege.site
    for role in ("echo", "count_keeper"):
        new = token(siege, role)
        assert new["version"] == version
        for machine in site.status()[role]["machines"]:
            assert held_by(siege, machine["name"]) == new["value"].strip()
    listed = site.toolkit.result("secrets", "list", site.environment)
    assert not any("token." in one["name"] for one in listed)
    siege.check_settled(image=siege.image("v1"))
    release = site.bake("v1")["release"]
    rolls = site.toolkit.result("roll", site.environment, "--release", release)
    assert {one["outcome"] for one in rolls} == {"unchanged"}


@pytest.mark.parametrize("case", cases_of("certificate"), ids=str)
def test_killed_while_the_balancer_takes_up_a_certificate(case: Case, siege: Siege):
    done = rotate(case, siege, "edge_tls")
    [proof] = done["proofs"]
    assert proof["observed"] == f"the certificate of version {done['version'] - 1} is not served"
    siege.check_settled(image=siege.image("v1"))
