"""Rolls and rollbacks killed before and after every effect, then resumed in one run, aborted in
another: the pool keeps its capacity, no request fails, one version serves, nothing is left behind.

The cases are in `cases.py`. They go on from one another, in one environment under load, and each
puts it into the state that it needs.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from bench.echo import DOES_NOT_START, ERRORS
from tests.faults.cases import ROLLS, Case, cases_of
from tests.support.breakage import eventually, hang, serving
from tests.support.siege import Siege, besieged, outcomes, recovery_limit_s
from tests.support.site import EchoSite

pytestmark = pytest.mark.host

BLUE_GREEN = {"strategy": "blue-green"}
WARM_S = 3600.0
SOAK = {"seconds": 8.0, "max_error_percent": 1.0, "min_requests": 20}
CALM_SOAK = {"seconds": 0.5, "min_requests": 10_000}

PLAYBOOK = """
- name: A hook
  hosts: all
  gather_facts: false
  tasks:
    - name: Leave a trace
      ansible.builtin.lineinfile:
        path: /run/hooks
        line: {name}
        create: true
        mode: "0600"
"""


@dataclass(frozen=True)
class Scenario:
    """On which ground a roll is killed.

    Attributes:
        settings: How the role is deployed.
        role: Which one.
        version: To which it is rolled, if not to the other good one.
        ending: How it ends when nobody goes back: `rolled`, `discarded` or `rolled-back`.
        hooks: Playbooks that it runs.
        needs_warm: Whether machines of the other version are kept warm.
        is_ill: Whether one of two old machines hangs.
        is_rollback: Whether the command is `rollback`.
    """

    settings: dict[str, Any]
    role: str = "echo"
    version: str | None = None
    ending: str = "rolled"
    hooks: dict[str, str] = field(default_factory=dict)
    needs_warm: bool = False
    is_ill: bool = False
    is_rollback: bool = False

    @property
    def capacity(self) -> int:
        return 2 if self.role == "echo" else 1


SCENARIOS = {
    "rolling": Scenario({"strategy": "rolling", "batch": 1}),
    "blue-green": Scenario(BLUE_GREEN | {"soak": CALM_SOAK}),
    "canary": Scenario(
        {"strategy": "canary", "canary": {"machines": 1, "percent": 50, "watch_s": 0.5}}
    ),
    "hooks": Scenario(BLUE_GREEN, hooks={"before": "before.yml", "after": "after.yml"}),
    "keep-warm": Scenario(BLUE_GREEN | {"keep_warm_s": WARM_S}, needs_warm=True),
    "stateful": Scenario({"snapshot": True}, role="count_keeper"),
    "does-not-start": Scenario(BLUE_GREEN, version=DOES_NOT_START, ending="discarded"),
    "errors": Scenario(BLUE_GREEN | {"soak": SOAK}, version=ERRORS, ending="rolled-back"),
    "ill": Scenario(BLUE_GREEN | {"soak": SOAK}, version=ERRORS, ending="rolled-back", is_ill=True),
    "rollback-warm": Scenario(
        BLUE_GREEN | {"keep_warm_s": WARM_S}, needs_warm=True, is_rollback=True
    ),
    "rollback-cold": Scenario(BLUE_GREEN, is_rollback=True),
}


@pytest.fixture(scope="module")
def siege(
    new_echo: Callable[..., EchoSite], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Siege]:
    with besieged(new_echo(), tmp_path_factory.mktemp("load")) as siege:
        playbooks = siege.site.project.root / "playbooks"
        for name in ("before", "after"):
            (playbooks / f"{name}.yml").write_text(PLAYBOOK.format(name=name))
        yield siege


def roll(siege: Siege, role: str, image: str) -> None:
    siege.site.toolkit.result("roll", siege.site.environment, role, "--image", image)


def prepare(siege: Siege, scenario: Scenario) -> None:
    """Have what the scenario needs: the definition, and warm machines or none."""
    siege.settle()
    siege.set_hooks()
    role = scenario.role
    is_ready = bool(siege.warm(role)) == scenario.needs_warm
    if is_ready and scenario.is_rollback:
        # What serves may have come by a way back itself, with nothing before it.
        plan = siege.site.toolkit.run("rollback", siege.site.environment, role, "--dry-run")
        is_ready = plan.exit_code == 0 and plan.data["image"] == siege.other(role)
    if not is_ready:
        # Machines that are warm make room in any roll; those of the version before are kept.
        siege.define(role, **BLUE_GREEN | {"keep_warm_s": WARM_S if scenario.needs_warm else None})
        roll(siege, role, siege.other(role))
    siege.define(role, **scenario.settings)
    siege.set_hooks(**scenario.hooks)
    if scenario.is_ill:
        ill = serving(siege.site)[0]
        hang(siege.site, ill)
        eventually(lambda: ill not in serving(siege.site))


def test_every_scenario_is_there():
    assert set(SCENARIOS) == set(ROLLS)


@pytest.mark.parametrize("case", cases_of(*ROLLS), ids=str)
def test_killed(case: Case, siege: Siege):
    scenario, site = SCENARIOS[case.scenario], siege.site
    role = scenario.role
    prepare(siege, scenario)
    before = siege.current(role)
    target = siege.image(scenario.version, role) if scenario.version else siege.other(role)
    words = ["roll", site.environment, role, "--image", target]
    if scenario.is_rollback:
        words = ["rollback", site.environment, role]
    if not scenario.is_ill:
        # What was asked of one that hangs still fails, one request after another.
        siege.check_load()
    with siege.watched() as watch:
        killed = siege.killed_at(case.point, *words)
        assert killed.exit_code == -9, killed.stderr
        refused = site.toolkit.run(*words)
        assert refused.exit_code == 1
        assert f"toolkit resume {site.environment}" in refused.error["hint"]
        began = time.monotonic()
        answer = site.toolkit.run(case.recovery, site.environment)
        seconds = time.monotonic() - began
    is_back = case.recovery == "abort" or scenario.ending != "rolled"
    siege.check_capacity(watch, 1 if scenario.is_ill else 2)
    assert outcomes(answer)[0] in ({"rolled-back", "discarded"} if is_back else {"rolled"}), answer
    # Resumed, it ends with the code of one that was not cut short; an abort is what was asked for.
    codes = {"rolled": 0, "discarded": 4, "rolled-back": 5}
    expected = codes[scenario.ending] if case.recovery == "resume" else 0
    assert answer.exit_code == expected, answer
    assert seconds < recovery_limit_s()
    siege.check_settled(image=before if is_back else target, role=role, capacity=scenario.capacity)
    if scenario.version == ERRORS:
        siege.forget_failures()
    siege.check_load()
