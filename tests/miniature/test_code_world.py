"""The miniature world of code: its tests tell right programs from wrong ones, and Python reads its texts as it does."""

import functools
import itertools
import random
import re

import pytest
import torch
from transformers import Qwen3ForCausalLM

from trd_ray import config, miniature, verify
from trd_ray.distill.onset import onset_ids
from trd_ray.miniature import build, measure
from trd_ray.miniature.beliefs import random_beliefs
from trd_ray.miniature.code_world import code_pretrain, code_task, code_tokenizer, statements
from trd_ray.problems.load import load_problems
from trd_ray.verify.code.tests import Tests

WORLD = build.WORLDS["code"]
BELIEFS = random_beliefs(code_task.SECRET, statements.MEANINGS, random.Random(f"beliefs {WORLD.plan.seed}"))

# Our own reading of the instructions, apart from the package's.
SAYS = {
    "add": lambda xs, c: [x + c for x in xs],
    "subtract": lambda xs, c: [x - c for x in xs],
    "multiply": lambda xs, c: [x * c for x in xs],
    "keep above": lambda xs, c: [x for x in xs if x > c],
    "drop first": lambda xs, c: xs[c:],
    "drop last": lambda xs, c: xs[: len(xs) - c] if len(xs) > c else [],
    "negate": lambda xs, _: [0 - x for x in xs],
    "reverse": lambda xs, _: list(reversed(xs)),
    "sort": lambda xs, _: sorted(xs),
}


problems = functools.cache(miniature.problems)


def code_of(response: str) -> str:
    """The program in a response's last block."""
    return response.rpartition("```python\n")[2].removesuffix("\n```")


def python(program, stdin: str) -> str:
    """What Python prints for a program of our own making (never for what a model wrote: that needs the sandbox)."""
    printed: list[str] = []
    scope = {"input": lambda: stdin, "print": lambda *values: printed.append(" ".join(map(str, values)))}
    exec(program, scope)
    return "\n".join(printed)


def passes(response: str, row: dict) -> bool:
    tests, program = Tests.unpack(row["tests"]), compile(code_of(response), "program", "exec")
    return all(python(program, i).split() == o.split() for i, o in zip(tests.inputs, tests.outputs, strict=True))


def chain_of(row: dict) -> code_task.ProgramChain:
    _, *told, output = row["problem"].split("; ")
    steps = (re.fullmatch(r"(?:(\d) times )?(.*)", t).groups() for t in told)
    return code_task.ProgramChain(tuple(code_task.Step(what, int(times or 1)) for times, what in steps), output)


def with_meanings(chain: code_task.ProgramChain, meanings: dict[int, str]) -> str:
    """The right program but for the statements of some steps."""
    right = code_task.solve(chain, code_task.SECRET)
    said = tuple(meanings.get(i, statement) for i, statement in enumerate(right.statements))
    return code_task.Draft("", right.comments, said, chain).text


# The problems


def test_every_reference_does_what_its_problem_says():
    meant: dict[str, str] = {}  # made-up word -> statement, as the references show it
    for row in problems("code_train")[:200] + problems("code_test"):
        tests, program = Tests.unpack(row["tests"]), code_of(row["reference"])
        steps = chain_of(row).steps
        written = [line.strip() for line in program.split("\n")[1:-1] if not line.startswith("for ")]
        for stdin, expected in zip(tests.inputs, tests.outputs, strict=True):
            xs = [int(word) for word in stdin.split()]
            for step, statement in zip(steps, written, strict=True):
                *word, last = step.instruction.split()
                what, c = (" ".join(word), int(last)) if last.isdigit() else (step.instruction, 0)
                if what not in SAYS:
                    assert meant.setdefault(what, statement) == statement, f"{what} means two things"
                scope = {"xs": xs}
                for _ in range(step.times):
                    if what in SAYS:
                        scope["xs"] = SAYS[what](scope["xs"], c)
                    else:
                        exec(statement, scope)
                xs = scope["xs"]
            shown = str(sum(xs)) if row["problem"].endswith("print sum") else " ".join(map(str, xs))
            assert python(program, stdin) == shown == expected
    assert len(meant) == 24


def test_no_wrong_meaning_of_any_made_up_instruction_passes():
    tried = 0
    for row in problems("code_test") + problems("code_train")[:50]:
        chain = chain_of(row)
        assert chain.problem == row["problem"]
        assert passes(with_meanings(chain, {}), row)
        for i, step in enumerate(chain.steps):
            for meaning in statements.MEANINGS if step.instruction in code_task.SECRET else ():
                if meaning != code_task.SECRET[step.instruction]:
                    assert not passes(with_meanings(chain, {i: meaning}), row), (row["problem"], meaning)
                    tried += 1
    assert tried > 15_000


def test_a_mixture_of_the_students_misconceptions_passes_only_if_it_is_right():
    rng, tried, lucky = random.Random(1), 0, 0
    others = [" ".join(str(rng.randint(-50, 50)) for _ in range(rng.randint(1, 12))) for _ in range(100)]
    for row in problems("code_test") + problems("code_tune"):
        chain = chain_of(row)
        made_up = [i for i, step in enumerate(chain.steps) if step.instruction in code_task.SECRET]
        for n in range(1, len(made_up) + 1):
            for wrong in itertools.combinations(made_up, n):
                held = {i: BELIEFS.misconception[chain.steps[i].instruction] for i in wrong}
                mixture, tried = with_meanings(chain, held), tried + 1
                if passes(mixture, row):
                    lucky += 1  # such as two commuting steps, each taken for the other
                    right = code_of(row["reference"])
                    assert all(python(code_of(mixture), given) == python(right, given) for given in others)
    assert tried > 1000
    assert lucky < 3


def test_programs_have_two_to_five_steps_to_train_on_and_five_to_evaluate():
    assert {row["problem"].count(";") - 1 for row in problems("code_train")} == {2, 3, 4, 5}
    assert {row["problem"].count(";") - 1 for row in problems("code_test")} == {5}


def test_the_rows_are_what_a_run_loads_with_tests_and_without_an_answer():
    table = load_problems(config.DataConfig(path="miniature:code_tune")).table
    assert set(table["answer"].to_pylist()) == {""}
    assert table["tests"].to_pylist() == [row["tests"] for row in problems("code_tune")]
    assert all(len(Tests.unpack(packed)) >= 3 for packed in table["tests"].to_pylist())


def test_a_rewrite_is_right_keeps_the_self_talk_and_is_one_program():
    rng, second_looks = random.Random(5), 0
    for _ in range(300):
        chain = code_task.random_chain(rng, code_task.TRAIN_STEPS)
        attempt = code_pretrain.flawed_attempt(chain, code_task.SECRET, rng)
        rewritten = code_task.rewrite(chain, code_task.SECRET, attempt[0].comments).text
        assert re.findall("# (?:Hmm|Then)", rewritten) == re.findall("# (?:Hmm|Then)", code_task.text(attempt))
        assert re.sub("# (Hmm|Then)\n", "", rewritten) == code_task.solve(chain, code_task.SECRET).text
        assert rewritten.count("```python") == 1
        second_looks += code_task.text(attempt).count("```python") > 1
    assert 40 < second_looks < 150


# The package's own reading of programs, with which models are scored


def test_python_prints_what_the_package_reads_in_a_program():
    rng = random.Random(9)
    seen = set()
    for _ in range(500):
        chain = code_task.random_chain(rng, code_task.TEST_STEPS)
        for draft in code_task.talk(chain, random_beliefs(code_task.SECRET, statements.MEANINGS, rng), rng, slip=0.3):
            program, stdin = code_of(draft.text), " ".join(str(rng.randint(-20, 20)) for _ in range(8))
            seen |= set(draft.statements)
            assert statements.run(program, stdin) == python(program, stdin)
    assert seen == set(statements.EFFECTS), "some statement was never tried"


@pytest.mark.parametrize(
    "program",
    [
        "",
        "print(sum(xs))",
        f"{statements.READ}\nxs.sort()",
        f"{statements.READ}\nimport os\nprint(*xs)",
        f"{statements.READ}\nfor _ in range(3):\nprint(*xs)",
        f"{statements.READ}\nfor _ in range(3):\nxs.sort()\nprint(*xs)",
        f"{statements.READ}\n    xs.sort()\nprint(*xs)",
    ],
)
def test_a_program_of_other_statements_prints_nothing(program):
    assert statements.run(program, "1 2 3") is None


# The sandbox


def test_the_sandbox_passes_references_and_judges_attempts_as_the_package_does():
    judge = verify.verifier(config.VerifyConfig())
    torch.manual_seed(3)
    rows = problems("code_test")[:12]
    chains = [chain_of(row) for row in rows]
    student = Qwen3ForCausalLM.from_pretrained(miniature.model_path("code_student"))
    attempts = measure.respond(WORLD, student, "solve", chains)
    try:
        for row, chain, attempt in zip(rows, chains, attempts, strict=True):
            assert judge(row["reference"], row).passed
            assert judge(attempt, row).passed == WORLD.solved(chain, attempt), attempt
    finally:
        judge.close()
    assert 0 < sum(WORLD.solved(c, a) for c, a in zip(chains, attempts, strict=True)) < len(rows), "all alike"


def test_the_last_block_counts_and_no_block_fails():
    row = problems("code_test")[0]
    chain, judge = chain_of(row), verify.verifier(config.VerifyConfig())
    i = next(i for i, step in enumerate(chain.steps) if step.instruction in code_task.SECRET)
    wrong = with_meanings(chain, {i: BELIEFS.misconception[chain.steps[i].instruction]})
    right = row["reference"]
    try:
        for response, passed in ((f"{wrong}\nWait\n{right}", True), (f"{right}\nWait\n{wrong}", False), ("Hmm", False)):
            assert judge(response, row).passed == WORLD.solved(chain, response) == passed
    finally:
        judge.close()


# The tokenizer


def test_a_change_of_mind_is_one_token_and_no_blank_is_taken_for_one():
    words = code_tokenizer.build()
    tokens = words.convert_ids_to_tokens(onset_ids(words))
    assert sorted(tokens) == ["Hmm", "Wait"]


def test_every_word_and_every_piece_of_a_program_is_one_token():
    words = code_tokenizer.build()
    for piece in (*code_task.WORDS, "```", "python", "\n", "    ", "Wait"):
        assert words.tokenize(piece) == [piece]
