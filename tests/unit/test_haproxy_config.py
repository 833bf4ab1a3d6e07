"""The balancer's configuration from values, and its answers to values. Pure."""

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.errors import ConfigurationError, OutsideError
from toolkit.pools.haproxy_config import (
    BalancerConfig,
    HealthCheck,
    PoolConfig,
    Protocol,
    PublicListen,
    Timeouts,
    UpstreamTls,
    namespace_of,
    public_addresses,
    render,
)
from toolkit.pools.haproxy_socket import (
    HaproxySocket,
    parse_info,
    parse_processes,
    parse_servers_state,
    parse_stat,
)

WEB = PoolConfig(
    role="web",
    slots=3,
    machine_port=8443,
    protocol=Protocol.HTTPS,
    health_path="/healthz?deep=1",
    internal="10.0.0.1:8080",
    public=PublicListen("127.0.0.1:8443", Path("/state/tls/web.pem")),
    tls=UpstreamTls(Path("/state/tls/authority.pem"), "web.internal"),
)
APP = PoolConfig("app", 2, 8000, Protocol.HTTP, internal="10.0.0.1:8000")
DATABASE = PoolConfig("database", 1, 5432, Protocol.TCP, internal="10.0.0.1:5432")
CONFIG = BalancerConfig("env-a", Path("/run/toolkit/env a"), (WEB, APP, DATABASE))


def section(text: str, name: str) -> list[str]:
    """Return the lines of one section, without indentation."""
    _, found, rest = text.partition(f"\n{name}\n")
    assert found, f"no section {name}"
    lines = []
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        if line and not line.lstrip().startswith("#"):
            lines.append(line.strip())
    return lines


def test_every_slot_is_declared_and_starts_in_maintenance() -> None:
    servers = [
        line for line in section(render(CONFIG), "backend pool_web") if "server slot" in line
    ]
    assert servers == [f"server slot{number} free.invalid:1 check disabled" for number in (1, 2, 3)]


def test_slots_take_their_addresses_from_the_state_file_and_from_nowhere_else() -> None:
    text = render(CONFIG)
    assert 'server-state-file "/run/toolkit/env a/servers.state"' in section(text, "global")
    assert "load-server-state-from-file global" in section(text, "defaults")
    for role in ("web", "app", "database"):
        lines = section(text, f"backend pool_{role}")
        assert "default-server init-addr last,127.0.0.1" in lines


def test_both_frontends_of_a_role_share_its_backend() -> None:
    text = render(CONFIG)
    for frontend in ("public_web", "internal_web"):
        assert section(text, f"frontend {frontend}")[-1] == "default_backend pool_web"
    assert "frontend public_app" not in text


def test_public_frontends_alone_are_outside_the_environment() -> None:
    text = render(CONFIG)
    assert namespace_of(text) == "env-a"
    assert "bind 10.0.0.1:8080" in section(text, "frontend internal_web")
    assert (
        'bind 127.0.0.1:8443 namespace env-a@host ssl crt "/state/tls/web.pem" alpn h2,http/1.1'
        in section(text, "frontend public_web")
    )
    assert public_addresses(text) == {"127.0.0.1:8443"}
    assert [line for line in text.splitlines() if "namespace" in line and "bind" not in line] == [
        line for line in text.splitlines() if line.lstrip().startswith("#") and "namespace" in line
    ]


def test_a_file_that_names_no_environment_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no network namespace"):
        namespace_of("global\n    nbthread 2\n")


def test_machines_of_an_https_pool_must_prove_their_name_for_requests_and_checks() -> None:
    (tls,) = [line for line in section(render(CONFIG), "backend pool_web") if " ssl " in line]
    for words in (
        "verify required",
        'ca-file "/state/tls/authority.pem"',
        "verifyhost web.internal",
        "sni str(web.internal)",
        "check-ssl",
        "check-sni web.internal",
    ):
        assert words in tls
    assert " ssl " not in " ".join(section(render(CONFIG), "backend pool_app"))


def test_a_request_that_a_machine_may_have_seen_is_never_sent_again() -> None:
    retries = [line for line in render(CONFIG).splitlines() if "retry-on" in line]
    assert [line.strip() for line in retries] == ["retry-on conn-failure"]


def test_old_tls_is_off_on_both_sides() -> None:
    lines = section(render(CONFIG), "global")
    for side in ("bind", "server"):
        assert f"ssl-default-{side}-options ssl-min-ver TLSv1.2 no-tls-tickets" in lines


def test_a_tcp_pool_understands_no_http() -> None:
    text = render(CONFIG)
    for name in ("frontend internal_database", "backend pool_database"):
        lines = section(text, name)
        assert "mode tcp" in lines
        assert not [line for line in lines if "http" in line]


def test_public_clients_cannot_forge_what_machines_believe() -> None:
    lines = section(render(CONFIG), "frontend public_web")
    assert "http-request del-header X-Forwarded-For" in lines
    assert "http-request set-header X-Forwarded-Proto https" in lines
    plain = replace(APP, public=PublicListen("127.0.0.1:8080", None))
    lines = section(render(replace(CONFIG, pools=(plain,))), "frontend public_app")
    assert "http-request set-header X-Forwarded-Proto http" in lines


def test_two_passed_checks_are_needed() -> None:
    """One of them may have been on its way to whoever had the slot before."""
    assert HealthCheck().rise >= 2
    for role in ("web", "app", "database"):
        assert f"rise {HealthCheck().rise} " in " ".join(
            section(render(CONFIG), f"backend pool_{role}")
        )


def test_timeouts_are_written_in_milliseconds() -> None:
    text = render(replace(CONFIG, timeouts=Timeouts(connect_s=0.25, hard_stop_s=90)))
    assert "timeout connect 250ms" in section(text, "defaults")
    assert "hard-stop-after 90000ms" in section(text, "global")


def test_the_same_values_make_the_same_text() -> None:
    assert render(CONFIG) == render(replace(CONFIG))
    assert render(CONFIG) != render(replace(CONFIG, pools=(replace(WEB, slots=4), APP, DATABASE)))


@pytest.mark.parametrize(
    ("path", "quoted"),
    [
        ('/a "b"', r'"/a \"b\"/admin.sock"'),
        ("/a$b", r'"/a\$b/admin.sock"'),
        ("/a\\b", r'"/a\\b/admin.sock"'),
        ("/a#b", '"/a#b/admin.sock"'),
    ],
)
def test_paths_are_quoted(path: str, quoted: str) -> None:
    text = render(replace(CONFIG, runtime_directory=Path(path)))
    assert f"stats socket {quoted} mode 600 level admin expose-fd listeners" in text


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (replace(APP, role="../x"), "'../x'"),
        (replace(APP, role="a b"), "'a b'"),
        (replace(APP, role=""), "role"),
        (replace(APP, slots=0), "at least one slot"),
        (replace(APP, machine_port=0), "0 is not a port"),
        (replace(APP, machine_port=65536), "65536 is not a port"),
        (replace(APP, health_path="healthz"), "begin with '/'"),
        (replace(APP, health_path="/a b"), "cannot stand"),
        (replace(APP, health_path="/a\nserver evil 1.2.3.4:80"), "cannot stand"),
        (replace(APP, health_path='/"'), "cannot stand"),
        (replace(APP, health_path="/$HOME"), "cannot stand"),
        (replace(APP, health_path="/#"), "cannot stand"),
        (replace(APP, health_host="a b"), "not a host name"),
        (replace(APP, health_host="%[src]"), "not a host name"),
        (replace(APP, internal="10.0.0.1"), "IPv4 address and a port"),
        (replace(APP, internal="10.0.0.1:0"), "IPv4 address and a port"),
        (replace(APP, internal="host:80"), "IPv4 address and a port"),
        (replace(APP, internal="10.0.0.1:80 ssl"), "IPv4 address and a port"),
        (replace(APP, public=PublicListen("0.0.0.0:80", None)), "loopback"),
        (replace(APP, public=PublicListen("10.0.0.1:80", None)), "loopback"),
        (replace(APP, public=PublicListen("127.0.0.1:80", Path("/a\nb"))), "unprintable"),
        (replace(APP, protocol=Protocol.HTTPS), "certificate authority"),
        (replace(APP, tls=WEB.tls), "certificate authority"),
        (replace(WEB, tls=UpstreamTls(Path("/ca"), "a) b")), "not a host name"),
    ],
)
def test_what_cannot_stand_in_the_file_is_refused(pool: PoolConfig, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        render(replace(CONFIG, pools=(pool,)))
    assert message in caught.value.message


def test_a_role_has_one_pool() -> None:
    with pytest.raises(ConfigurationError, match="same role"):
        render(replace(CONFIG, pools=(APP, replace(APP, slots=9))))


def test_tables_are_read_by_column_name_among_other_answers() -> None:
    text = (
        "IP changed\n\n1\n# be_id be_name srv_name srv_addr new_column\n"
        "4 pool_app slot1 10.0.0.2 x\n4 pool_app slot2 10.0.0.3 x\n\n"
        '# pxname,svname,last_chk,scur\npool_app,slot1,"a, ""b""",3\n\nmore\n'
    )
    assert [row["srv_addr"] for row in parse_servers_state(text)] == ["10.0.0.2", "10.0.0.3"]
    (row,) = parse_stat(text)
    assert (row["pxname"], row["last_chk"], row["scur"]) == ("pool_app", 'a, "b"', "3")
    with pytest.raises(OutsideError, match="No such backend"):
        parse_stat("No such backend.\n")


def test_the_masters_processes_are_told_apart() -> None:
    text = (
        "#<PID>          <type>          <reloads>       <uptime>        <version>\n"
        "1162            master          5 [failed: 2]   0d00h02m07s     2.6.12\n"
        "# workers\n1271            worker          1               0d00h00m00s     2.6.12\n"
        "# old workers\n1233            worker          3               0d00h00m43s     2.6.12\n"
        "1234            worker          3               0d00h00m43s     2.6.12\n"
        "# programs\n1300            programs        3               0d00h00m43s     -\n\n"
    )
    processes = parse_processes(text)
    assert processes.failed_reloads == 2
    assert processes.current == (1271,)
    assert processes.leaving == (1233, 1234)
    with pytest.raises(OutsideError):
        parse_processes("\n")


def test_information_keeps_colons_in_values() -> None:
    assert parse_info("Name: HAProxy\ndescription: a: b\nodd line\n") == {
        "Name": "HAProxy",
        "description": "a: b",
    }


def test_a_socket_that_is_not_there_is_an_outside_error(tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match="cannot be reached"):
        HaproxySocket(tmp_path / "admin.sock").ask(["show info"])


class OneAnswer:
    """Listens like HAProxy, and answers the first line with this text, whatever it asks."""

    def __init__(self, path: Path, answer: str) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._answer = answer.encode()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self._listening:
            connection, _ = self._listening.accept()
            with connection:
                connection.makefile("rb").readline()
                connection.sendall(self._answer)


SLOTS = "1\n# be_id be_name srv_name\n4 pool_app slot1\n4 pool_app slot2\n\n"
COUNTS = "# pxname,svname\npool_app,slot1\npool_app,slot2\n\n"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("", id="nothing"),
        pytest.param(SLOTS[:-20], id="a row that is not whole"),
        pytest.param(SLOTS[:-1], id="a table that is not whole"),
        pytest.param(SLOTS, id="one answer of two"),
        pytest.param(SLOTS + COUNTS[:-1], id="a second table that is not whole"),
    ],
)
def test_an_answer_that_ends_early_is_not_taken_for_one(tmp_path: Path, answer: str) -> None:
    """A worker that is killed leaves what it had written; slots would be missing from it."""
    path = tmp_path / "admin.sock"
    OneAnswer(path, answer)
    with pytest.raises(OutsideError, match="before its answer was whole"):
        HaproxySocket(path).ask(["show servers state", "show stat"])


def test_whole_answers_are_told_by_the_line_that_ends_each(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    OneAnswer(path, SLOTS + COUNTS)
    assert HaproxySocket(path).ask(["show servers state", "show stat"]) == SLOTS + COUNTS
