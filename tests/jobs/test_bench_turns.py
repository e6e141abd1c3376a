"""What the comparison of placements is asked, and the table that it prints; no run is started."""

import subprocess
import sys

import pytest

from jobs.bench_turns import Measured, asked, main, overrides, pss_bytes, table
from trd_ray.config import load


def test_each_placement_is_the_same_recipe_but_for_that_key():
    given = asked(["miniature_opsd", "--steps", "3"])
    recipes = {one: load(given.recipe, overrides(one, given)) for one in given.placements}
    assert list(recipes) == ["separate", "shared", "timeshare"]
    alike = [recipe.model_copy(update={"placement": "separate"}) for recipe in recipes.values()]
    assert alike[0] == alike[1] == alike[2] and alike[0].steps == 3 and alike[0].stream.max_staleness == 0


def test_an_override_counts_for_all():
    given = asked(["--placements", "separate,timeshare", "--override", "seed=7"])
    assert [load(given.recipe, overrides(one, given)).seed for one in given.placements] == [7, 7]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--placements", "separate,together"], "there is no placement 'together': choose among separate, shared"),
        (["--steps", "1"], "--steps 1 leaves nothing to measure"),
        (["--override", "teacher.follow=ema", "--override", "sync.lora=merged"], "teacher.follow=frozen"),
        (["--override", "no.such=1"], "no"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_run(arguments, said, capsys):
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("bench_turns: ") and said in told


def test_the_table_says_medians_without_the_first_step_and_what_differs():
    def run(placement: str, step_s: list[float], tokens: list[list[int]], **more: float) -> Measured:
        lines = [{"seconds/step": s, "seconds/train": 1.0, "seconds/sync": 0.5} | more for s in step_s]
        return Measured(placement, lines, 300 * 2**20, tokens)

    said = table(
        [
            run("separate", [90.0, 4.0, 6.0, 5.0], [[1, 2], [3, 4]]),
            run("timeshare", [90.0, 7.0, 7.0, 7.0], [[1, 2], [3, 5]], **{"seconds/rest": 0.25, "seconds/wake": 0.5}),
        ]
    ).splitlines()
    assert said[2] == "| separate | 5.00 | 1.00 | 0.50 | - | - | - | 300 | 100.0% |"
    assert said[3] == "| timeshare | 7.00 | 1.00 | 0.50 | 0.25 | 0.50 | - | 300 | 75.0% |"


def test_memory_is_that_of_a_process_and_its_children_and_none_of_one_that_has_ended():
    program = "import time; b = bytearray(30_000_000); print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline()
    assert 30_000_000 < pss_bytes(child.pid) < 200_000_000
    child.kill()
    child.wait()
    assert pss_bytes(child.pid) == 0
