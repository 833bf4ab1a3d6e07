"""Smoke tests: which roles may be rolled at all, and that tests leave the project as it was."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit import shell
from toolkit.errors import ConfigurationError, SmokeTestsFailed
from toolkit.project.model import BaseSpec, LayerSpec, Project, RoleSpec
from toolkit.smoke import ORDER
from toolkit.smoke.runner import PytestRunner, _read, pytest_command


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., PytestRunner]:
    def make_one(role: str, *layers: str) -> PytestRunner:
        specs = tuple(LayerSpec(name, (), {}) for name in layers)
        spec = RoleSpec(role, specs, 80, "http", "/", (), {}, None, None)
        base = BaseSpec("bookworm", None, ())
        return PytestRunner(
            Project(tmp_path, "shop", "/src", base, {role: spec}),
            scratch=tmp_path / "scratch",
            namespace="none",
            authority=None,
            tls_name=lambda name: name,
            init_pid=lambda _name: None,
        )

    return make_one


@pytest.mark.parametrize(
    ("tested", "is_refused"),
    [
        pytest.param("hello", False, id="the role of its name"),
        pytest.param("server", False, id="its uppermost layer"),
        pytest.param("base", True, id="only the layer below"),
        pytest.param("other", True, id="none of them"),
    ],
)
def test_a_role_needs_tests_of_its_own(
    make: Callable[..., PytestRunner], tmp_path: Path, tested: str, is_refused: bool
) -> None:
    runner = make("hello", "base", "server")
    smoke = tmp_path / "roles" / tested / "smoke"
    smoke.mkdir(parents=True)
    (smoke / "README.md").touch()
    for name in ("hello", "server"):
        (tmp_path / "roles" / name / "smoke").mkdir(parents=True, exist_ok=True)
    (smoke / "test_it.py").touch()
    if not is_refused:
        runner.need_tests("hello")
        return
    with pytest.raises(ConfigurationError, match="role hello has no smoke tests") as caught:
        runner.need_tests("hello")
    assert str(tmp_path / "roles" / "hello" / "smoke") in caught.value.message


def test_smoke_tests_write_nothing_into_the_project(tmp_path: Path) -> None:
    """A project that ignores nothing would else be dirty at the next bake."""
    smoke = tmp_path / "roles" / "hello" / "smoke"
    smoke.mkdir(parents=True)
    (smoke / "test_it.py").write_text("def test_it():\n    assert 1 + 1 == 2\n")
    outcomes, order = tmp_path / "outcomes", tmp_path / "order"
    order.write_text(json.dumps({"outcomes": str(outcomes)}))
    done = subprocess.run(
        pytest_command(tmp_path / "roles", [smoke]),
        env=shell.environment(**{ORDER: str(order), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(outcomes.read_text())["passed"] is True
    assert [path.name for path in (tmp_path / "roles").rglob("*")] == [
        "hello",
        "smoke",
        "test_it.py",
    ]


def test_outcomes_that_are_half_written_are_no_bug(tmp_path: Path) -> None:
    """The file system of `/run` is full, say."""
    outcomes = tmp_path / "outcomes"
    outcomes.write_text('{"name": "test_it", "passed": true, "seconds": 0.1, "message": ""}\n{"na')
    with pytest.raises(SmokeTestsFailed, match="damaged"):
        _read(outcomes, "app-1")
