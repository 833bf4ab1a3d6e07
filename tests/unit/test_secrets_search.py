"""The search finds what is there, wherever it lies, although `grep` chooses the files first."""

import os
import random
from pathlib import Path

import pytest

from toolkit.secrets import search

FORM = "raw"


def found(path: Path, *needles: bytes) -> list[tuple[str, int]]:
    wanted = [(needle, str(number), FORM) for number, needle in enumerate(needles)]
    return [(hit["secret"], hit["offset"]) for hit in search.find([str(path)], wanted)]


@pytest.mark.parametrize(
    "needle",
    [
        b"plain-value",
        b"\x00\x01binary\x00\xff",
        b"first line\nsecond longer line\nthird",
        b"\n\nends in line breaks\n\n",
        "größer als üblich".encode(),
        b"\xff\xfe\x80\x81\x82\x83\x84",
        b".*[a-z]\\+$(x)^",
        b"a\nb\nc\nd\ne\nf",
    ],
)
def test_any_bytes_are_found_where_they_are(tmp_path, needle):
    path = tmp_path / "file"
    path.write_bytes(b"\0" * 1000 + needle + b"\0" * 1000)
    assert found(path, needle, b"something else") == [("0", 1000)]
    path.write_bytes(b"\0" * 1000 + needle[:-1] + b"\0" * 1000)
    assert found(path, needle, b"something else") == []


def test_random_values_in_random_bytes_are_found(tmp_path):
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(20):
        needles = [chance.randbytes(chance.randint(8, 60)) for _ in range(10)]
        chosen = chance.randrange(len(needles))
        before, after = chance.randbytes(chance.randint(0, 5000)), chance.randbytes(3000)
        (tmp_path / "file").write_bytes(before + needles[chosen] + after)
        assert found(tmp_path / "file", *needles) == [(str(chosen), len(before))]


def test_a_value_across_two_chunks_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(search, "OVERLAP_BYTES", 100)
    (tmp_path / "file").write_bytes(b"." * 990 + b"across the border" + b"." * 5000)
    assert found(tmp_path / "file", b"across the border") == [("0", 990)]


def test_many_files_are_all_searched(tmp_path):
    """More than one `grep` takes; one is gone, one cannot be read as a file."""
    paths = [tmp_path / f"-{number}" for number in range(search.GROUP_FILES + 50)]
    for number, path in enumerate(paths):
        path.write_bytes(b"the-value" if number % 60 == 7 else b"nothing")
    paths.insert(3, tmp_path / "gone")
    hits = search.find([str(path) for path in paths], [(b"the-value", "name", FORM)])
    assert [paths[hit["file"]].name for hit in hits] == [f"-{n}" for n in (7, 67, 127, 187, 247)]


def test_in_doubt_python_looks_itself(tmp_path, monkeypatch):
    """A `grep` that fails excuses no file."""
    path = tmp_path / "file"
    path.write_bytes(b"the-value")
    monkeypatch.setattr(search, "_grep", lambda files, group, lines: list(group))
    assert found(path, b"the-value") == [("0", 0)]
    monkeypatch.undo()
    gone = str(tmp_path / "gone")
    assert search._grep([str(path), gone], [0, 1], [b"not there"]) == [0, 1]


def test_a_descriptor_is_searched_as_a_file():
    descriptor = os.memfd_create("spool")
    try:
        os.write(descriptor, b"x" * 10 + b"the-value")
        hits = search.find([f"/proc/self/fd/{descriptor}"], [(b"the-value", "name", FORM)])
    finally:
        os.close(descriptor)
    assert [hit["offset"] for hit in hits] == [10]
