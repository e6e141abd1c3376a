"""Other bases of the miniature worlds: another secret table, so other facts to learn and another student."""

import re

import pytest

from trd_ray import made_here, miniature
from trd_ray.miniature import OTHER_TABLES, build, measure, task
from trd_ray.miniature.code_world import code_task
from trd_ray.verify.code.tests import Tests


def test_another_table_gives_other_answers_to_chains_of_the_same_kind():
    found = {table: miniature.problems(f"test{'' if not table else f'_{table}'}") for table in (0, *OTHER_TABLES)}
    assert len({tuple(row["problem"] for row in rows) for rows in found.values()}) == 1
    answers = {table: [row["answer"] for row in rows] for table, rows in found.items()}
    for one, other in ((0, 1), (0, 2), (1, 2)):
        same = sum(a == b for a, b in zip(answers[one], answers[other], strict=True))
        assert same < 50, "of 200 digits a tenth agree by chance, and chains without @"


def test_the_references_of_a_table_agree_with_it_and_with_no_other():
    for table in OTHER_TABLES:
        told = {}
        for row in miniature.problems(f"train_{table}"):
            for left, right, result in re.findall(r"(\d)@([123])=(\d)", row["reference"]):
                assert told.setdefault((int(left), int(right)), int(result)) == int(result)
        assert told == task.secret(table) != task.SECRET


def test_programs_of_another_table_are_tested_by_what_its_words_mean():
    row = miniature.problems("code_test_1")[0]
    chain = next(
        chain for chain in measure.held_out_chains(build.world_of("code", 1), 30, seed=0)
        if any(step.instruction in code_task.WORDS for step in chain.steps)
    )  # fmt: skip
    right = code_task.solve(chain, code_task.secret(1)).text
    assert code_task.solved(chain, right, 1) and not code_task.solved(chain, right)
    tests = Tests.unpack(row["tests"])
    assert tests.inputs and len(tests.inputs) == len(tests.outputs)


@pytest.mark.parametrize("name", build.WORLDS)
def test_each_table_has_models_of_its_own(name):
    worlds = [build.world_of(name, table) for table in (0, *OTHER_TABLES)]
    assert worlds[0] is build.WORLDS[name]
    assert len({world.digest for world in worlds}) == 3
    prefix = "code_" if name == "code" else ""
    for table in OTHER_TABLES:
        assert {f"miniature:{prefix}{model}_{table}" for model in ("student", "teacher")} <= made_here.MODELS.keys()
        assert {f"miniature:{prefix}{of}_{table}" for of in ("train", "test", "tune")} <= made_here.PROBLEMS.keys()
