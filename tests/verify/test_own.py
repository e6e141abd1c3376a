"""Functions that users have already: each gives the verdicts that it gives when it is called directly."""

import asyncio
import importlib.util
import json
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from trd_ray.config import BUILT_IN, Recipe, VerifyConfig
from trd_ray.errors import BadRow, UserError
from trd_ray.rows import PROBLEM
from trd_ray.session.inputs import require_verifier
from trd_ray.stream.verifying import verdicts
from trd_ray.verify import IDS, PROMPT, Verdict, limit_s, verifier
from trd_ray.verify.chosen import MAKERS, Chosen
from trd_ray.verify.fitting import ROWS_TO_FIT, require_functions
from trd_ray.verify.own.shape import OURS, TRL, VERL, VERL_LISTS

HERE = Path(__file__).parent / "own_rewards"
JSON = ('{"a": 1, "b": 2}', '{"a": 1}')
PIECES = (
    *JSON,
    "<think>so</think> <answer>42</answer>",
    "<think>so</think>",
    "<answer>42</answer>",
    "#### 42",
    "42",
    "7",
    "1,000",
    '{"a": 1}',
    "{",
    "",
    "\ud800",
    "words",
)


def responses(count: int) -> list[str]:
    draw = random.Random(13)
    return [" ".join(draw.choices(PIECES, k=draw.randint(0, 3))) for _ in range(count)]


def problem(**columns: Any) -> dict[str, Any]:
    row = {"problem_id": "p", "problem": "6 * 7?", "answer": "42", "reference": "6 * 7 is 42", "tests": None}
    return row | {"extra": json.dumps(columns)} if columns else row


def config(function: str, **keys: Any) -> VerifyConfig:
    place = function.partition(":")[0]
    return VerifyConfig(function=function, sources={place: (HERE / place).read_text()}, **keys)


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def made():
    """Makes verifiers, and ends their processes."""
    found: list[Chosen] = []

    def make(function: str, **keys: Any) -> Chosen:
        found.append(Chosen(config(function, **keys)))
        return found[-1]

    yield make
    for one in found:
        one.close()


def messages(texts: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


class State:
    global_step = 0


# Each as its own trainer would call it, on all responses at once where that is what the trainer does.
DIRECT = {
    "trl_rewards.py:format_reward": lambda f, t: f(prompts=["6 * 7?"] * len(t), completions=t, answer=["42"] * len(t)),
    "trl_rewards.py:accuracy_reward": lambda f, t: f(["6 * 7?"] * len(t), messages(t), ["42"] * len(t)),
    "trl_rewards.py:length_reward": lambda f, t: asyncio.run(f(["6 * 7?"] * len(t), t, [3] * len(t))),
    "trl_rewards.py:logging_reward": lambda f, t: f(t, ["42"] * len(t), State()),
    "verl_rewards.py:compute_score": lambda f, t: [f("gsm8k", x, "42", {"difficulty": 3}) for x in t],
    "verl_rewards.py:compute_score_dict": lambda f, t: [f("gsm8k", x, "42", {"difficulty": 3})["score"] for x in t],
    "verl_rewards.py:compute_score_batch": lambda f, t: f(["gsm8k"] * len(t), t, ["42"] * len(t), [{}] * len(t)),
    "openrlhf_rewards.py:reward_func": lambda f, t: f(["Q: " + x for x in t], ["Q: "] * len(t), ["42"] * len(t))[
        "scores"
    ],
    "openrlhf_arrays.py:reward_array": lambda f, t: f(["Q: " + x for x in t], ["Q: "] * len(t), ["42"] * len(t)),
    "named_rewards.py:exact": lambda f, t: [f(x, "42") for x in t],
    "named_rewards.py:told": lambda f, t: [asyncio.run(f("", x, "42", {"weight": 0.5}))["score"] for x in t],
    "named_rewards.py:similarity": lambda f, t: [f(x, "6 * 7 is 42") for x in t],
    "named_rewards.py:partial": lambda f, t: [f(x, {"answer": "42"}) for x in t],
    "named_rewards.py:JsonKeys": lambda f, t: [f(["a", "b"])(x, {}).score for x in t],
}
ROW = problem(solution="42", max_words=3, data_source="gsm8k", extra_info={"difficulty": 3}, weight=0.5) | {
    PROMPT: "Q: "
}


@pytest.mark.parametrize("function", DIRECT)
def test_a_function_gives_the_verdicts_of_a_direct_call(function, made):
    texts = responses(1000)
    stem, _, name = function.partition(".py:")
    expected = DIRECT[function](getattr(module(stem), name), texts)
    verify = made(function, pass_at=0.3, arguments={"keys": ["a", "b"]} if name == "JsonKeys" else {})
    found = [verify(text, ROW) for text in texts]
    assert [v.score for v in found] == pytest.approx([float(score) for score in expected], abs=1e-7)
    if name != "JsonKeys":  # whose Verdict says itself what passes
        assert [v.passed for v in found] == [v.score >= 0.3 for v in found]
    assert 0 < sum(v.passed for v in found) < 1000 and all(v.judged for v in found)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        ("trl_rewards.py:accuracy_reward", f"{TRL}, batched, completions as messages"),
        ("trl_rewards.py:length_reward", f"{TRL}, batched, async, completions as text"),
        ("verl_rewards.py:compute_score", f"{VERL}, one at a time"),
        ("verl_rewards.py:compute_score_batch", f"{VERL_LISTS}, batched"),
        ("named_rewards.py:partial", f"{OURS}, one at a time"),
        ("named_rewards.py:told", "by name (prompt, completion, answer, info, state), one at a time, async"),
    ],
)  # fmt: skip
def test_a_dry_run_says_which_shape_was_found(function, shape):
    [line] = require_functions(config(function), [ROW])
    assert line.startswith(f"verify.function {function}: {shape}, ") and ", sha256 " in line


def test_a_feedback_reaches_the_verdict_and_what_verl_calls_pred_is_what_was_extracted(made):
    told = made("named_rewards.py:told")("it is 7", problem(weight=1))
    assert not told.passed and told.feedback == "The last word is '7'; the answer has 2 characters."
    assert told.detail == "score 0" and told.extracted == "it is 7"
    assert made("verl_rewards.py:compute_score_dict")("so 41", problem()).extracted == "41"


def test_partial_credit_is_a_score_and_passes_only_from_pass_at(made):
    half = "<answer>no</answer>"
    strict, lenient = made("named_rewards.py:partial"), made("named_rewards.py:partial", pass_at=0.5)
    assert (strict(half, problem()).score, strict(half, problem()).passed) == (0.5, False)
    assert (lenient(half, problem()).score, lenient(half, problem()).passed) == (0.5, True)


def test_arguments_are_given_to_a_function_and_to_a_class_which_is_made_once(made):
    text = "the number is 42"
    assert made("verl_rewards.py:compute_score")(text, problem()).score == 0
    flexible = {"method": "flexible"}
    assert made("verl_rewards.py:compute_score", arguments=flexible)(text, problem()).score == 1.0
    source = "class Counts:\n def __init__(self, by=1): self.n, self.by = 0, by\n"
    source += " def __call__(self, text, problem):\n  self.n += self.by\n  return self.n\n"
    counts = Chosen(VerifyConfig(function="c.py:Counts", arguments={"by": 2}, sources={"c.py": source}))
    assert [counts("", problem()).score for _ in range(3)] == [2, 4, 6]
    counts.close()


def test_openrlhf_s_query_is_the_prompt_that_the_engine_saw_and_without_it_the_problem():
    source = "def f(queries, prompts, labels):\n return {'score': 1.0, 'feedback': [queries[0] + '|' + prompts[0]]}\n"
    verify = Chosen(VerifyConfig(function="q.py:f", sources={"q.py": source}))
    assert verify("yes", problem() | {PROMPT: "<user>6 * 7?<assistant>"}).feedback.startswith(
        "<user>6 * 7?<assistant>yes|<user>"
    )
    assert verify("yes", problem()).feedback == "6 * 7?yes|6 * 7?"
    verify.close()


COUNTING = {
    "def f(completions, completion_ids): return [float(sum(ids) if ids else -1) for ids in completion_ids]": -1,
    "def f(completions, **kwargs): return [float(sum(kwargs.get('completion_ids', [[-2]])[0]))]": -2,
    "def f(completions, completion_ids=None): return [float(sum(completion_ids[0]) if completion_ids else -3)]": -3,
    "def f(completion, completion_ids): return sum(completion_ids) if completion_ids else -1": -1,
    "async def f(text, problem): return sum(problem.get('completion_ids', [-4]))": -4,
}


@pytest.mark.parametrize("source", COUNTING)
def test_a_function_gets_the_token_ids_that_are_known_and_none_where_nobody_knows_them(source):
    settings = of_source(source)
    assert settings.may_take_ids
    verify = Chosen(settings)
    row = problem() | {IDS: {"a": np.array([3, 4], np.int32), "b": [5]}}
    assert [verify(text, row).score for text in ("a", "b", "c")] == [7, 5, COUNTING[source]]
    assert verify("a", problem()).score == COUNTING[source]
    verify.close()
    [line] = require_functions(settings, [ROW])  # called with stand-ins
    assert ", sha256 " in line


def test_only_functions_that_may_ask_for_token_ids_are_given_them():
    assert not of_source("def f(completions): return [1.0]").may_take_ids
    assert VerifyConfig(function="package.module:score").may_take_ids  # whose text nobody has
    assert not VerifyConfig().may_take_ids and not VerifyConfig(function="math").may_take_ids


def test_what_else_a_trainer_passes_does_nothing():
    """All of TRL's arguments, by name and by **kwargs, as a function for its GRPOTrainer has them."""
    named = """
def f(prompts, completions, completion_ids, trainer_state, log_extra, log_metric):
    log_extra("completion", [c for c in completions]); log_metric("length", 3.0)
    return [float(trainer_state.global_step + trainer_state.max_steps + trainer_state.epoch == 0)]
"""
    taken = """
def f(completions, **kwargs):
    kwargs["log_extra"]("a", completions); kwargs["log_metric"]("b", 1.0)
    return [float(kwargs["trainer_state"].log_history == [] and set(kwargs) >= {"prompts", "answer"})]
"""
    by_name = "def f(completion, trainer_state, log_metric, state): log_metric('a', 1); return float(state == {})"
    for source in (named, taken, by_name):
        verify = Chosen(of_source(source))
        assert verify("any", problem()).score == 1.0, source
        verify.close()


def test_a_module_that_can_be_imported_is_named_as_a_package_is():
    verify = Chosen(VerifyConfig(function="trd_ray.verify.math.answer:last_boxed"))
    with pytest.raises(
        UserError, match="trd_ray.verify.math.answer:last_boxed has the parameters \\(text\\)|gave a str"
    ):
        require_functions(
            VerifyConfig(function="trd_ray.verify.math.answer:last_boxed"),
            [problem() | {"answer": "\\boxed{1}", "reference": ""}],
        )
    verify.close()


# Hostile functions


@pytest.mark.parametrize(
    ("word", "detail"),
    [
        ("exit", "the function ended its process twice (it exited with 7)"),
        ("crash", "the function ended its process twice (it was ended by SIGSEGV)"),
        ("leave", "the function raised SystemExit: enough"),
        ("raise", "the function raised KeyError: '\\ud800 no such key'"),
        ("word", "not judged (the function gave a str ('very good') where a number"),
        ("none", "not judged (the function gave no score)"),
        ("infinite", "not judged (the function gave the score inf"),
        ("infinite power", "the function raised OverflowError"),
        ("hang", "the function took more than 0.5 s"),
        ("sleep", "the function took more than 0.5 s"),
        ("leak", "the function took more memory than verify.call_memory_gib"),
    ],
)
def test_what_goes_wrong_in_a_call_is_that_row_s_verdict_and_no_other_s(word, detail, made):
    verify = made("hostile_rewards.py:score", deadline_s=0.5 if word in ("hang", "sleep") else 20, call_memory_gib=0.2)
    assert verify("fine", problem()).passed
    start = time.monotonic()
    verdict = verify(word, problem())
    assert not verdict.passed and verdict.score == 0 and verdict.detail.startswith(detail)
    assert time.monotonic() - start < (5 if word in ("hang", "sleep") else 30)
    after = verify("print", problem())
    assert after.passed and after.score == 1.0 and verify("fine", problem()).passed


@pytest.mark.parametrize("body", ["raise ValueError(text)", "return {'score': 0, 'feedback': text, 'detail': text}"])
def test_what_a_function_repeats_of_a_response_cannot_control_a_terminal(body):
    verify = Chosen(of_source(f"def f(text, problem): {body}"))
    found = verify("\x1b]0;owned\x07\x1b[2J\ud800", ROW)
    assert not {"\x1b", "\x07", "\ud800"} & set(found.detail + found.extracted + found.feedback)
    assert "]0;owned" in found.detail and "]0;owned" in found.extracted
    verify.close()


def test_a_function_whose_fork_goes_on_answering_costs_its_own_rows_alone():
    verify = Chosen(of_source("import os\ndef f(text, problem):\n  os.fork()\n  return 1"))
    assert all(verify(str(i), ROW).score in (0, 1) for i in range(6))
    verify.close()


def test_hostile_responses_cost_their_deadlines_and_nothing_else(made):
    verify = made("hostile_rewards.py:score", deadline_s=0.5)
    texts = ["fine"] * 200
    for i, word in ((10, "hang"), (50, "exit"), (90, "hang"), (120, "crash"), (150, "print")):
        texts[i] = word
    start = time.monotonic()
    found = [verify(text, problem()) for text in texts]
    assert time.monotonic() - start < 2 * 0.5 + 5  # on a busy machine
    assert [i for i, v in enumerate(found) if not v.passed] == [10, 50, 90, 120]


def test_a_slow_leak_is_not_the_fault_of_the_row_that_meets_the_limit(made):
    verify = made("hostile_rewards.py:score", call_memory_gib=0.25)
    assert all(verify("grow", problem()).passed for _ in range(10))  # 640 MiB in all


def test_calls_that_wait_are_made_at_once_and_keep_their_order(made):
    settings = config("hostile_rewards.py:score", concurrency=8, deadline_s=20)
    texts = ["slow", "slow raise"] * 8
    verify = verifier(settings)
    verify("fine", problem())
    start = time.monotonic()
    [judged] = verdicts(settings.model_dump_json(), [(problem(), texts, None)])
    assert [v.passed for _, v in judged] == [True, False] * 8
    assert time.monotonic() - start < 8 * 0.3
    verify.close()


def test_processes_end_with_whoever_verifies(made):
    verify = made("hostile_rewards.py:score")
    assert verify("fine", problem()).passed
    [own] = verify.own().values()
    importer = own._importer
    assert importer
    pid = importer._process.pid
    verify.close()
    assert not os.path.exists(f"/proc/{pid}") and verify("fine", problem()).passed


def test_any_thread_may_ask(made):
    verify = made("named_rewards.py:exact", concurrency=4)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: verify(text, problem()).passed, ["42", "43"] * 50))
    assert found == [True, False] * 50 and threading.active_count() < 20


# Several


SEVERAL = {
    "right": {"function": "named_rewards.py:exact", "weight": 3.0},
    "form": {"function": "trl_rewards.py:format_reward"},
}
TEXTS = {name: (HERE / name).read_text() for name in ("named_rewards.py", "trl_rewards.py")}


def several(functions: dict[str, Any], **keys: Any) -> Chosen:
    return Chosen(VerifyConfig.model_validate({"functions": functions, "sources": TEXTS} | keys))


def test_several_verifiers_give_a_weighted_mean_and_say_what_each_gave():
    verify = several(SEVERAL)
    verdict = verify("42", problem())
    assert verdict.parts == {"right": 1.0, "form": 0.0} and verdict.score == 0.75 and not verdict.passed
    assert verdict.detail == "right 1, form 0"
    verify.close()
    lenient = several(SEVERAL, pass_at=0.75)
    assert lenient("42", problem()).passed
    lenient.close()
    gated = several(SEVERAL | {"form": SEVERAL["form"] | {"pass_at": 1.0}}, pass_at=0.75)
    assert not gated("42", problem()).passed  # its form must pass too
    gated.close()


def test_a_verifier_that_gives_none_does_not_count_and_built_in_ones_are_named_alike():
    functions = {
        "solution": {"function": "trl_rewards.py:accuracy_reward", "arguments": {"solution": [""]}},
        "maths": {"function": "math"},
    }
    verify = several(functions)
    verdict = verify(r"\boxed{42}", problem())
    assert verdict.passed and verdict.parts == {"maths": 1.0}
    verify.close()


def test_a_column_chooses_the_verifier_of_a_row():
    verify = several(SEVERAL, by="kind")
    assert verify("42", problem(kind="right")).passed and not verify("42", problem(kind="form")).passed
    with pytest.raises(BadRow, match="verify.by is kind, whose value 'rigth' names none .*did you mean right"):
        verify("42", problem(kind="rigth"))
    verify.close()
    by_source = several(SEVERAL, by="source")
    assert by_source("42", problem() | {"source": "right"}).passed
    by_source.close()


def test_the_built_in_verifiers_are_those_that_a_recipe_may_name():
    assert MAKERS.keys() == BUILT_IN.keys()
    maths = verifier(VerifyConfig(function="math"))
    assert maths(r"\boxed{42}", problem()) == Verdict(
        True, 1.0, "42", "", pytest.approx(0, abs=60), "The final answer that was found is: 42"
    )
    assert maths(r"\boxed{42}", problem() | {"tests": b"torn"}).passed  # by name, whatever the row has


def test_a_verdict_s_time_is_known_to_whoever_waits_for_it():
    own = config("named_rewards.py:exact", deadline_s=7)
    assert limit_s(own, False) == limit_s(own, True) == 14
    both = VerifyConfig.model_validate(
        {"functions": {"a": SEVERAL["right"], "b": {"function": "math"}}, "timeout_s": 3}
    )
    assert limit_s(both, False) == 2 * 10 + 3


# What does not fit


def refusal(settings: VerifyConfig, row: dict[str, Any] = ROW) -> str:
    with pytest.raises(UserError) as refused:
        require_functions(settings, [row])
    [sentence] = refused.value.sentences
    return sentence


def of_source(source: str, name: str = "f", **keys: Any) -> VerifyConfig:
    return VerifyConfig(function=f"mine.py:{name}", sources={"mine.py": source}, **keys)


@pytest.mark.parametrize(
    ("source", "keys", "said"),
    [
        ("def g(text, problem): return 1", {}, "verify.function mine.py:f is not in mine.py, which has g: correct"),
        ("import no_such_thing\ndef f(text, problem): return 1", {}, "cannot be imported (ModuleNotFoundError: No"),
        ("import os; os._exit(3)", {}, "ends its process while it is imported (it exited with 3)"),
        ("f = 3", {}, "is of type int: name a function, or a class with __call__"),
        ("class f: pass", {}, "is a class without __call__"),
        ("def f(a, b): return 1", {}, "has the parameters (a, b), none of which is a response: name one completions"),
        ("def f(text, problem, /): return 1", {}, "takes text by position only"),
        ("def f(completion, level): return 1", {}, "takes level, which no column of data.path fills"),
        ("def f(completion, solutoin): return 1", {}, "fills (did you mean solution?): give the data that column"),
        ("def f(text, problem): return 1", {"arguments": {"tone": 1}}, "has no parameter tone, which verify.arguments"),
        ("class f:\n def __init__(self): pass\n def __call__(self, text, problem): return 1",
         {"arguments": {"x": 1}}, "cannot be made with verify.arguments={'x': 1}"),
        ("class f:\n def __init__(self): raise OSError('no server')\n def __call__(self, text, problem): return 1",
         {}, "cannot be made with verify.arguments (OSError: no server)"),
        ("def f(text, problem): return 'good'", {}, "gave a str ('good') where a number, true or false, None"),
        ("def f(completions): return 1.0", {}, "gave a float (1.0) where a list with one score for each completion"),
        ("def f(completions): return [1.0, 0.0]", {}, "gave 2 scores for 1 completion"),
        ("def f(text, problem): return {'points': 1}", {}, "gave a dict with points, where score or scores or reward"),
        ("def f(completions): return [float(c[0]['content'] == '') for c in completions]", {"completions": "text"},
         "was given completions as text, and the function raised TypeError: string indices must be integers, "
         "not 'str', but it can judge them as messages: set verify.completions=messages"),
    ],
)  # fmt: skip
def test_a_function_that_cannot_judge_is_refused_in_one_sentence(source, keys, said):
    sentence = refusal(of_source(source, **keys))
    assert sentence.startswith("verify.function mine.py:f ") and said in sentence


def test_a_parameter_has_the_data_s_own_name_of_a_column_that_is_ours():
    settings = of_source("def f(completion, gold): return completion == gold", columns={"gold": "answer"})
    assert len(require_functions(settings, [ROW])) == 1
    verify = Chosen(settings)
    assert verify("42", ROW).passed
    verify.close()


def test_a_prompt_is_messages_also_where_the_problem_is_the_column_prompt_of_the_data():
    source = "def f(completion, prompt): return completion[0]['content'] == prompt[-1]['content']"
    verify = Chosen(of_source(source, columns={"prompt": "problem"}))
    assert verify(ROW["problem"], ROW).passed
    verify.close()


def test_a_function_that_raises_on_a_reference_is_told_and_not_refused():
    lines = require_functions(of_source("def f(text, problem): raise OSError('the server is down')"), [ROW])
    assert lines[1] == (
        "verify.function mine.py:f: the function raised OSError: the server is down, when it was called on the "
        "reference or answer of problem p"
    )


def test_a_row_whose_column_names_no_verifier_is_named_before_anything_starts():
    settings = VerifyConfig.model_validate({"functions": SEVERAL, "sources": TEXTS, "by": "kind"})
    assert "problem p of data.path: verify.by is kind, whose value 'x' names none" in refusal(
        settings, problem(kind="x")
    )


# By source


BY_SOURCE = {
    "functions": {"mine": {"function": "mine.py:f"}},
    "sources": {"mine.py": "def f(completion, level): return level"},
    "by_source": {"a": "mine", "b": "code"},
}


def of(source: str | None, **columns: Any) -> dict[str, Any]:
    return problem(**columns) | {"source": source}


@pytest.mark.parametrize("keys", [{}, {"functions": {}, "function": "mine.py:f", "by_source": {"b": "code"}}])
def test_a_function_is_compared_with_the_rows_of_the_sources_that_it_judges_alone(keys):
    settings = VerifyConfig.model_validate(BY_SOURCE | keys)
    assert len(require_functions(settings, [of("b"), of("a", level=1)])) == 1
    assert "takes level, which no column of data.path fills" in refusal(settings, of("a"))
    assert len(require_functions(settings, [of("b")])) == 1  # whose tests are run


def test_a_source_that_comes_late_in_the_data_is_compared_too_and_one_that_holds_out_nothing_is_not():
    rows = [of("b")] * (2 * ROWS_TO_FIT) + [of("a")]
    table = pa.Table.from_pylist(rows, schema=pa.schema(PROBLEM))
    recipe = Recipe(verify=VerifyConfig.model_validate(BY_SOURCE))
    with pytest.raises(UserError, match="takes level, which no column of data.path fills"):
        require_verifier(recipe, {"data.path": table})
    assert len(require_verifier(recipe, {"data.path": table.slice(0, 9)})) == 1


def test_a_source_that_names_its_verifier_needs_no_word_in_the_column_of_verify_by():
    settings = VerifyConfig.model_validate(BY_SOURCE | {"by": "kind"})
    assert len(require_functions(settings, [of("b"), of("a", level=1), of(None, kind="mine", level=1)])) == 1
    assert "problem p of data.path: verify.by is kind" in refusal(settings, of(None))


def test_a_source_whose_programs_are_run_needs_a_sandbox_and_the_time_of_its_programs():
    settings = VerifyConfig.model_validate(BY_SOURCE)
    assert settings.may_run_code
    assert limit_s(settings, True) == 2 * settings.deadline_s + settings.program_timeout_s
    alone = VerifyConfig.model_validate(BY_SOURCE | {"function": "mine.py:f", "functions": {}, "by_source": {}})
    assert not alone.may_run_code
