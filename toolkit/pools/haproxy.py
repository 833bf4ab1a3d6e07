"""The HAProxy process of one environment: start, reload and stop it, and find it again.

It runs inside the environment's network namespace; public frontends alone are in the host's own,
for which it gets a name. All it has lies in one directory, through which any later command finds
it again:

    haproxy.cfg     configuration
    haproxy.pid     process id of the master, when it was started, in which boot of the host
    haproxy.log     what it printed since it was started
    admin.sock      commands to the worker
    master.sock     commands to the master, and through it to workers that a reload has replaced
    servers.state   addresses and states of all slots, as they were after the last change
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from toolkit import shell
from toolkit.errors import ConfigurationError, DeadlineExceeded, OutsideError, ToolkitError
from toolkit.machines.processes import ProcessId, children, identify, read_pid_file
from toolkit.network.names import inside
from toolkit.pools import haproxy_config, haproxy_socket, host
from toolkit.pools.haproxy_socket import HaproxySocket, Processes

_START_TIMEOUT_S: Final = 15.0
"""Measured: 0.1 s to start and 0.2 s to reload on an idle host; the rest is for a busy one."""

_POLL_S: Final = 0.01
_KILL_TIMEOUT_S: Final = 5.0
_MAX_SOCKET_PATH_BYTES: Final = 107
_SOCKET_SUFFIX_BYTES: Final = 16
"""HAProxy binds a socket under its name, its process id and `.tmp` before it renames it."""

_EMPTY_STATE = "1\n"

_T = TypeVar("_T")


class HaproxyProcess:
    """The HAProxy of one environment; at most one command changes it at a time.

    Args:
        directory: Belongs to this HAProxy alone; the same as in its configuration. Its path must
            leave room for a Unix socket.

    Raises:
        ConfigurationError: The path is too long.
    """

    def __init__(self, *, directory: Path) -> None:
        self.directory = directory
        self._config = directory / "haproxy.cfg"
        self._pid_file = directory / "haproxy.pid"
        self._log = directory / "haproxy.log"
        self._state_file = haproxy_config.state_file(directory)
        self.admin = HaproxySocket(haproxy_config.admin_socket(directory))
        self._master = HaproxySocket(directory / "master.sock")
        room = _MAX_SOCKET_PATH_BYTES - _SOCKET_SUFFIX_BYTES
        if len(os.fsencode(self._master.path)) > room:
            raise ConfigurationError(
                f"{directory} is too long a path for the balancer's sockets",
                hint=f"choose a state directory that is shorter, {room} bytes with everything",
            )

    def is_running(self) -> bool:
        """Whether the process that was started last is still there."""
        return self._running() is not None

    def processes(self) -> list[int]:
        """Return the process ids of the master and its workers."""
        master = self._running()
        return [] if master is None else [master.pid, *children(master.pid)]

    def config_text(self) -> str | None:
        """Return the configuration that it runs with; None when it does not run."""
        return self._config.read_text() if self.is_running() else None

    def ensure(self, config_text: str) -> None:
        """Have HAProxy run with this configuration; every slot stays as it is.

        One that runs but takes no commands, since it hangs or its socket was removed, is ended and
        started anew: a reload would take over its listening sockets and make no new file.

        Raises:
            ConfigurationError: A public port is taken.
            OutsideError: HAProxy refused; the message has its own words.
        """
        master = self._running()
        if master and not host.is_in_namespace(
            master.pid, haproxy_config.namespace_of(config_text)
        ):
            # The environment's network was made anew under it; nothing of it can be reached.
            self._end(master, deadline_s=0)
            master = None
        loaded = self._answer() if master else None
        if master and loaded is None:
            self._keep_state()
            self._end(master, deadline_s=0)
            master = None
        if master is None:
            self.start(config_text)
        elif loaded != _digest(config_text):
            self._reload(config_text)
        else:
            # With what somebody has changed by hand.
            self.remember(self.admin.ask(["show servers state"]))

    def start(self, config_text: str) -> None:
        """Start HAProxy and wait until it takes commands; slots are as they were last.

        What an earlier one has left behind, be it processes, sockets or files, does no harm.

        Raises:
            ConfigurationError: A public port is taken.
            OutsideError: HAProxy refused; the message has its own words.
        """
        if self.is_running():
            raise OutsideError(f"haproxy in {self.directory} is already running")
        namespace = haproxy_config.namespace_of(config_text)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._end_leftovers()
        # A worker that has just been killed may not have let go of its ports yet.
        host.check_ports_free(haproxy_config.public_addresses(config_text), patience_s=1.0)
        host_namespace = haproxy_config.host_namespace(namespace)
        host.name_own_namespace(host_namespace)
        try:
            self._launch(config_text, namespace)
        except ToolkitError:
            if not self.is_running():
                host.forget_namespace(host_namespace)
            raise

    def stop(self, *, deadline_s: float) -> None:
        """Let running requests end, then end the process and forget what the slots held.

        Args:
            deadline_s: After so many seconds, connections that are still open are cut.

        Raises:
            DeadlineExceeded: The process does not end even when killed.
        """
        master = self._running()
        if master:
            self._end(master, deadline_s=deadline_s)
        self._end_leftovers()
        if self._config.exists():
            try:
                namespace = haproxy_config.namespace_of(self._config.read_text(errors="replace"))
            except ConfigurationError:
                # Somebody else's, or damaged: no reason to leave the rest standing.
                pass
            else:
                host.forget_namespace(haproxy_config.host_namespace(namespace))
        for path in (
            self._config,
            self._pid_file,
            self._state_file,
            self.admin.path,
            self._master.path,
        ):
            path.unlink(missing_ok=True)

    def remember(self, servers_state: str) -> None:
        """Keep the worker's `show servers state` for the next worker, whatever ends this one."""
        host.write(self._state_file, servers_state)

    def leaving_workers(self) -> Sequence[HaproxySocket]:
        """Return where the workers take commands that a reload has replaced but not yet ended."""
        return [self._worker(pid) for pid in self._patiently(self._processes).leaving]

    def _answer(self) -> str | None:
        """Return which configuration the worker runs; None when it does not say so for long."""
        try:
            return self._patiently(self._loaded_digest)
        except OutsideError:
            return None

    def _keep_state(self) -> None:
        """Remember the slots as the worker has them, if it can still be reached by its master."""
        try:
            for pid in self._processes().current:
                self.remember(self._worker(pid).ask(["show servers state"]))
        except OutsideError:
            # What was remembered after the last change has to do.
            return

    def _launch(self, config_text: str, namespace: str) -> None:
        if not self._state_file.exists():
            host.write(self._state_file, _EMPTY_STATE)
        self._install(config_text)
        pid = shell.spawn(
            inside(
                namespace,
                ["haproxy", "-W", "-S", f"{self._master.path},mode,600", "-f", self._config],
            ),
            env=shell.environment(),
            log=self._log,
            cwd=self.directory,
        )
        host.write(self._pid_file, str(identify(pid) or ""))
        self._await(lambda: self._is_loaded(config_text), since=0)
        self._restore_health(self._state_file.read_text())

    def _reload(self, config_text: str) -> None:
        """Replace the worker by one with this configuration.

        Raises:
            ConfigurationError: A public port that is new in it is taken.
            OutsideError: HAProxy refused; the old worker goes on as before.
        """
        master = self._running()
        if master is None:
            raise OutsideError(f"haproxy in {self.directory} has ended")
        # It may have lost its name to another process of the same environment.
        namespace = haproxy_config.namespace_of(config_text)
        host.name_own_namespace(haproxy_config.host_namespace(namespace))
        previous = self._config.read_text()
        listening = haproxy_config.public_addresses(previous)
        host.check_ports_free(haproxy_config.public_addresses(config_text) - listening)
        failed = self._patiently(self._processes).failed_reloads
        self._install(config_text)
        state = self.admin.ask(["show servers state"])
        self.remember(state)
        since = self._log.stat().st_size
        master.send(signal.SIGUSR2)
        try:
            self._await(lambda: self._is_loaded(config_text), since=since, failed_reloads=failed)
        except OutsideError:
            host.write(self._config, previous)
            raise
        self._restore_health(state)

    def _restore_health(self, servers_state: str) -> None:
        """Tell a new worker which slots were healthy.

        It reads that from the state file, and forgets it when it takes a slot out of the
        maintenance that the configuration puts it in: the slot is then healthy, and a single
        failed check away from being unhealthy (measured on 2.6.12).
        """
        if haproxy_socket.has_servers_state(servers_state):
            self.admin.ask(
                [
                    f"set server {row['be_name']}/{row['srv_name']} health "
                    + ("down" if row["srv_op_state"] == haproxy_socket.OPERATION_STOPPED else "up")
                    for row in haproxy_socket.parse_servers_state(servers_state)
                    if not int(row["srv_admin_state"]) & haproxy_socket.ADMIN_MAINTENANCE
                ]
            )

    def _end(self, master: ProcessId, *, deadline_s: float) -> None:
        for number, patience_s in (
            (signal.SIGUSR1, deadline_s),
            (signal.SIGTERM, _KILL_TIMEOUT_S),
            (signal.SIGKILL, _KILL_TIMEOUT_S),
        ):
            master.send(number)
            if host.wait(lambda: not master.is_alive, timeout_s=patience_s):
                return
        raise DeadlineExceeded(f"haproxy {master.pid} in {self.directory} does not end")

    def _is_loaded(self, config_text: str) -> bool:
        """Whether only workers with this configuration take commands and new connections."""
        try:
            if self._loaded_digest() != _digest(config_text):
                return False
            # Old and new worker share the listening sockets for a moment. A command or a request
            # may reach the old one until it knows that it is leaving.
            processes = self._processes()
            return bool(processes.current) and all(
                self._worker(pid).ask(["show info"]).find("\nStopping: 0\n") < 0
                for pid in processes.leaving
            )
        except OutsideError:
            return False

    def _await(
        self, is_done: Callable[[], bool], *, since: int, failed_reloads: int | None = None
    ) -> None:
        """Wait until HAProxy runs as asked.

        Args:
            is_done: Asks it.
            since: Where in the log its words about this begin, in bytes.
            failed_reloads: How many had failed before, when this is a reload.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not is_done():
            if not self.is_running():
                raise OutsideError(f"haproxy has ended: {self._words(since)}")
            if failed_reloads is not None and self._has_failed(failed_reloads):
                raise OutsideError(f"haproxy goes on as before: {self._words(since)}")
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"haproxy is not ready after {_START_TIMEOUT_S:g} s: {self._words(since)}"
                )
            time.sleep(_POLL_S)

    def _has_failed(self, failed_reloads: int) -> bool:
        try:
            return self._processes().failed_reloads > failed_reloads
        except OutsideError:
            return False

    def _install(self, config_text: str) -> None:
        """Put the configuration in place if HAProxy accepts it."""
        draft = self._config.with_suffix(".new")
        host.write(draft, _marked(config_text))
        outcome = shell.run(
            ["haproxy", "-c", "-f", draft],
            env=shell.environment(),
            timeout_s=_START_TIMEOUT_S,
            cwd=self.directory,
            is_checked=False,
        )
        if outcome.exit_code != 0:
            raise OutsideError(
                f"haproxy refuses its configuration: {_alerts(outcome.error_text)}",
                hint=f"it is in {draft}",
            )
        draft.replace(self._config)

    def _loaded_digest(self) -> str:
        """Return which configuration the worker runs, from the worker itself."""
        return haproxy_socket.parse_info(self.admin.ask(["show info"])).get("description", "")

    def _processes(self) -> Processes:
        return haproxy_socket.parse_processes(self._master.ask(["show proc"]))

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        """Ask again while nobody answers; the master is deaf while it executes itself anew."""
        deadline = time.monotonic() + self._master.timeout_s
        while True:
            try:
                return ask()
            except OutsideError:
                if time.monotonic() > deadline or not self.is_running():
                    raise
            time.sleep(_POLL_S)

    def _worker(self, pid: int) -> HaproxySocket:
        return HaproxySocket(self._master.path, prefix=f"@!{pid} ")

    def _running(self) -> ProcessId | None:
        """Return the master, unless it has ended."""
        recorded = read_pid_file(self._pid_file)
        return recorded if recorded and recorded.is_alive else None

    def _end_leftovers(self) -> None:
        """Kill workers whose master is gone; they would hold the ports."""
        host.kill_all("haproxy", argument=str(self._config))

    def _words(self, since: int) -> str:
        """Return HAProxy's last words since a position in its log."""
        with self._log.open("rb") as log:
            log.seek(since)
            return _alerts(log.read(65536).decode(errors="replace"))


def _marked(config_text: str) -> str:
    """Return the configuration with its digest in it, which the worker then reports."""
    return f"{config_text}\nglobal\n    description {_digest(config_text)}\n"


def _digest(config_text: str) -> str:
    return hashlib.sha256(config_text.encode()).hexdigest()


def _alerts(text: str) -> str:
    """Return the lines of HAProxy's output that say what is wrong, or else its end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    alerts = [line for line in lines if line.startswith("[ALERT]")]
    return "; ".join(alerts or lines[-3:])[-2000:] or "it printed nothing"
