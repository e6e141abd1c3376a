"""What a key affects is said at the key, and every list of keys elsewhere follows from it."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest

from trd_ray import config
from trd_ray.compare.design import GIVEN, OF_TUNING, SHARED
from trd_ray.compare.engine_groups import OF_ENGINES
from trd_ray.compare.plan import MAY_DIFFER, OF_A_BASE
from trd_ray.config import keys
from trd_ray.config.effects import ANSWERS, ENGINES, LENGTH, MACHINES, NOTHING, NUMBERS, ROWS, SCORES, VERDICTS
from trd_ray.evaluate.samples import verifier_of
from trd_ray.evaluate.target import FROM_A_RUN
from trd_ray.record.directory import MAY_CHANGE, differences


def changed(*overrides: str) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for override in overrides:
        config.apply_override(tree, override)
    return config.from_tree(tree).model_dump(mode="json")


def leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Every key of a recipe as it is written down, but for what is inside a value that is a dictionary."""
    found = []
    for name, value in tree.items():
        inside = isinstance(value, dict) and keys.in_group(prefix + name, keys.effects())
        found += leaves(value, f"{prefix}{name}.") if inside else [prefix + name]
    return found


def test_every_key_of_a_recipe_has_its_effects():
    assert set(leaves(changed("learner.lora={}"))) | {"learner.lora"} == keys.effects().keys()


def test_a_key_that_does_not_say_what_it_affects_is_an_error():
    class Group(config.Node):
        said: Annotated[int, NOTHING] = 1
        unsaid: int = 1

    with pytest.raises(TypeError, match="loss.unsaid does not say what it affects"):
        list(keys._effects(Group, "loss."))


def test_a_key_affects_no_more_than_its_group():
    found = keys.effects()
    assert found["sampler.dtype"] == {ROWS, ANSWERS, ENGINES} and found["refiner.dtype"] == {ROWS, ENGINES}
    assert ANSWERS in found["student.path"] and ANSWERS not in found["teacher.path"]
    assert MACHINES in found["sampler.replicas"] and MACHINES not in found["refiner.replicas"]
    assert found["run_dir"] == found["checkpoint.every_steps"] == frozenset()


@pytest.mark.parametrize(
    ("key", "affected"),
    [
        ("loss.divergence", NUMBERS),
        ("learner.lora.alpha", NUMBERS),
        ("sampler.temperature", ROWS),
        ("stream.max_staleness", ROWS),
        ("verify.timeout_s", VERDICTS),
        ("steps", LENGTH),
        ("evaluation.samples", SCORES),
        ("evaluation.temperature", ANSWERS),
        ("learner.lora.rank", ENGINES),
        ("cluster.local_cpus", MACHINES),
    ],
)
def test_a_key_affects(key, affected):
    assert key in keys.affecting(affected) and key not in keys.not_affecting(affected, ROWS)


# Resuming


def refused(*overrides: str) -> list[str]:
    return [found.split("=")[0] for found in differences(changed(), changed(*overrides), MAY_CHANGE)]


@pytest.mark.parametrize(
    "override",
    [
        *("name=other", "run_dir=elsewhere", "steps=9", "cluster.local_cpus=3", "cluster.address=auto"),
        *("checkpoint.every_steps=7", "evaluation.samples=4", "evaluation.columns={answer: a}"),
        *("sampler.replicas=4", "refiner.gpus=0.5", "sampler.request_timeout_s=9", "learner.workers=8"),
        *("learner.tokens_per_micro_batch=100", "learner.packing=false", "verify.cpus=0.5", "verify.sandbox=unshare"),
        *("stream.rows_per_block=2", "sync.backend=gloo", "sync.probe_rows=0"),
        *("diagnostics.tokens=false", "diagnostics.rows=8", "diagnostics.every_steps=2"),
    ],
)
def test_where_and_how_fast_a_run_works_never_refuses_a_resume(override):
    assert refused(override) == []


@pytest.mark.parametrize(
    "override",
    [
        *("loss.divergence=reverse_kl", "learner.lr=0.1", "learner.lora={}", "learner.dtype=float32", "seed=3"),
        *("sampler.temperature=1.0", "sampler.extra.seed=1", "refiner.n=2", "refiner.max_model_len=100"),
        *("data.shuffle=false", "data.columns.answer=a", "rollouts_per_step=64", "student.path=other"),
        *("verify.timeout_s=9", "prompts.task=code", "prompts.refine='{problem} {attempt}'", "teacher.view=vanilla"),
        *("train.subset=failed", "stream.max_staleness=2", "sync.in_flight=keep"),
    ],
)
def test_other_rows_numbers_or_verdicts_refuse_a_resume_by_the_key_s_name(override):
    assert refused(override) == [override.split("=")[0]]


# Evaluations


def stale_after(given: dict[str, Any], problem: dict[str, Any]) -> bool:
    other = config.VerifyConfig.model_validate(given)
    return verifier_of(problem, other) != verifier_of(problem, config.VerifyConfig())


def test_another_verifier_makes_verdicts_stale_and_no_answer():
    problem = {"answer": "4", "tests": None}
    stale = {
        name
        for name, value in {
            "timeout_s": 9, "answer_in_prose": True, "answer_in_formula": True, "time_limit_s": 1, "memory_mib": 64,
            "program_timeout_s": 1, "max_tests": 1, "sandbox": "unshare", "cpus": 2, "max_tasks": 1, "concurrency": 4,
            "pass_at": 0.5, "function": "s.py:f", "completions": "text", "columns": {"a": "b"}, "deadline_s": 1,
            "call_memory_gib": 1, "sources": {"s.py": ""}, "by_source": {"a": "math"},
        }.items()
        if verifier_of(problem, config.VerifyConfig.model_validate({name: value}))
        != verifier_of(problem, config.VerifyConfig())
    }  # fmt: skip
    several = {"functions", "by", "by_source", "arguments"}  # which one key alone does not set
    assert stale | several == keys.in_group("verify", keys.affecting(VERDICTS))
    named = {"function": "s.py:f", "arguments": {"strict": True}}
    chosen = {"functions": {"a": {"function": "math"}}, "by": "source"}
    for one in (named, named | {"arguments": {}}, chosen, chosen | {"by": None}):
        assert stale_after(one, problem)
    assert len({verifier_of(problem, config.VerifyConfig.model_validate(one)) for one in (named, chosen)}) == 2
    assert {"verify.timeout_s", "verify.max_tests"} <= keys.affecting(VERDICTS) - keys.affecting(ANSWERS)


def test_a_verdict_on_disk_is_still_the_one_that_this_version_would_give():
    """Of a run since verify.answer_in_formula; another digest would have every verdict made anew."""
    assert verifier_of({"answer": "4", "tests": None}, config.VerifyConfig()) == "6246ef65a1046325"


def test_whatever_affects_an_answer_is_told_by_the_settings_the_weights_or_the_prompt():
    by_settings = {"seed", "learner.dtype", "sampler.dtype", "sampler.extra"}
    by_settings |= {f"evaluation.{key}" for key in ("temperature", "top_p", "top_k", "max_response_tokens")}
    by_settings |= {"evaluation.chat_template_kwargs"}
    by_weights = {"student.path", "student.revision", "student.trust_remote_code"}
    by_prompt = {"student.chat_template_kwargs", "prompts.system", "prompts.solve", "prompts.task"}
    by_prompt |= {"verify.function", "verify.functions"}  # by the wordings that fit
    assert keys.affecting(ANSWERS) == by_settings | by_weights | by_prompt


def test_a_checkpoint_gets_of_its_run_what_it_is_asked_and_judged_by_and_nothing_of_training():
    asked = {"seed", "prompts.solve", "verify.max_tests", "evaluation.samples", "data.columns", "sampler.extra"}
    machines = {"cluster.address", "sampler.replicas", "sampler.memory_utilization", "verify.sandbox"}
    assert asked | machines <= FROM_A_RUN
    training = {"steps", "sampler.n", "evaluation.before", "evaluation.every_steps", "learner.lr", "loss.top_k"}
    training |= {"teacher.path", "refiner.replicas", "sync.lora", "checkpoint.export", "data.path", "data.limit"}
    assert not (training | {"sampler.max_model_len", "run_dir", "name"}) & FROM_A_RUN


# Comparisons


def same(listed: set[str], *overrides: str) -> bool:
    return keys.only(changed(), listed) == keys.only(changed(*overrides), listed)


@pytest.mark.parametrize(
    ("override", "shares"),
    [
        ("student.path=other", False),
        ("teacher.follow=live", False),
        ("sampler.max_concurrent=3", False),
        ("refiner.extra={seed: 1}", False),
        ("sync.in_flight=keep", False),
        ("learner.lora={}", False),
        ("learner.workers=2", False),
        ("sampler.temperature=1", True),
        ("loss.top_k=8", True),
        ("learner.lr=0.1", True),
        # What is sent to engines, or waited for, after they are started.
        ("sync.timeout_s=9", True),
        ("sync.probe_rows=0", True),
    ],
)
def test_runs_share_engines_that_are_started_alike(override, shares):
    assert same(OF_ENGINES, override) == shares


def test_adapters_of_one_rank_share_engines_whatever_their_scale():
    one, other = changed("learner.lora={}"), changed("learner.lora={alpha: 1, dropout: 0.1}")
    assert keys.only(one, OF_ENGINES) == keys.only(other, OF_ENGINES)
    assert keys.only(one, OF_ENGINES) != keys.only(changed("learner.lora={rank: 8}"), OF_ENGINES)


@pytest.mark.parametrize(
    ("override", "shares"),
    [
        ("student.path=other", False),
        ("sampler.dtype=float32", False),
        ("learner.dtype=float32", False),
        ("prompts.system=Think.", False),
        ("verify.answer_in_prose=true", False),
        ("evaluation.limit=3", False),
        ("evaluation.max_response_tokens=9", False),
        ("data.columns={answer: a}", False),  # held-out problems are read by them too
        ("data.path=other", True),
        ("teacher.follow=ema", True),
        # What the base was sampled anew for, though its score cannot depend on it.
        ("sampler.temperature=1", True),
        ("sampler.replicas=4", True),
        ("verify.cpus=2", True),
        ("prompts.refine='{problem} {attempt}'", True),
        ("evaluation.every_steps=5", True),
    ],
)
def test_modes_share_a_base_of_which_every_answer_verdict_and_score_would_be_the_same(override, shares):
    assert same(OF_A_BASE, override) == shares


def test_a_comparison_goes_on_on_other_machines_and_with_no_other_scores():
    assert {"name", "run_dir", "cluster.address", "checkpoint.every_steps", "sampler.replicas"} <= MAY_DIFFER
    assert {"evaluation.every_steps", "learner.workers", "verify.max_tasks", "sync.timeout_s"} <= MAY_DIFFER
    scores = {"steps", "evaluation.samples", "evaluation.bootstrap", "evaluation.temperature", "verify.timeout_s"}
    assert not (scores | {"seed", "loss.token_clip", "learner.lr", "sampler.temperature"}) & MAY_DIFFER
    assert MAY_DIFFER < MAY_CHANGE  # a cell is resumed as a run is


def test_what_methods_have_in_common_and_what_tuning_may_have_of_its_own():
    assert SHARED == ["steps", "rollouts_per_step", "student", "data", "verify", "judge", "evaluation", "cluster"]
    assert OF_TUNING == ["steps", "data", "evaluation", "checkpoint"]
    # A method could not set what verdicts and scores depend on, but for engines and prompts, which are its own.
    top = {key.split(".")[0] for key in keys.affecting(VERDICTS, SCORES, LENGTH)}
    assert top <= set(SHARED) and not set(SHARED) & GIVEN.keys()


# The lists


def test_no_other_module_keeps_a_list_of_keys():
    """A literal set, list or tuple of five keys of one group, or of five dotted keys, is one."""
    names = {group: keys.in_group(group, keys.effects()) for group in config.Recipe.model_fields}
    names["the top"] = set(config.Recipe.model_fields)
    names["the tree"] = {key for key in keys.effects() if "." in key}
    package = Path(config.__file__).parents[1]
    lists = []
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Set | ast.List | ast.Tuple):
                words = [one.value for one in node.elts if isinstance(one, ast.Constant)]
                for group, known in names.items():
                    if len(words) >= 5 and words == [word for word in words if word in known]:
                        lists.append(f"{file.relative_to(package)}:{node.lineno} lists keys of {group}")
    assert lists == []


def test_the_effects_are_known_without_torch_ray_or_arrow():
    script = (
        "import sys; from trd_ray.config import keys; keys.effects(); "
        "print([m for m in ('torch', 'ray', 'pyarrow', 'transformers', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
