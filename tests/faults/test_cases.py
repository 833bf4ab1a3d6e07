"""The tables of cases are complete: an effect that nobody kills is seen here."""

import ast
from pathlib import Path

import toolkit
from tests.faults.cases import CASES, OTHERS, RECOVERIES, ROLLS, chosen
from toolkit import faults
from toolkit.faults import EFFECTS

PACKAGE = Path(toolkit.__file__).parent


def test_every_failpoint_is_killed_at_with_either_recovery():
    names = set(faults.names())
    assert len(names) >= 40
    assert {(case.name, case.recovery) for case in CASES} == {
        (name, recovery) for name in names for recovery in RECOVERIES
    }
    assert len({str(case) for case in CASES}) == len(CASES)


def test_every_effect_and_every_scenario_is_in_the_share_of_a_run():
    share = chosen()
    assert {(case.scope, case.effect.partition(":")[0]) for case in share} == {
        (scope, effect) for scope, effects in EFFECTS.items() for effect in effects
    }
    assert {case.scenario for case in share} == {*ROLLS, *(name for name, _ in OTHERS)}
    assert {case.moment for case in share} == set(faults.MOMENTS)
    assert {case.recovery for case in share} == set(RECOVERIES)


def test_every_effect_in_the_code_is_listed():
    """Both ways: one in the code that is not listed, and one listed that is not in the code."""
    found = {scope: set() for scope in EFFECTS}
    found["roll"] = {effect.value for effect in _effects_of_rolls()}
    for path in sorted(PACKAGE.rglob("*.py")):
        for scope, effect in _named_effects(ast.parse(path.read_text())):
            found.setdefault(scope, set()).add(effect)
    assert found == {scope: set(effects) for scope, effects in EFFECTS.items()}


def test_an_effect_of_a_made_up_module_is_found():
    source = """
def work(ledger):
    journal = Journal(ledger, {}, scope="up")
    with journal.effect("balancer", {}), journal.effect("carpet", {}):
        faults.reach("bake", "icing", "acted")
    self._put(1, effect="cake")
"""
    assert set(_named_effects(ast.parse(source))) == {
        ("up", "balancer"), ("up", "carpet"), ("bake", "icing"), ("bake", "cake"),
    }  # fmt: skip


def _effects_of_rolls() -> list:
    from toolkit.roll.plan import Effect

    return list(Effect)


def _named_effects(tree: ast.Module) -> list[tuple[str, str]]:
    """Return the effects that a module names, with their scope.

    A journal's scope is looked for in the function that uses it; effects that are passed on by name
    are those of a bake.
    """
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        scope = next(
            (_text(word.value) for call in calls for word in call.keywords if word.arg == "scope"),
            "",
        )
        for call in calls:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            words = [_text(argument) for argument in call.args]
            if name == "effect" and scope and words[0]:
                found.append((scope, words[0]))
            elif name == "reach" and words[0] and words[1]:
                found.append((words[0], words[1]))
            else:
                found += [
                    ("bake", _text(word.value))
                    for word in call.keywords
                    if word.arg == "effect" and _text(word.value)
                ]
    return found


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
