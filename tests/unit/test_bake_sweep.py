"""What a bake that was killed has left is told from what an environment has."""

from pathlib import Path

import pytest

from toolkit.bake import builder
from toolkit.state import State


def test_environment_whose_name_begins_as_a_builds_is_let_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path)
    monkeypatch.setattr(State, "runtime", tmp_path / "run")
    monkeypatch.setattr(State, "ram", tmp_path / "ram")
    removed: list[str] = []
    monkeypatch.setattr(builder.cgroups, "remove", removed.append)
    monkeypatch.setattr(
        builder.cgroups,
        "groups_below",
        lambda _group: ["build", "build-farm", f"{builder.BUILD}-app", "ansible-build"],
    )
    for name in ("build", builder.BUILD):
        (tmp_path / "run" / name).mkdir(parents=True)
    builder.sweep(state)
    assert removed == [f"toolkit-{state.id}/{builder.BUILD}-app"]
    assert [one.name for one in (tmp_path / "run").iterdir()] == ["build"]
