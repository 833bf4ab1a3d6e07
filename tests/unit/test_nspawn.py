"""How the local provider names what belongs to a machine."""

import ipaddress
import os
from pathlib import Path

from toolkit.machines.nspawn import NspawnProvider
from toolkit.network.namespaces import EnvironmentNetwork
from toolkit.project.model import MOST_MACHINES
from toolkit.roll.prepare import machine_name
from toolkit.state import State

MAX_SOCKET_PATH_BYTES = 107
"""unix(7): 108, with a zero at the end."""
LONGEST_NAME = 31


def test_the_longest_names_leave_room_for_a_socket(tmp_path: Path) -> None:
    state, environment = State(tmp_path), "e" * LONGEST_NAME
    network = EnvironmentNetwork(
        namespace=state.namespace(environment), network=ipaddress.IPv4Network("10.90.0.0/24")
    )
    provider = NspawnProvider(
        environment, state=state, network=network, find_image=None, layer_path=None
    )
    name = machine_name("r" * LONGEST_NAME, "roll-abcdef", MOST_MACHINES)
    assert len(name) <= 64  # a host name
    path = provider._container(name).notify_socket
    assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
