"""What a machine prints on its console takes bounded memory, whatever its init is."""

import secrets
import time
from pathlib import Path

import pytest

from toolkit.errors import DeadlineExceeded
from toolkit.machines import cgroups
from toolkit.machines.container import CONSOLE_BYTES, Container, ContainerOrder

pytestmark = pytest.mark.host

SHOUTING_INIT = r"""#!/bin/sh
while :; do printf '\033[2J{"event": "runner_on_ok"} %01000d\n' 0 || sleep 0.1; done
"""


def test_endless_output_of_an_init_is_cut(baked_echo, tmp_path):
    layers = [
        baked_echo.layer_file(one["digest"]) for one in baked_echo.image("v1", "echo")["layers"]
    ]
    upper = tmp_path / "upper"
    init = upper / "usr" / "lib" / "systemd" / "systemd"
    init.parent.mkdir(parents=True)
    init.write_text(SHOUTING_INIT)
    init.chmod(0o755)
    group = f"toolkit-{secrets.token_hex(4)}"
    container = Container(cgroup=f"{group}/one", files=tmp_path / "run" / "one")
    order = ContainerOrder(
        name="one", layers=layers, mountpoint=tmp_path / "mnt", cgroup=f"{group}/one",
        upper=upper, work=tmp_path / "work",
    )  # fmt: skip
    try:
        container.start(order)
        deadline = time.monotonic() + 60.0
        while len(container.console) < CONSOLE_BYTES // 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises(DeadlineExceeded) as caught:
            container.await_ready(deadline_s=2.0)
        assert "runner_on_ok" in caught.value.message
        printed = container.console
        assert CONSOLE_BYTES // 2 < len(printed) <= CONSOLE_BYTES
        # Another command that looks at it sees the same, and it takes no more on the host.
        assert Container(cgroup=f"{group}/one", files=tmp_path / "run" / "one").console == printed
        process = container.process
        assert process is not None
        assert Path(f"/proc/{process.pid}/fd/1").stat().st_size == CONSOLE_BYTES
    finally:
        container.remove(deadline_s=0.0)
    assert not list(cgroups.processes(f"{group}/one"))
    assert container.console == b""
