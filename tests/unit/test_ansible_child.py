"""What is passed on of a task that failed."""

import pytest

from toolkit.ansible.child import MESSAGE_LIMIT, failure_message


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({}, "it gave no message"),
        ({"msg": "", "stderr": " \n"}, "it gave no message"),
        ({"msg": "non-zero return code"}, "non-zero return code"),
        (
            {"msg": "non-zero return code", "stderr": "no such user\n", "stdout": "hello"},
            "non-zero return code\nno such user\nhello",
        ),
        (
            {
                "msg": "One or more items failed",
                "results": [
                    {"msg": "fine", "failed": False},
                    {"msg": "non-zero return code", "stderr": "no space left", "failed": True},
                    "skipped",
                ],
            },
            "One or more items failed\nnon-zero return code\nno space left",
        ),
        ({"msg": "the same", "stderr": "the same"}, "the same"),
    ],
)
def test_a_failure_is_told_in_the_machines_own_words(result: dict, expected: str) -> None:
    assert failure_message(result) == expected


def test_endless_output_hides_neither_the_reason_nor_its_own_end() -> None:
    told = failure_message(
        {"msg": "it failed", "stderr": "the reason", "stdout": "x" * 9999 + "end"}
    )
    assert told.startswith("it failed\nthe reason\nx")
    assert told.endswith("xend")
    assert len(told) < MESSAGE_LIMIT + 10
