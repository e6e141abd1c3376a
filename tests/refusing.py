"""What every bad input must come to: exit code 2, one sentence, nothing on disk, and nothing started."""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

OPSD = ("train", "miniature_opsd", "cluster.memory_gib=64", "cluster.local_cpus=16")


@dataclass
class Case:
    """A command line that must be refused, and words of the sentence: the key or file, and what to do."""

    name: str
    arguments: tuple[str, ...]
    words: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    prepare: Callable[[Path], None] | None = None


def command(name: str, line: str | list[str], *words: str, prepare=None, **files: str | bytes) -> Case:
    """Files are given by their names, with __ for a dot."""
    arguments = tuple(line.split() if isinstance(line, str) else line)
    return Case(name, arguments, words, {file.replace("__", "."): text for file, text in files.items()}, prepare)


def train(name: str, overrides: str | list[str], *words: str, **more) -> Case:
    return command(name, [*OPSD, *(overrides.split() if isinstance(overrides, str) else overrides)], *words, **more)


def cases(given: list[Case]) -> pytest.MarkDecorator:
    assert len({case.name for case in given}) == len(given)
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name.replace(" ", "-")) for case in given])


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file; of folders, and of the lock of a run that is there, only that they are."""
    return {
        str(path): (0, 0) if path.is_dir() or path.name == ".lock" else (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def assert_refused(case: Case, folder: Path, monkeypatch, capsys) -> None:
    import ray

    from trd_ray.cli import main

    work = folder / "W"
    work.mkdir()
    for name, content in case.files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content.encode() if isinstance(content, str) else content)
    if case.prepare:
        case.prepare(work)
    started = []

    def start(*_, **__):
        started.append(True)
        raise AssertionError("was not refused before Ray starts")

    monkeypatch.setattr(ray, "init", start)
    # Libraries log to the standard error of the test that imported them, which is closed by now.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.chdir(work)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before, generator = snapshot(work), random.getstate()
    capsys.readouterr()
    try:
        code = main(list(case.arguments))
    except SystemExit as ended:
        code = ended.code
    random.setstate(generator)
    out, said = capsys.readouterr()
    assert not started and code == 2, (code, said, out[-600:])
    lines = said.splitlines()
    ours = [line for line in lines if line.startswith("trd: ") or (line.startswith("trd") and " error: " in line)]
    assert len(ours) == 1, said
    assert "Traceback" not in said + out
    assert all(word in said for word in case.words), said
    after = snapshot(work)
    assert after == before, sorted(after.items() ^ before.items())
