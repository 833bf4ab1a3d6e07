"""`up` and `down` killed before and after every effect: the same again, or the opposite."""

import time
from collections.abc import Callable

import pytest

from tests.faults.cases import Case, cases_of
from tests.support.siege import Siege, recovery_limit_s
from tests.support.site import EchoSite
from tests.support.traces import leftovers

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def siege(new_echo: Callable[..., EchoSite]) -> Siege:
    site = new_echo()
    site.start("v1")
    return Siege(site)


def check_down(siege: Siege) -> None:
    """The environment is recorded as down, and nothing of it is left on the host."""
    site = siege.site
    with site.opened() as opened:
        assert not opened.ledger.is_up(site.environment)
    assert leftovers(site.state, site.state_id, [], site.environment) == []


def have_all(siege: Siege) -> None:
    """Have every role run version 1."""
    site = siege.site
    site.toolkit.result("up", site.environment)
    site.toolkit.result("roll", site.environment, "--release", site.bake("v1")["release"])


def check_all(siege: Siege) -> None:
    for role, capacity in (("echo", 2), ("count_keeper", 1)):
        siege.check_settled(image=siege.image("v1", role), role=role, capacity=capacity)
    assert siege.site.get().status_code == 200


def recover(siege: Siege, *words: str) -> None:
    began = time.monotonic()
    siege.site.toolkit.result(*words)
    assert time.monotonic() - began < recovery_limit_s()


@pytest.mark.parametrize("case", cases_of("up"), ids=str)
def test_up(case: Case, siege: Siege):
    site = siege.site
    site.toolkit.result("down", site.environment)
    check_down(siege)
    killed = siege.killed_at(case.point, "up", site.environment)
    assert killed.exit_code == -9, killed.stderr
    if case.recovery == "abort":
        recover(siege, "down", site.environment)
        check_down(siege)
        return
    recover(siege, "up", site.environment)
    have_all(siege)
    check_all(siege)


@pytest.mark.parametrize("case", cases_of("down"), ids=str)
def test_down(case: Case, siege: Siege):
    """`up` brings back whatever the ledger still has; what it has not is gone altogether."""
    site = siege.site
    have_all(siege)
    machines = set(site.machines())
    killed = siege.killed_at(case.point, "down", site.environment)
    assert killed.exit_code == -9, killed.stderr
    if case.recovery == "resume":
        recover(siege, "down", site.environment)
        check_down(siege)
        return
    with site.opened() as opened:
        recorded = {one.name for one in opened.ledger.machines(site.environment)}
    assert recorded in (machines, set())
    recover(siege, "up", site.environment)
    assert set(site.machines()) == recorded
    if not recorded:
        have_all(siege)
    check_all(siege)


@pytest.mark.parametrize("case", cases_of("restore"), ids=str)
def test_up_that_brings_a_machine_back(case: Case, siege: Siege):
    """The machine that did not die serves all the time; an abort has nothing to go back to."""
    site = siege.site
    have_all(siege)
    victim = site.status()["echo"]["pool"]["serving"][0]
    site.kill_machine(victim)
    with siege.watched() as watch:
        killed = siege.killed_at(case.point, "up", site.environment)
        assert killed.exit_code == -9, killed.stderr
        if case.recovery == "abort":
            assert site.toolkit.result("abort", site.environment) == []
        recover(siege, "up", site.environment)
    siege.check_capacity(watch, 1)
    check_all(siege)
    assert victim in site.machines()


@pytest.mark.parametrize("case", cases_of("gc"), ids=str)
def test_gc(case: Case, siege: Siege):
    """What there is to remove: a machine past its warm window, another that is known to nobody
    and has no place, a copy of a volume, and a layer of a bake that came to nothing."""
    site = siege.site
    siege.define("echo", strategy="blue-green", keep_warm_s=600)
    have_all(siege)
    if not siege.warm():
        other = site.bake("v2")["release"]
        for release in (other, site.bake("v1")["release"]):
            site.toolkit.result("roll", site.environment, "echo", "--release", release)
    expired, stranger = siege.warm()
    with site.opened() as opened:
        records = {one.name: one for one in opened.ledger.machines(site.environment)}
        opened.pools["echo"].deregister([records[stranger].address])
        opened.ledger.forget_machines([stranger])
        opened.ledger.set_standing([expired], "warm", warm_until=1.0)
        rolls = [one.id for one in opened.ledger.rolls(site.environment, "echo")][:2]
    copies = site.state / "environments" / site.environment / "snapshots"
    for roll in rolls:
        (copies / f"count_keeper-data-{roll}").mkdir(parents=True, exist_ok=True)
    layer = site.state / "store" / "layers" / f"{'0' * 64}.erofs"
    layer.write_bytes(b"nobody's")
    kept = set(site.machines()) - {expired, stranger}
    with siege.watched() as watch:
        killed = siege.killed_at(case.point, "gc", "--keep", "9", "--keep-snapshots", "1")
        assert killed.exit_code == -9, killed.stderr
        if case.recovery == "abort":
            # Which removes what nobody knows; what has expired is left to `gc`.
            assert site.toolkit.result("abort", site.environment) == []
        recover(siege, "gc", "--keep", "9", "--keep-snapshots", "1")
    siege.check_capacity(watch)
    assert set(site.machines()) == kept
    assert [path.name for path in copies.iterdir()] == [f"count_keeper-data-{rolls[0]}"]
    assert not layer.exists()
    siege.define("echo")
    check_all(siege)


@pytest.mark.parametrize("case", cases_of("repair"), ids=str)
def test_repair(case: Case, siege: Siege):
    """A place that is nobody's, put there by hand."""
    site = siege.site
    have_all(siege)
    with site.opened() as opened:
        opened.pools["echo"].register(["10.90.0.99"])
    with siege.watched() as watch:
        killed = siege.killed_at(case.point, "up", site.environment, "--repair")
        assert killed.exit_code == -9, killed.stderr
        if case.recovery == "abort":
            assert site.toolkit.result("abort", site.environment) == []
        recover(siege, "up", site.environment, "--repair")
    siege.check_capacity(watch)
    check_all(siege)


@pytest.mark.parametrize("case", cases_of("leave"), ids=str)
def test_leave(case: Case, siege: Siege):
    """A roll in batches that was cut short in between: both versions serve, and stay."""
    site = siege.site
    have_all(siege)
    siege.define("echo", strategy="rolling", batch=1)
    with siege.watched() as watch:
        words = ("roll", site.environment, "echo", "--image", siege.image("v2"))
        assert siege.killed_at("roll.drain.committed", *words).exit_code == -9
        killed = siege.killed_at(case.point, "abort", site.environment, "--leave")
        assert killed.exit_code == -9, killed.stderr
        if case.recovery == "abort":
            recover(siege, "abort", site.environment)
        else:
            recover(siege, "abort", site.environment, "--leave")
            assert len(site.status()["echo"]["pool"]["serving"]) == 2
        have_all(siege)
    siege.check_capacity(watch)
    check_all(siege)


def test_what_a_down_that_was_cut_short_has_forgotten_serves_until_others_do(siege: Siege):
    """It ends the roll that was cut short first, for the version before, which serves no more."""
    site = siege.site
    have_all(siege)
    siege.define("echo", strategy="blue-green")
    words = ("roll", site.environment, "echo", "--image", siege.image("v2"))
    with siege.watched() as watch:
        assert siege.killed_at("roll.drain.committed", *words).exit_code == -9
        assert siege.killed_at("down.balancer.intended", "down", site.environment).exit_code == -9
        refused = site.toolkit.run(*words)
        assert refused.exit_code == 2
        assert "the ledger does not know them" in refused.error["error"]
        recover(siege, "up", site.environment)
    siege.check_capacity(watch)
    check_all(siege)
