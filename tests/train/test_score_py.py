"""Whole runs that a function of the user's judges: the miniature world, whose answers a score.py reads for itself."""

import shutil

import pytest

from runs import NO_EVALUATION, run, start, wait_for_step

SCORE = """\
from reading import last


def score(prompts, completions, completion_ids, answer, **kwargs):
    print("judging", len(completions))
    assert all(len(ids) > 0 and isinstance(ids[0], int) for ids in completion_ids)
    return {
        "rewards": [float(last(text) == last(gold)) for text, gold in zip(completions, answer)],
        "feedback": [f"It says {last(text)} in {len(ids)}." for text, ids in zip(completions, completion_ids)],
    }
"""
READING = """\
import re


def last(text):
    found = re.findall(r"-?\\d+", text)
    return found[-1] if found else None
"""
SMALL = ["steps=4", "rollouts_per_step=16", "checkpoint.every_steps=2", *NO_EVALUATION]

pytestmark = pytest.mark.long


@pytest.fixture
def judged(tmp_path):
    """The arguments of a run that score.py judges, and its folder."""
    place = tmp_path / "score.py"
    place.write_text(SCORE)
    (tmp_path / "reading.py").write_text(READING)
    return tmp_path / "run", [*SMALL, f"verify.function={place}:score", "refiner.feedback=none"], place


def test_a_run_is_judged_by_files_that_are_gone_by_then_and_goes_on_without_them(judged, tmp_path):
    directory, arguments, place = judged
    process = start(directory, "train", "miniature_opsd", *arguments)
    wait_for_step(process, directory, 1)
    shutil.move(place, place.with_name("away.py"))  # its text is in the recipe, and that of what it imports
    (tmp_path / "reading.py").unlink()
    process.terminate()
    process.wait(timeout=120)
    done = run(directory, "train", str(directory / "recipe.yaml"), "--resume")
    assert done.code == 0 and not done.left, done.output[-3000:]
    assert len(done.rows) == 4 * 16
    for y in ("y_o", "y_r"):
        there = [row[y] for row in done.rows if row[y]]
        assert {one["passed"] for one in there} == {True, False} and all(one["extracted"] for one in there)
        # The ids that the function was given are those that the engine sampled.
        assert all(one["feedback"].endswith(f" in {len(one['ids'])}.") for one in there)


@pytest.mark.parametrize("changed", ["score.py", "reading.py"])
def test_a_changed_function_does_not_go_on_with_the_run(judged, changed):
    directory, arguments, place = judged
    assert run(directory, "train", "miniature_opsd", *arguments, "steps=1").code == 0
    file = place.with_name(changed)
    file.write_text(file.read_text() + "CHANGED = True\n")
    refused = run(directory, "train", "miniature_opsd", *arguments, "--resume")
    assert refused.code == 2 and "began with another recipe: put back verify.sources" in refused.output
