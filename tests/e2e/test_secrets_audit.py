"""Who knows what, proven on the live machines of two environments."""

import base64
import contextlib
import functools
import hashlib
import json
import subprocess
import time
from collections.abc import Iterator, Sequence

import pytest
import yaml

from examples.command import Toolkit
from examples.versions import Edit, free_port
from tests.support.sabotage import sabotaged
from tests.support.site import Site
from toolkit.state import State
from toolkit.wiring import open_site
from toolkit.workplace import Workplace

pytestmark = [pytest.mark.host, pytest.mark.alone]

OTHER = "production"
LIMIT_S = 60.0
ATTEMPTS = 2
"""Something else may be at work on the same host for a moment."""

GRANTED = {
    "balancer": {"edge_tls"},
    "database": {"database_password"},
    "app": {"database_password"},
    "web": {"web_tls"},
}
UNITS = {"database": "database.service", "app": "app.service", "web": "web.service"}
CREDENTIALS = {
    "database": {"config", "database_password"},
    "app": {"config", "database_password"},
    "web": {"config", "web_tls.crt", "web_tls.key"},
}
LEFT_IN_MEMORY = "/run/host/credentials"


class Pair(Site):
    """The example in two environments at once, ten machines; their networks do not overlap."""

    def begin(self) -> None:
        path = self.project.environment_file(OTHER)
        content = yaml.safe_load(path.read_text())
        content["network"] = "10.91.0.0/24"
        content["roles"]["web"]["public"] = f"127.0.0.1:{free_port()}"
        path.write_text(yaml.safe_dump(content))
        self.start("v1")
        release = self.bake("v1")["release"]
        self.toolkit.result("secrets", "init", OTHER)
        self.toolkit.result("up", OTHER)
        self.toolkit.result("roll", OTHER, "--release", release)

    def remove(self) -> None:
        if (self.state / "ledger.db").exists():
            self.toolkit.run("down", OTHER, "--volumes")
        super().remove()

    def inside(self, environment: str, role: str, script: str, *, is_checked: bool = True):
        """Run a shell script as root in a machine of a role, through its standard input."""
        workplace = Workplace(self.project.root, self.state)
        with open_site(workplace, environment) as site:
            machine = next(one for one in site.provider.machines() if one.role == role)
            container = site.provider._container(machine.name)
            return machine, container.run(
                ["/bin/sh", "-s"], timeout_s=60.0, stdin=script.encode(), is_checked=is_checked
            )

    def in_all(self, environment: str, argv: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Run a program in every machine; yield the machine's role and what was printed."""
        with open_site(Workplace(self.project.root, self.state), environment) as site:
            for machine in site.provider.machines():
                yield machine.role, site.provider.run(machine.name, argv, timeout_s=60.0).text

    def audit(self, environment: str):
        return self.toolkit.run("secrets", "audit", environment)

    @functools.cached_property
    def digests(self) -> dict[tuple[str, str], str]:
        """Environment and credential to the digest of its value, for every cell that there is."""
        return {
            (whose, credential): hashlib.sha256(shown[part].encode()).hexdigest()
            for whose in (self.environment, OTHER)
            for role, secret, parts in (
                ("app", "database_password", {"value": "database_password"}),
                ("web", "web_tls", {"certificate": "web_tls.crt", "key": "web_tls.key"}),
            )
            for shown in [self.value(whose, role, secret)]
            for part, credential in parts.items()
        }

    def value(self, environment: str, role: str, name: str) -> dict:
        return self.toolkit.result("secrets", "show", environment, role, name, "--yes")


@pytest.fixture(scope="module")
def pair(baked, tmp_path_factory):
    pair = Pair(tmp_path_factory.mktemp("pair") / "s", baked)
    try:
        pair.begin()
        yield pair
    finally:
        pair.remove()


def bad(answer) -> dict[tuple[str, str, str], dict]:
    """Return the cells that are not as they should be."""
    return {
        (one["role"], one["environment"], one["secret"]): one
        for one in answer.data["cells"]
        if one["state"] != ("right" if one["is_granted"] else "absent")
    }


def test_the_matrix_is_exact(pair, record_property):
    """Every machine of both environments × every secret of both, within a minute."""
    for attempt in range(ATTEMPTS):
        began = time.monotonic()
        answers = {name: pair.audit(name) for name in (pair.environment, OTHER)}
        seconds = time.monotonic() - began
        if seconds < LIMIT_S or attempt == ATTEMPTS - 1:
            break
    machines = set()
    for name, answer in answers.items():
        assert answer.exit_code == 0, answer.stderr
        assert answer.data["ok"]
        assert answer.data["unopened"] == []
        cells = answer.data["cells"]
        machines |= {one["machine"] for one in cells if one["role"] != "balancer"}
        # Six that hold something × three secrets × two environments.
        assert len(cells) == 6 * 3 * 2
        for cell in cells:
            is_granted = cell["environment"] == name and cell["secret"] in GRANTED[cell["role"]]
            assert cell["is_granted"] is is_granted
            assert cell["state"] == ("right" if is_granted else "absent")
    assert len(machines) == 10
    record_property("seconds", round(seconds, 1))
    print(f"{len(machines)} machines and 2 balancers audited in {seconds:.1f} s")
    assert seconds < LIMIT_S


HELD = """
import hashlib, json, os

found = {}
for top in ("/run/host/credentials", "/run/credentials"):
    for directory, _, names in os.walk(top):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                found[os.path.join(directory, name)] = hashlib.sha256(file.read()).hexdigest()
print(json.dumps(found))
"""


def extra_and_missing(pair: Pair, environment: str) -> list[tuple[str, str, str]]:
    """Try every cell from inside the machines, without the toolkit's own audit.

    Returns:
        What is not as it should be: role, environment and name of the secret.
    """
    wrong = []
    for role, printed in pair.in_all(environment, ["/usr/bin/python3", "-IS", "-c", HELD]):
        held = json.loads(printed)
        names = {path.rpartition("/")[2] for path in held}
        wrong += [(role, environment, name) for name in names ^ CREDENTIALS[role]]
        for (whose, name), digest in pair.digests.items():
            is_granted = whose == environment and name in CREDENTIALS[role]
            if (digest in held.values()) is not is_granted:
                wrong.append((role, whose, name))
    return wrong


def test_no_cell_is_extra_or_missing_from_inside(pair):
    for environment in (pair.environment, OTHER):
        assert extra_and_missing(pair, environment) == []


EVERYTHING_FOR_EVERYBODY = Edit(
    "toolkit/secrets/source.py",
    "        delivered = select(document, declared, where)\n",
    """        delivered = {}
        matrix = load_matrix(self._project, [environment])
        for other in matrix.roles(environment):
            found = vaults.read(other)
            assert found is not None
            delivered.update(select(found, matrix.secrets(environment, other), where))
""",
)


def test_without_scoping_the_matrix_is_not_exact(pair, tmp_path):
    """Sabotage: a machine gets whatever its environment has; both ways of looking see it."""
    env = pair.environment
    program = sabotaged(tmp_path, EVERYTHING_FOR_EVERYBODY)
    Toolkit(pair.project.root, pair.state, program=program).result("roll", env, "web")
    try:
        answer = pair.audit(env)
        assert answer.exit_code == 1
        assert ("web", env, "database_password") in bad(answer)
        assert ("web", env, "database_password") in extra_and_missing(pair, env)
    finally:
        pair.toolkit.result("roll", env, "web")
    assert extra_and_missing(pair, env) == []


def test_whatever_is_where_it_should_not_be_is_named(pair):
    """One value each in a file, an environment, an argument, the journal and a volume."""
    env = pair.environment
    password = pair.value(env, "app", "database_password")["value"]
    foreign = pair.value(OTHER, "app", "database_password")["value"]
    key = pair.value(env, "web", "web_tls")["key"]
    other_key = pair.value(OTHER, "web", "web_tls")["key"]
    encoded = base64.b64encode(f"password={password}".encode()).decode()
    pair.inside(env, "web", f"printf %s {encoded} > /etc/leaked\n")
    pair.inside(env, "database", f"printf %s '{key}' > /var/lib/postgresql/leaked\n")
    pair.inside(
        env,
        "app",
        f"printf %s '{key}' > /run/leaked\n"
        f"FOREIGN={foreign} setsid sleep 600 < /dev/null > /dev/null 2>&1 &\n"
        f"echo {json.dumps(other_key)} | systemd-cat -t leaked\nsleep 1\n",
    )
    try:
        answer = pair.audit(env)
        found = bad(answer)
        expected = {
            ("web", env, "database_password"): "/etc/leaked (base64)",
            ("database", env, "web_tls"): "leaked (key)",
            ("app", env, "web_tls"): "/run/leaked (key)",
            ("app", OTHER, "database_password"): "environ of process sleep (raw)",
            ("app", OTHER, "web_tls"): "journal (key)",
        }
        assert answer.exit_code == 1
        assert set(found) == set(expected)
        for cell, place in expected.items():
            assert found[cell]["state"] == "extra"
            assert any(place in one for one in found[cell]["places"]), found[cell]
        message = answer.error["error"]
        assert all(one["machine"] in message for one in found.values())
        for value in (password, foreign, *key.split("\n")[1:3], *other_key.split("\n")[1:3]):
            assert value not in answer.stdout + answer.stderr
    finally:
        pair.inside(env, "web", "rm -f /etc/leaked\n")
        pair.inside(env, "database", "rm -f /var/lib/postgresql/leaked\n")
        pair.inside(
            env,
            "app",
            "rm -f /run/leaked\nfor p in /proc/[0-9]*; do\n"
            '  [ "$(cat $p/comm 2>/dev/null)" = sleep ] && kill ${p#/proc/}; done\n'
            "journalctl --rotate; journalctl --vacuum-time=1s; true\n",
        )


@contextlib.contextmanager
def changed_credential(pair: Pair, environment: str, role: str, name: str, change: str):
    """Change what a machine was given, in its memory, and put it back."""
    directory = LEFT_IN_MEMORY
    options = "nosuid,nodev,noexec"
    remount = f"mount -o remount,%s,{options} {directory}\n"
    begin = remount % "rw" + f"cp -p {directory}/{name} /dev/shm/kept\n"
    pair.inside(environment, role, begin + f"cd {directory}; {change}\n" + remount % "ro")
    try:
        yield
    finally:
        put_back = f"cat /dev/shm/kept > {directory}/{name}\nchmod 0400 {directory}/{name}\n"
        forget = "rm -f /dev/shm/kept\n"
        pair.inside(environment, role, remount % "rw" + put_back + remount % "ro" + forget)


def test_what_is_missing_or_wrong_is_named(pair):
    with (
        changed_credential(pair, OTHER, "app", "database_password", "rm database_password"),
        changed_credential(pair, OTHER, "web", "web_tls.key", "echo other > web_tls.key"),
    ):
        answer = pair.audit(OTHER)
    states = {cell: one["state"] for cell, one in bad(answer).items()}
    assert answer.exit_code == 1
    assert states[("app", OTHER, "database_password")] in {"missing", "extra"}
    assert states[("web", OTHER, "web_tls")] in {"wrong", "extra"}


@pytest.mark.parametrize(
    ("role", "credential"),
    [(role, name) for role, names in CREDENTIALS.items() for name in sorted(names)],
)
def test_a_service_refuses_to_start_without_a_credential(pair, role, credential):
    unit = UNITS[role]
    state = f"systemctl restart {unit}; systemctl show -p ActiveState --value {unit}\n"
    with changed_credential(pair, OTHER, role, credential, f"rm {credential}"):
        _, done = pair.inside(OTHER, role, state, is_checked=False)
        assert done.text.split()[-1] in {"failed", "activating"}
        assert (
            "status=1/FAILURE"
            in pair.inside(
                OTHER, role, f"systemctl status {unit}; journalctl -u {unit}\n", is_checked=False
            )[1].text
        )
    back = f"systemctl stop {unit}; systemctl reset-failed {unit}; systemctl start {unit}\n"
    _, done = pair.inside(OTHER, role, f"{back}systemctl is-active {unit}\n")
    assert done.text.split()[-1] == "active"


@pytest.mark.parametrize("role", UNITS)
def test_services_are_confined(pair, role, record_property):
    """3.0 or better in systemd's own reckoning, where 10 is worst."""
    script = f"systemd-analyze security --no-pager {UNITS[role]} | tail -1\n"
    _, done = pair.inside(pair.environment, role, script)
    assert "Overall exposure level" in done.text
    exposure = float(done.text.split(":")[1].split()[0])
    record_property("exposure", exposure)
    print(f"{UNITS[role]}: exposure {exposure}")
    assert exposure <= 3.0


REACH = """
python3 - <<'END'
import socket
for host, port in {targets}:
    try:
        socket.create_connection((host, port), 2).close()
        print(host, port, "reached")
    except OSError as error:
        print(host, port, "refused")
END
"""


def addresses(pair: Pair, environment: str) -> list[tuple[str, int]]:
    """Return address and port of everything that listens in an environment."""
    with open_site(Workplace(pair.project.root, pair.state), environment) as site:
        ports = {role: site.project.roles[role].port for role in UNITS}
        machines = [(one.address, ports[one.role]) for one in site.provider.machines()]
        gateway = str(next(site.environment.network.hosts()))
        return [*machines, *((gateway, port) for port in ports.values())]


def reached(pair: Pair, environment: str, targets: Sequence[tuple[str, int]]) -> int:
    """Return how many targets the first web machine of an environment can connect to."""
    _, done = pair.inside(environment, "web", REACH.format(targets=list(targets)))
    lines = done.text.splitlines()
    assert len(lines) == len(targets), done.text
    return sum(line.endswith("reached") for line in lines)


def test_environments_cannot_reach_each_other(pair):
    """From inside a machine: no machine, balancer or public port of the other environment."""
    targets = addresses(pair, OTHER)
    with open_site(Workplace(pair.project.root, pair.state), OTHER) as site:
        host, _, port = site.environment.deployments["web"].public.rpartition(":")
    # A service that was started a moment ago may not listen yet.
    deadline = time.monotonic() + LIMIT_S
    while reached(pair, OTHER, targets) < len(targets) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert reached(pair, OTHER, targets) == len(targets)
    assert reached(pair, pair.environment, [*targets, (host, int(port))]) == 0


@contextlib.contextmanager
def joined(pair: Pair, *environments: str) -> Iterator[None]:
    """Lay a cable between the networks of two environments, and have both pass on packets."""
    namespaces = [State(pair.state).namespace(name) for name in environments]
    networks = []
    for name in environments:
        with open_site(Workplace(pair.project.root, pair.state), name) as site:
            networks.append(str(site.environment.network))
    ends = ["10.254.9.1", "10.254.9.2"]

    def ip(namespace: str, *words: str) -> None:
        subprocess.run(["ip", "-n", namespace, *words], check=True)

    ends_of_cable = ["type", "veth", "peer", "name", "cable", "netns", namespaces[1]]
    ip(namespaces[0], "link", "add", "cable", *ends_of_cable)
    try:
        for own, other in ((0, 1), (1, 0)):
            ip(namespaces[own], "addr", "add", f"{ends[own]}/30", "dev", "cable")
            ip(namespaces[own], "link", "set", "cable", "up")
            forward = ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
            subprocess.run(["ip", "netns", "exec", namespaces[own], *forward], check=True)
            ip(namespaces[own], "route", "add", networks[other], "via", ends[other])
        yield
    finally:
        ip(namespaces[0], "link", "del", "cable")


def test_with_a_way_between_them_environments_reach_each_other(pair):
    """Sabotage: the test above sees it when networks are not apart."""
    targets = addresses(pair, OTHER)
    with joined(pair, pair.environment, OTHER):
        assert reached(pair, pair.environment, targets) > 0
    assert reached(pair, pair.environment, targets) == 0
