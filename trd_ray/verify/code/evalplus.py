"""HumanEval+ and MBPP+: a problem as evalplus publishes it becomes Tests.

    one line of HumanEvalPlus.jsonl or MbppPlus.jsonl  ->  base + plus inputs  ==sandbox==> canonical solution's outputs
                                                                                    -> Tests, time limits and all

The rules are those of evalplus 0.3.1:

- The expected outputs are what the canonical solution returns.
- A case may take four times as long as the canonical solution took, and at least a second.
- It may take 4 GiB of memory.
- A response passes with base and plus together.
"""

import math
from typing import Any, Literal

from evalplus.config import DEFAULT_GT_TIME_LIMIT_FACTOR, DEFAULT_MIN_TIME_LIMIT

from trd_ray.errors import UserError
from trd_ray.sandbox import Limits, Sandbox
from trd_ray.verify.code.tests import Tests

FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")
MEMORY_MIB = 4096

# Some plus inputs ask for outputs of megabytes and take the canonical solution seconds.
_CANONICAL_LIMITS = Limits(time_s=60.0, memory_mib=MEMORY_MIB, output_kib=64 * 1024)

# evalplus compares set(output) in some tasks, which takes any iterable; but a generator does not leave the sandbox.
_ITERATED = """
def {name}(*args, _function={name}):
    value = _function(*args)
    plain = isinstance(value, (list, tuple, set, frozenset, dict, str))
    return value if plain or not hasattr(value, "__iter__") else list(value)
"""


def evalplus_tests(problem: dict[str, Any], dataset: Literal["humaneval_plus", "mbpp_plus"], sandbox: Sandbox) -> Tests:
    """The tests of a problem with at least the keys of FIELDS; runs its canonical solution on every input.

    Raises UserError when a key is missing or the canonical solution fails.
    """
    from evalplus.data.mbpp import mbpp_deserialize_inputs  # imports the datasets library
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS, MBPP_OUTPUT_SET_EQ_TASKS

    if missing := [name for name in FIELDS if name not in problem]:
        raise UserError(
            f"{problem.get('task_id', 'a problem')} of {dataset} has no {', '.join(missing)}: give evalplus's own "
            "JSONL file, of HumanEval+ v0.1.10 or MBPP+ v0.2.0"
        )
    task_id = problem["task_id"]
    name = problem["entry_point"]
    base, plus = problem["base_input"], problem["plus_input"]
    if dataset == "mbpp_plus":
        base, plus = (mbpp_deserialize_inputs(task_id, inputs) for inputs in (base, plus))
    inputs = [list(args) for args in (*base, *plus)]
    outputs, seconds = _canonical(problem, inputs, sandbox)
    if dataset == "mbpp_plus" and name in MBPP_OUTPUT_NOT_NONE_TASKS:
        outputs = [output is not None for output in outputs]
    iterated = dataset == "mbpp_plus" and name in MBPP_OUTPUT_SET_EQ_TASKS
    return Tests(
        kind="function",
        inputs=inputs,
        outputs=outputs,
        compare=dataset,
        entry_point=name,
        memory_mib=MEMORY_MIB,
        epilogue=_ITERATED.format(name=name) if iterated else "",
        task_id=task_id,
        atol=problem["atol"],
        base=len(base),
        case_time_limits_s=[max(DEFAULT_MIN_TIME_LIMIT, DEFAULT_GT_TIME_LIMIT_FACTOR * s) for s in seconds],
    )


def _canonical(problem: dict[str, Any], inputs: list[list], sandbox: Sandbox) -> tuple[list[Any], list[float]]:
    outputs, seconds = [], []
    source = problem["prompt"] + problem["canonical_solution"]
    with sandbox.function(source, problem["entry_point"], _CANONICAL_LIMITS) as function:
        for args in inputs:
            outcome = function.call(args)
            if outcome.status != "ok":
                raise UserError(
                    f"the canonical solution of {problem['task_id']} ends with {outcome.status} on its own input "
                    f"({(outcome.stderr.strip() or outcome.detail)[-200:]}): the file is damaged, or not evalplus's"
                )
            outputs.append(outcome.value)
            seconds.append(math.ceil(outcome.seconds * 100) / 100)
    return outputs, seconds
