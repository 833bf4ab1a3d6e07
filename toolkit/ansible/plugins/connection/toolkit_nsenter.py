"""Ansible connection to a machine on this host through its namespaces, with pipelining."""

from __future__ import annotations

DOCUMENTATION = """
name: toolkit_nsenter
short_description: Run tasks in a machine of the local provider
description:
  - Enters the namespaces of the machine's init process with C(nsenter).
  - Needs root on the host; nothing listens inside the machine.
options:
  init_pid:
    description: Process id, on the host, of the machine's init.
    type: int
    required: true
    vars:
      - name: toolkit_init_pid
  task_timeout:
    description: Seconds that one task may run.
    type: int
    default: 1800
    vars:
      - name: toolkit_task_timeout
  watch:
    description: Directory of a C(toolkit.bake.watch), which looks after every command; in a bake.
    type: path
    vars:
      - name: toolkit_watch
"""

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

from toolkit.bake import watch
from toolkit.errors import ToolkitError
from toolkit.machines.enter import run_inside
from toolkit.shell import Completed


class Connection(ConnectionBase):  # type: ignore[misc]
    """One machine; there is no connection to keep open."""

    transport = "toolkit_nsenter"
    has_pipelining = True
    default_user = "root"

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        """Run a shell command line inside the machine."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        done = self._run(["/bin/sh", "-c", cmd], in_data or b"")
        return done.exit_code, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file of the controller into the machine."""
        super().put_file(in_path, out_path)
        self._transfer(["/bin/sh", "-c", 'cat > "$1"', "sh", out_path], Path(in_path).read_bytes())

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file of the machine to the controller."""
        super().fetch_file(in_path, out_path)
        Path(out_path).write_bytes(self._transfer(["/bin/cat", "--", in_path], b""))

    def close(self) -> None:
        """Nothing is open."""
        self._connected = False

    def _transfer(self, argv: list[str], data: bytes) -> bytes:
        done = self._run(argv, data)
        if done.exit_code != 0:
            raise AnsibleConnectionFailure(f"transfer failed: {done.error_text}")
        return done.stdout

    def _run(self, argv: list[str], data: bytes) -> Completed:
        pid: Any = self.get_option("init_pid")
        try:
            done = run_inside(
                int(pid),
                argv,
                timeout_s=float(self.get_option("task_timeout")),
                stdin=data,
                is_checked=False,
            )
            if self.get_option("watch"):
                watch.look(Path(self.get_option("watch")))
        except (ToolkitError, OSError) as error:
            raise AnsibleConnectionFailure(str(error)) from None
        return done
