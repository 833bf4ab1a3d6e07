"""The benchmark of faults notices rolls that did not end as they should."""

import random
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from bench import faults
from bench.faults import Arena, Deed
from examples.command import Answer
from toolkit.errors import ToolkitError


def arena(image: str) -> Arena:
    """Return one in which two machines with an image serve."""
    names = ["one", "two"]
    state = {
        "role": faults.ROLE, "image": image, "pool": {"serving": names}, "machines": names,
    }  # fmt: skip
    lab: Any = SimpleNamespace(
        toolkit=SimpleNamespace(result=lambda *_: [state]),
        bake=lambda version: {"images": {faults.ROLE: f"image of {version}"}},
    )
    return Arena(lab, random.Random(1))


def turn(code: int, *, image: str = "image of v1") -> faults.Turn:
    answer = Answer(code, '{"outcome": "rolled"}', "", 0.0)
    return faults._turn(arena(image), lambda: Deed("none", [answer], [(0,)]))


def test_wrong_exit_code_is_a_problem() -> None:
    assert turn(0).problem == ""
    assert "exit codes (3,), not (0,)" in turn(3).problem


def test_broken_version_that_serves_is_a_problem_and_not_the_end() -> None:
    assert "no good version" in turn(0, image="image of the broken one").problem


def test_roll_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "STEP_DEADLINE_S", 0.05)
    sent: list[int] = []
    running: Any = SimpleNamespace(
        is_running=True, stderr="", send=sent.append, wait=lambda: sent.append(0)
    )
    with pytest.raises(ToolkitError, match="did not come to launch"):
        faults._await_step(running, "launch")
    assert sent == [signal.SIGKILL, 0]
