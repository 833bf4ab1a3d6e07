"""Start and remove an environment."""

from __future__ import annotations

from toolkit.model import MachineState
from toolkit.progress import step
from toolkit.roll import lease
from toolkit.roll.lease import Lease
from toolkit.roll.plan import Effect, RollPlan, Step
from toolkit.roll.prepare import gather_inputs
from toolkit.roll.recover import settle
from toolkit.roll.run import Crew, Roll, RollOrder
from toolkit.roll.site import Site

STOP_DEADLINE_S = 20.0


def bring_up(site: Site) -> list[str]:
    """Have the environment's network and balancer run, and every machine that is meant to.

    Machines that are gone, after the host has restarted for instance, start again from the same
    image, pass their smoke tests again and are admitted again.

    Returns:
        Names of the machines that were started or admitted.

    Raises:
        SmokeTestsFailed: A machine that came back failed its tests.
    """
    name = site.environment.name
    with lease.held(site.ledger, name, doing="up") as held:
        with step(site.progress, f"network of {name}"):
            site.network.up()
        with step(site.progress, f"balancer of {name}"):
            site.balancer.ensure()
        if not site.ledger.is_up(name):
            site.ledger.set_up(name, is_up=True)
        settle(site, held)
        return [
            machine
            for role in site.environment.deployments
            for machine in _restore(site, role, held)
        ]


def take_down(site: Site) -> list[str]:
    """Remove the environment's machines, balancer and network; volumes stay.

    Returns:
        Names of the machines that were removed.
    """
    name = site.environment.name
    with lease.held(site.ledger, name, doing="down"):
        recorded = {one.name for one in site.ledger.machines(name)}
        machines = sorted(recorded.union(one.name for one in site.provider.machines()))
        for roll in site.ledger.rolls(name):
            if roll.outcome == "running":
                site.ledger.end_roll(roll.id, "failed", {"reason": "the environment was removed"})
        with step(site.progress, f"balancer of {name}"):
            site.balancer.stop()
        with step(site.progress, f"{len(machines)} machines of {name}"):
            site.provider.destroy(machines, deadline_s=STOP_DEADLINE_S)
            site.ledger.forget_machines(machines)
        with step(site.progress, f"network of {name}"):
            site.network.down()
        if site.ledger.is_up(name):
            site.ledger.set_up(name, is_up=False)
        return machines


def _restore(site: Site, role: str, held: Lease) -> list[str]:
    """Start and admit the members of a pool that do not serve."""
    name = site.environment.name
    members = site.ledger.machines(name, role)
    running = {
        one.name for one in site.provider.machines() if one.state is not MachineState.STOPPED
    }
    placed = {target.address for target in site.pools[role].targets()}
    stopped = [one for one in members if one.name not in running]
    absent = tuple(
        one.name for one in members if one.name not in running or one.address not in placed
    )
    if not absent:
        return []
    inputs = gather_inputs(site, role)
    launch = Step(Effect.LAUNCH, tuple(one.name for one in stopped))
    steps = (
        *((launch,) if stopped else ()),
        *(
            Step(effect, absent)
            for effect in (
                Effect.SMOKE, Effect.REGISTER, Effect.AWAIT_HEALTHY, Effect.ADMIT,
            )
        ),
    )  # fmt: skip
    order = RollOrder(
        id="up",
        environment=name,
        role=role,
        plan=RollPlan("restore", (), absent, steps, ()),
        launches={
            one.name: inputs.order(one.name, image=one.image, address=one.address)
            for one in members
        },
        records={one.name: one for one in members},
        timeouts=site.environment.deployments[role].timeouts,
    )
    crew = Crew(site.provider, site.pools[role], site.smoke, site.ledger, held, site.progress)
    Roll(order, crew).restore()
    return list(absent)
