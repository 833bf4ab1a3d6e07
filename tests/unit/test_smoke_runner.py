"""Which roles may be rolled at all: those with smoke tests of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.errors import ConfigurationError
from toolkit.project.model import BaseSpec, LayerSpec, Project, RoleSpec
from toolkit.smoke.runner import PytestRunner


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
