import json
from collections import Counter
from itertools import islice

import click
import pytest

from bench.load.__main__ import main
from bench.load.engine import take_turns
from bench.load.recorder import FIRST_FAILURES, MAX_VERSIONS, Recorder, summarise
from bench.load.report import Latency, Report
from bench.load.settings import CLASSES, LoadSettings, parse_mix
from toolkit.errors import ConfigurationError


def finished(recorder: Recorder) -> Report:
    return recorder.report(
        rate=100.0,
        began_at=1_700_000_000.0,
        cpu_seconds=0.5,
        stopped_by="requests",
        connections={"http1-new": 3},
    )


def sample() -> Report:
    recorder = Recorder(("http1-new", "http2-kept"), has_versions=True, late_s=0.1)
    for number in range(4):
        recorder.started("http1-new", due_s=number / 10, now_s=number / 10 + 0.001)
    recorder.started("http2-kept", due_s=0.4, now_s=0.65)
    recorder.succeeded("http1-new", "1", due_s=0.0, now_s=0.010)
    recorder.succeeded("http1-new", "2", due_s=0.1, now_s=0.120)
    recorder.succeeded("http1-new", None, due_s=0.2, now_s=0.230)
    recorder.fell("http1-new", "reset", "/: gone\x1b[2J", now_s=0.35)
    recorder.succeeded("http2-kept", "2", due_s=0.4, now_s=0.8)
    return finished(recorder)


def test_counts_add_up_and_name_what_failed():
    report = sample()
    assert (report.requests, report.ok, report.failed) == (5, 4, 1)
    assert report.failures == {"reset": 1}
    assert report.classes["http1-new"].failures == {"reset": 1}
    assert report.classes["http1-new"].ok == 3
    assert report.classes["http1-new"].connections == 3
    assert report.classes["http2-kept"].failed == 0
    assert not report.is_clean


def test_latency_counts_from_the_schedule_and_lateness_is_told():
    report = sample()
    assert report.classes["http2-kept"].latency_ms.max == pytest.approx(400)
    assert report.max_lateness_ms == pytest.approx(250)
    assert report.late == 1
    assert report.achieved_rate == pytest.approx(4 / 0.649, rel=0.01)


def test_versions_have_their_first_and_last_sight():
    versions = sample().versions
    assert list(versions) == ["(none)", "1", "2"]
    assert (versions["2"].count, versions["2"].first_s, versions["2"].last_s) == (2, 0.12, 0.8)
    assert sum(seen.count for seen in versions.values()) == sample().ok


def test_json_round_trip_and_its_names():
    report = sample()
    assert Report.from_json(report.to_json()) == report
    document = json.loads(report.to_json())
    assert document["first_failures"] == [
        {"at_s": 0.35, "class": "http1-new", "kind": "reset", "detail": "/: gone\x1b[2J"}
    ]
    names = (
        "requests ok failed failures first_failures seconds rate achieved_rate "
        "max_lateness_ms latency_ms classes versions"
    )
    assert set(names.split()) <= set(document)
    assert set(document["latency_ms"]) == {"p50", "p90", "p99", "max"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"requests": 1}'])
def test_what_is_not_a_report_is_refused(text):
    with pytest.raises(ConfigurationError, match="not a load report"):
        Report.from_json(text)


def test_text_tells_kinds_and_carries_no_control_characters():
    text = sample().to_text()
    assert "reset 1" in text
    assert "fell behind its schedule for 1 requests" in text
    assert "\x1b" not in text


def test_an_outcome_that_was_lost_is_noticed():
    recorder = Recorder(("http1-new",), has_versions=False, late_s=0.1)
    recorder.started("http1-new", due_s=0.0, now_s=0.0)
    with pytest.raises(AssertionError, match="1 requests, but 0 ok and 0 failed"):
        finished(recorder)


def test_a_run_without_requests_proves_nothing():
    assert not finished(Recorder(("http1-new",), has_versions=False, late_s=0.1)).is_clean


def test_what_a_server_can_grow_is_bounded():
    recorder = Recorder(("http1-new",), has_versions=True, late_s=0.1)
    for number in range(3 * MAX_VERSIONS):
        recorder.started("http1-new", due_s=0.0, now_s=0.0)
        recorder.succeeded("http1-new", str(number), due_s=0.0, now_s=0.1)
        recorder.started("http1-new", due_s=0.0, now_s=0.0)
        recorder.fell("http1-new", "reset", "x" * 10_000, now_s=0.1)
    report = finished(recorder)
    assert len(report.versions) == MAX_VERSIONS + 1
    assert report.versions["(other)"].count == 2 * MAX_VERSIONS
    assert len(report.first_failures) == FIRST_FAILURES
    assert len(report.to_json()) < 50_000


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ([], Latency()),
        ([5], Latency(5, 5, 5, 5)),
        (range(1, 101), Latency(50, 90, 99, 100)),
        ([1] * 99 + [1000], Latency(1, 1, 1, 1000)),
        ([3, 1, 2], Latency(2, 3, 3, 3)),
    ],
)
def test_percentiles(milliseconds, expected):
    assert summarise([value / 1000 for value in milliseconds]) == expected


@pytest.mark.parametrize(
    ("weights", "turns", "expected"),
    [
        ({"a": 1, "b": 1}, 6, {"a": 3, "b": 3}),
        ({"a": 3, "b": 1}, 8, {"a": 6, "b": 2}),
        ({"a": 0.5, "b": 0.25, "c": 0.25}, 400, {"a": 200, "b": 100, "c": 100}),
    ],
)
def test_turns_follow_weights(weights, turns, expected):
    assert Counter(islice(take_turns(weights), turns)) == expected


def test_turns_are_spread_out():
    assert list(islice(take_turns({"a": 1, "b": 1, "c": 1}), 6)) == ["a", "b", "c"] * 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://192.0.2.1:80/", "only a loopback address"),
        ("http://localhost:80/", "only a loopback address"),
        ("http://0.0.0.0:80/", "only a loopback address"),
        ("http://[2001:db8::1]:80/", "only a loopback address"),
        ("ftp://127.0.0.1/", "must be like"),
        ("127.0.0.1:8443", "must be like"),
        ("http://127.0.0.1:99999/", "ort"),
        ("http://127.0.0.1/path", "use paths"),
        ("https://127.0.0.1/", "needs a CA file"),
    ],
)
def test_bad_urls(url, message):
    with pytest.raises(ConfigurationError, match=message):
        LoadSettings(url)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate", 0.0),
        ("rate", float("nan")),
        ("requests", 0),
        ("max_seconds", float("inf")),
        ("max_seconds", -1.0),
        ("paths", ()),
        ("paths", ("api",)),
        ("mix", {"http3-new": 1.0}),
        ("mix", {"http1-new": 0.0}),
        ("mix", {"http1-new": 2.0, "http2-new": -1.0}),
    ],
)
def test_bad_settings(field, value):
    with pytest.raises(ConfigurationError, match=field):
        LoadSettings("http://127.0.0.1:80/", **{field: value})


@pytest.mark.parametrize(
    ("url", "name", "authority"),
    [
        ("http://127.0.0.1/", None, "127.0.0.1"),
        ("http://127.0.0.1:81/", "guestbook.test", "guestbook.test:81"),
        ("http://[::1]:81/", None, "[::1]:81"),
    ],
)
def test_authority(url, name, authority):
    assert LoadSettings(url, server_name=name).endpoint.authority == authority


def test_settings_survive_the_command_line(tmp_path):
    settings = LoadSettings(
        "http://127.0.0.1:81/",
        server_name="guestbook.test",
        paths=("/", "/api/entries"),
        rate=12.5,
        requests=7,
        max_seconds=3.0,
        until_file=tmp_path / "stop",
        by_header="X-Version",
        mix={"http1-new": 1.0, "http2-kept": 2.5},
        timeout_s=1.5,
        grace_s=0.5,
        kept_connections=3,
        idle_s=1.0,
        late_ms=20.0,
    )
    words = settings.arguments()
    wanted = main.make_context("load", words).params
    for name in ("as_json", "report_file", "progress_file"):
        del wanted[name]
    assert LoadSettings(**{**wanted, "mix": parse_mix(wanted["mix"])}) == settings


def test_every_setting_has_an_option_and_its_default():
    defaults = LoadSettings("http://127.0.0.1:81/")
    wanted = main.make_context("load", ["--url", defaults.url]).params
    assert parse_mix(wanted.pop("mix")) == defaults.mix
    for name in ("as_json", "report_file", "progress_file"):
        del wanted[name]
    assert LoadSettings(**wanted) == defaults
    assert tuple(defaults.mix) == CLASSES


def test_wrong_usage_is_a_usage_error():
    with pytest.raises(click.UsageError, match="loopback"):
        main.main(["--url", "http://192.0.2.1/"], standalone_mode=False)
