"""Items of reasoning_gym as problems, and their own scorers as the verifier. Skipped where the library is missing."""

import json
import os
import time

import psutil
import pyarrow as pa
import pytest

from trd_ray import rows
from trd_ray.config import DataConfig, EvaluationConfig, VerifyConfig, from_tree
from trd_ray.errors import BadRow, UserError
from trd_ray.problems.load import load_problems
from trd_ray.verify import verifier
from trd_ray.verify.chosen import Chosen
from trd_ray.verify.gym.gym_verifier import GymVerifier, answer_of, entry_of
from trd_ray.verify.gym.library import ReasoningGym

# A dozen of about 100: exact answers, many right answers, grids, formulas, text; metadata with tuples and int keys.
DOZEN = (
    "spell_backward", "gsm_symbolic", "countdown", "n_queens", "simple_integration", "graph_color", "arc_1d",
    "knights_knaves", "sudoku", "string_insertion", "polynomial_multiplication", "rubiks_cube",
)  # fmt: skip
# These evaluate an answer as Python, some of them through SymPy.
EVALUATING = (
    "n_queens", "countdown", "simple_integration", "string_insertion", "spiral_matrix", "binary_matrix", "puzzle24",
    "polynomial_multiplication", "intermediate_integration",
)  # fmt: skip
# The second where its pycosat is not installed; the scorer of the third passes any text.
NOT_MADE = {"composite", "zebra_puzzles", "game_of_life_halting"}


@pytest.fixture(scope="module")
def families() -> list[str]:
    gym = ReasoningGym()
    try:
        return gym.families()
    except UserError as e:
        pytest.skip(str(e))
    finally:
        gym.close()


@pytest.fixture(scope="module")
def verify(families):
    made = GymVerifier(timeout_s=20)
    yield made
    made.close()


def problems(family: str, split: str = "train", **arguments) -> list[dict]:
    spec = DataConfig(path=f"reasoning_gym:{family}", split=split, arguments={"size": 6, "test": 2} | arguments)
    return load_problems(spec).table.to_pylist()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So <answer>42</answer>.", "42"),
        ("<answer>1</answer> no, <answer>\n 2\n</answer>", "2"),
        ("between <answer> and </answer> it says <ANSWER>3</ANSWER>", "3"),
        ("<answer>```\n1 2\n3 4\n```</answer>", "1 2\n3 4"),
        ("<answer>$\\boxed{7}$</answer>", "7"),
        ("the answer is \\boxed{8}", "8"),
        ("<answer>cut off", None),
        ("</answer><answer>", None),
        ("no answer", None),
        ("", None),
    ],
)
def test_the_last_answer_is_read(text, answer):
    found = answer_of(text)
    assert (found and found.strip()) == answer


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", "<answer></answer", "\\boxed{", "<answer>```\n"])
def test_megabytes_are_read_at_once(piece):
    start = time.monotonic()
    answer_of(piece * (2_000_000 // len(piece)))
    assert time.monotonic() - start < 2


def test_another_data_set_with_columns_of_its_own_is_not_taken_for_an_item():
    for extra in (None, "", "{}", '{"reasoning_gym": 3}', '["reasoning_gym"]', '{"reasoning_gym', '{"a": 1}'):
        assert entry_of({"extra": extra}) is None
    with pytest.raises(BadRow):
        GymVerifier(1)("<answer>1</answer>", {"problem_id": "p", "extra": None})


def test_a_dozen_families_load_and_their_own_answers_pass(families, verify):
    for family in DOZEN:
        found = problems(family, size=3, test=1)
        assert found and pa.Table.from_pylist(found, schema=pa.schema(rows.PROBLEM)).num_rows == len(found), family
        assert all("<answer>" in one["problem"] for one in found)
        shown = [one for one in found if one["reference"]]
        assert shown, family
        for one in shown[:3]:
            verdict = verify(f"I think so.\n{one['reference']}", one)
            assert verdict.passed and verdict.score == 1 and not verdict.detail, (family, verdict)
        for text in ("<answer>nonsense</answer>", "<answer></answer>", "nothing", "", found[0]["problem"]):
            verdict = verify(text, found[0])
            assert not verdict.passed and verdict.judged and verdict.score < 1 and verdict.detail, (family, text)


def test_partial_credit_is_kept_and_does_not_pass(families, verify):
    board = next(one for one in problems("n_queens"))
    as_list = repr([line.split() for line in board["answer"].splitlines()])
    verdict = verify(f"<answer>{as_list}</answer>", board)
    assert (verdict.passed, verdict.score, verdict.detail) == (False, 0.5, "score 0.50")
    assert "0.50 of 1" in verdict.feedback and board["answer"] not in verdict.feedback


def test_the_verifier_of_a_recipe_is_chosen_by_the_row(families):
    verify = verifier(VerifyConfig(timeout_s=20))
    [item, *_] = problems("gcd")
    assert verify(item["reference"], item).passed
    sum_ = {"problem_id": "p", "problem": "1+1", "answer": "2", "reference": "", "extra": json.dumps({"level": 1})}
    assert verify(r"\boxed{2}", sum_).passed and not verify("<answer>2</answer>", sum_).passed
    verify.close()


HALF = (False, 0.5)
FULL = (True, 1.0)


def test_an_item_passes_at_full_marks_alone_however_its_scorer_is_named(families):
    """verify.pass_at is for the function beside it, and a source may name the scorer."""
    board = problems("n_queens")[0] | {"source": "boards"}
    partly = f"<answer>{[line.split() for line in board['answer'].splitlines()]!r}</answer>"
    own = {"mine.py": "def f(text, problem): return 0.6"}
    mine = {"function": "mine.py:f"}
    for verify in (
        VerifyConfig(timeout_s=20, pass_at=0.5),
        VerifyConfig(timeout_s=20, function="reasoning_gym"),
        VerifyConfig.model_validate(
            {"timeout_s": 20, "pass_at": 0.5, "functions": {"mine": mine}, "sources": own}
            | {"by_source": {"boards": "reasoning_gym", "others": "mine"}}
        ),
    ):
        chosen = Chosen(verify)
        try:
            found = [chosen(text, board) for text in (partly, board["reference"], "nothing")]
            assert [(one.passed, one.score) for one in found] == [HALF, FULL, (False, 0.0)]
            if verify.functions:
                assert chosen("any", board | {"source": "others"}).passed
        finally:
            chosen.close()


def test_the_score_of_an_item_counts_among_several_verifiers(families):
    [board, *_] = problems("n_queens")
    partly = f"<answer>{[line.split() for line in board['answer'].splitlines()]!r}</answer>"
    functions = {"scorer": {"function": "reasoning_gym", "weight": 3.0}, "form": {"function": "mine.py:f"}}
    chosen = Chosen(
        VerifyConfig.model_validate(
            {"timeout_s": 20, "functions": functions, "sources": {"mine.py": "def f(text, problem): return 1"}}
        )
    )
    verdict = chosen(partly, board)
    assert (verdict.score, verdict.parts) == (0.625, {"scorer": 0.5, "form": 1.0}) and not verdict.passed
    assert chosen(board["reference"], board).passed
    chosen.close()


def test_a_lower_mark_for_items_is_refused_with_the_remedy():
    for verify in (
        {"function": "reasoning_gym", "pass_at": 0.5},
        {"functions": {"items": {"function": "reasoning_gym", "pass_at": 0.5}}},
    ):
        with pytest.raises(UserError, match="pass_at is 0.5, but an item of reasoning_gym passes at 1.0 alone"):
            from_tree({"verify": verify})


def test_two_processes_make_the_same_items_and_splits_have_none_in_common(families):
    for family in ("coin_flip",):
        train, again = (problems(family, size=60, test=20) for _ in range(2))
        assert train == again
        test = problems(family, split="test", size=60, test=20)
        assert len(test) == 20
        assert not {one["problem"] for one in train} & {one["problem"] for one in test}
        assert not {one["problem_id"] for one in train} & {one["problem_id"] for one in test}


def test_an_evaluation_is_the_test_split_behind_the_training_items(families):
    spec = EvaluationConfig(path="reasoning_gym:gcd", limit=3)
    found = load_problems(spec, also_arguments={"size": 10, "test": 5}).table
    assert found["problem_id"].to_pylist() == [f"gcd/0/{i}" for i in (10, 11, 12)]


@pytest.mark.parametrize(
    ("family", "arguments", "words"),
    [
        ("spell_backwards", {}, "did you mean spell_backward"),
        ("", {}, "no family ''"),
        ("composite", {}, "mixes other families"),
        ("game_of_life_halting", {}, "full marks"),
        ("gcd", {"colour": 3}, "unexpected keyword argument 'colour'"),
    ],
)
def test_what_the_library_does_not_make_is_refused(families, family, arguments, words):
    with pytest.raises(UserError, match=words):
        problems(family, **arguments)


def test_a_library_that_is_missing_is_named_with_the_command(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    gym = ReasoningGym()
    try:
        gym.families()
    except UserError as e:
        assert "pip install reasoning-gym" in str(e)
    else:
        pytest.skip("it is installed beside everything else")
    finally:
        gym.close()


HOSTILE = [
    "__import__('os').system('touch {file}')",
    "open('{file}', 'w').write('x')",
    "[].__class__.__base__.__subclasses__()",
    "exit()",
    "9**9**9**9",
    "factorial(10**9)",
    "'a' * 10**12",
    "[" * 5000,
    "(" * 15000,
    "1+" * 9000 + "1",
    "x" * 200_000,
    "\ud800\x00\x1b[2J",
    '{"a": ' * 3000,
    "1" * 15000,
    "None",
]


@pytest.mark.parametrize("family", ["n_queens", *(pytest.param(one, marks=pytest.mark.long) for one in EVALUATING[1:])])
def test_hostile_answers_do_nothing_but_fail(families, tmp_path, family):
    file = tmp_path / "touched"
    verify = GymVerifier(timeout_s=0.5)
    try:
        [item, *_] = problems(family, size=1, test=1)
        for answer in HOSTILE:
            start = time.monotonic()
            verdict = verify(f"<answer>{answer.replace('{file}', str(file))}</answer>", item)
            assert not verdict.passed and verdict.judged and verdict.detail, (answer[:40], verdict)
            assert time.monotonic() - start < 8
            verdict.extracted.encode()
    finally:
        verify.close()
    assert not file.exists()


def test_no_process_is_left_after_close(families):
    before = set(psutil.Process(os.getpid()).children(recursive=True))
    verify = GymVerifier(timeout_s=20)
    [item, *_] = problems("gcd")
    verify(item["reference"], item)
    mine = [one for one in psutil.Process(os.getpid()).children(recursive=True) if one not in before]
    assert len(mine) == 2
    verify.close()
    assert psutil.wait_procs(mine, timeout=5)[1] == []


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(4))
def test_every_family_loads_or_is_refused_with_a_sentence(families, verify, part):
    made, without_answer, lax = [], [], []
    assert len(families) > 100
    for family in families[part::4]:
        try:
            found, again = (problems(family, size=20, test=10) for _ in range(2))
        except UserError as e:
            assert family in NOT_MADE and len(str(e)) > 40, (family, e)
            continue
        assert found == again, family
        made.append(family)
        shown = [one for one in found if one["reference"]]
        without_answer += [] if shown else [family]
        passed = [verify(one["reference"], one) for one in shown]
        assert all(one.passed for one in passed), (family, [one for one in passed if not one.passed])
        lax += [family] if any(verify("<answer>nonsense</answer>", one).passed for one in found[:5]) else []
    assert set(families[part::4]) - set(made) <= NOT_MADE
    assert set(without_answer) <= {"boxnet", "rush_hour"}  # whose items hold none of the many that are right
    assert not lax
