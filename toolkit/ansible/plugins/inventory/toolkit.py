"""Ansible inventory of an environment: its live machines, by role."""

from __future__ import annotations

DOCUMENTATION = """
name: toolkit
short_description: Live machines of an environment
description:
  - Reads C(inventories/<environment>/toolkit.yml), the environment's definition, and lists the
    machines that run now in one group for each role.
  - Needs root, as the toolkit itself does.
options:
  plugin:
    description: Marks the file as this plugin's.
    required: true
    choices: [toolkit]
  state:
    description: The toolkit's state directory.
    default: /var/lib/toolkit
    env:
      - name: TOOLKIT_STATE
"""

EXAMPLES = """
# ansible-inventory -i inventories/development --graph
plugin: toolkit
network: 10.90.0.0/24
roles:
  web: {machines: 2, public: "127.0.0.1:8443"}
"""

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

from toolkit.errors import ToolkitError


class InventoryModule(BaseInventoryPlugin):  # type: ignore[misc]
    """The plugin, under the name that Ansible looks for."""

    NAME = "toolkit"

    def verify_file(self, path: str) -> bool:
        """Whether a file is an environment's definition."""
        return Path(path).name == "toolkit.yml" and bool(super().verify_file(path))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Fill the inventory with what runs now."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        try:
            self._fill(Path(path).resolve())
        except ToolkitError as error:
            raise AnsibleParserError(error.message) from None

    def _fill(self, path: Path) -> None:
        from toolkit.ansible.hooks import machine_variables  # noqa: PLC0415
        from toolkit.wiring import live_machines  # noqa: PLC0415
        from toolkit.workplace import Workplace  # noqa: PLC0415

        directory = path.parent
        workplace = Workplace(directory.parent.parent, Path(self.get_option("state")).resolve())
        roles, machines = live_machines(workplace, directory.name)
        for role in roles:
            self.inventory.add_group(role)
        for machine, init_pid in machines:
            self.inventory.add_host(machine.name, group=machine.role)
            variables = {
                **machine_variables(init_pid),
                "toolkit_address": machine.address,
                "toolkit_image": machine.image,
            }
            for name, value in variables.items():
                self.inventory.set_variable(machine.name, name, value)
