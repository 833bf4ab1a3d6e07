"""How the local provider names what belongs to a machine."""

import ipaddress
import os
from pathlib import Path

import pytest

from toolkit.errors import OutsideError
from toolkit.machines.nspawn import NspawnProvider
from toolkit.model import LaunchOrder, Machine, MachineState
from toolkit.network.namespaces import EnvironmentNetwork
from toolkit.project.model import MOST_MACHINES
from toolkit.roll.prepare import machine_name
from toolkit.state import State

MAX_SOCKET_PATH_BYTES = 107
"""unix(7): 108, with a zero at the end."""
LONGEST_NAME = 31


def make_provider(state: State, environment: str) -> NspawnProvider:
    network = EnvironmentNetwork(
        namespace=state.namespace(environment), network=ipaddress.IPv4Network("10.90.0.0/24")
    )
    return NspawnProvider(
        environment, state=state, network=network, find_image=None, layer_path=None
    )


def test_the_longest_names_leave_room_for_a_socket(tmp_path: Path) -> None:
    state, environment = State(tmp_path), "e" * LONGEST_NAME
    provider = make_provider(state, environment)
    name = machine_name("r" * LONGEST_NAME, "roll-abcdef", MOST_MACHINES)
    assert len(name) <= 64  # a host name
    path = provider._container(name).notify_socket
    assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES


@pytest.mark.parametrize("state", [MachineState.STARTING, MachineState.RUNNING])
def test_volumes_have_one_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: MachineState
) -> None:
    provider = make_provider(State(tmp_path), "test")
    owner = Machine("database-1", "test", "database", "sha256:1", "10.90.0.2", state, 0.0)
    monkeypatch.setattr(provider, "machines", lambda: [owner])
    order = LaunchOrder(
        name="database-2", environment="test", role="database", image="sha256:2",
        address="10.90.0.3", credentials=(), volumes={"data": "/data"},
    )  # fmt: skip
    with pytest.raises(OutsideError, match="database-1 runs with the volumes of database"):
        provider.launch([order])
