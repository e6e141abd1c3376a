"""Lengths that a recipe leaves empty follow from its models' contexts, and none that is asked for is changed."""

import random
from dataclasses import replace

import pytest
from test_checks import FACTS

from trd_ray.config import Recipe, from_tree
from trd_ray.errors import UserError
from trd_ray.preflight import lengths
from trd_ray.views import PromptTokens

LENGTHS = ("sampler.max_response_tokens", "refiner.max_response_tokens", "refiner.max_prompt_tokens")
LENGTHS += ("evaluation.max_response_tokens",)
OPD = {"mode": "opd", "path": "teacher"}


def of(recipe: Recipe) -> list[int | None]:
    return [getattr(getattr(recipe, key.split(".")[0]), key.split(".")[1]) for key in LENGTHS]


def resolved(tree: dict, positions: int, *prompts: PromptTokens, evaluated: tuple[int, ...] = (80,)) -> Recipe:
    model = replace(FACTS, max_positions=positions)
    recipe = from_tree(tree)
    return lengths.resolve(recipe, lengths.Contexts.of(recipe, model, model), prompts, evaluated)


SHORT = PromptTokens(student=100, vanilla=200, refine=300, reference=50)


@pytest.mark.parametrize(("teacher", "prompt"), [({}, 22528), (OPD, 18432)])
def test_a_context_that_holds_them_gets_the_paper_s_lengths(teacher, prompt):
    assert of(resolved({"teacher": teacher}, 40960, SHORT)) == [16384, 16384, prompt, 16384]
    assert of(resolved({"teacher": teacher}, prompt + 16384, SHORT)) == [16384, 16384, prompt, 16384]


def test_a_small_context_is_shared_by_attempt_and_refinement_and_no_attempt_is_cut():
    y_o, y_r, prompt, evaluation = of(resolved({}, 8192, SHORT))
    assert y_o == y_r == (8192 - 300) // 2
    assert prompt == 300 + y_o and prompt + y_r == 8192
    assert evaluation == 8192 - 80


def test_without_refinements_a_response_gets_all_that_is_left():
    plain = {"train": {"trajectory": "y_o"}, "teacher": {"view": "vanilla"}}
    assert of(resolved(plain, 8192, SHORT))[0] == 8192 - 200
    assert of(resolved(plain, 40960, SHORT))[0] == 16384


def test_an_engine_s_own_shorter_context_counts():
    tree = {"sampler": {"max_model_len": 512}, "refiner": {"max_model_len": 1024}}
    assert of(resolved(tree, 8192, SHORT)) == [362, 362, 662, 432]


def test_lengths_that_are_asked_for_stay_as_they_are_even_where_they_cannot_fit():
    asked = {"sampler": {"max_response_tokens": 7}, "refiner": {"max_response_tokens": 9000, "max_prompt_tokens": 77}}
    asked["evaluation"] = {"max_response_tokens": 11}
    assert of(resolved(asked, 8192, SHORT)) == [7, 9000, 77, 11]


def test_one_huge_prompt_does_not_shorten_the_responses_of_all_others():
    huge = PromptTokens(student=8000, vanilla=8100, refine=8150, reference=50)
    y_o, y_r, prompt, _ = of(resolved({}, 8192, SHORT, huge))
    assert y_o == y_r == 2048 and prompt >= 2048
    model = replace(FACTS, max_positions=8192)
    problems = [lengths.Problem("short", "1 + 1", SHORT), lengths.Problem("huge", "many words", huge)]

    def fitted(**data) -> lengths.Fitted:
        recipe = from_tree({"data": data})
        return lengths.fit(recipe, problems, (), lengths.Contexts.of(recipe, model, model), model, model)

    with pytest.raises(UserError, match=r"1 of 2 problems is too long for the sampler, the longest being huge"):
        fitted()
    left = fitted(too_long="drop")
    assert [p.problem_id for p in left.kept] == ["short"] and [one.problem_id for one in left.set_aside] == ["huge"]
    assert of(left.recipe)[:3] == of(resolved({}, 8192, SHORT))[:3]  # as if it had never been there


def fitted(tree: dict, positions: int, *prompts: PromptTokens, teacher: int | None = None) -> lengths.Fitted:
    student = replace(FACTS, max_positions=positions)
    other = replace(FACTS, max_positions=teacher or positions)
    recipe = from_tree(tree)
    problems = [lengths.Problem(f"p{i}", "text", p) for i, p in enumerate(prompts)]
    return lengths.fit(recipe, problems, (), lengths.Contexts.of(recipe, student, other), student, other)


WORDY = PromptTokens(student=100, vanilla=900, refine=300, reference=0)  # of someone's own wording without an attempt
ASKED = {"sampler": {"max_response_tokens": 600}, "refiner": {"max_response_tokens": 200, "max_prompt_tokens": 1000}}


@pytest.mark.parametrize(
    "train",
    [{"when_refinement_fails": "raw_if_passed"}, {"trajectory": "repair"}, {"trajectory": "mixture"}],
    ids=["raw_if_passed", "repair", "mixture"],
)
def test_an_attempt_that_may_train_counts_below_the_vanilla_view(train):
    tree = ASKED | {"train": train, "teacher": OPD}
    assert fitted(ASKED | {"teacher": OPD}, 1400, WORDY).kept  # refinements alone: 900 tokens seen and 200 trained
    said = (
        r"teacher's view \(900 tokens\) and the response \(600\) make 1500, but it has 1400 positions: lower "
        r"refiner.max_prompt_tokens or refiner.max_response_tokens or sampler.max_response_tokens"
    )
    with pytest.raises(UserError, match=said):
        fitted(tree, 1400, WORDY)
    assert lengths.longest_tokens(fitted(tree, 1500, WORDY).recipe, WORDY) == 1500
    with pytest.raises(UserError, match=r"the problem and the instructions alone take 900 tokens of it"):
        fitted(tree | {"refiner": ASKED["refiner"] | {"max_prompt_tokens": 899}}, 4000, WORDY)
    defaults = fitted({"train": train, "teacher": OPD}, 8192, WORDY, teacher=2048).recipe  # a shorter teacher
    assert defaults.sampler.response_tokens + 900 <= 2048


def test_a_reference_that_trains_counts_with_its_own_length_below_the_vanilla_view():
    p = replace(SHORT, solution=700)
    tree = {"train": {"trajectory": "reference"}}
    fit = fitted(tree, 900, p)
    assert fit.kept and lengths.longest_tokens(fit.recipe, p) == 200 + 700
    assert fit.recipe.sampler.response_tokens == 900 - 100, "an attempt that no teacher sees has all that is left"
    with pytest.raises(
        UserError, match=r"teacher's view \(200 tokens\) and the response \(700\) make 900, but it has 899"
    ):
        fitted(tree, 899, p)
    alone = tree | {"loss": {"divergence": "cross_entropy"}}
    assert lengths.longest_tokens(fitted(alone, 800, p).recipe, p) == 100 + 700
    with pytest.raises(UserError, match=r"its prompt of 100 tokens and the response \(700\) make 800, but it has 799"):
        fitted(alone, 799, p)


def test_a_solution_that_ignores_the_attempt_is_asked_for_and_scored_without_it():
    tree = {"refiner": {"from": "problem", "max_response_tokens": 500}}
    fit = fitted(tree, 8192, SHORT)
    assert fit.recipe.sampler.response_tokens == 8192 - 100, "no prompt of the teacher's holds the attempt"
    assert lengths.longest_tokens(fit.recipe, SHORT) == 200 + 500
    assert fitted(tree, 700, SHORT).kept
    with pytest.raises(UserError, match=r"its prompt \(200 tokens\) and refiner.max_response_tokens \(500\) make 700"):
        fitted(tree, 699, SHORT)


def test_a_relay_reads_whole_attempts_and_may_train_on_one_as_it_is():
    tree = {"refiner": {"from": "relay", "max_response_tokens": 100}}
    found = fitted(tree, 2000, SHORT).recipe
    assert found.sampler.response_tokens == 2000 - 200 - 1, "and the token that vLLM samples besides"
    assert lengths.longest_tokens(found, SHORT) == 200 + 1799
    asked = tree | {"sampler": {"max_response_tokens": 1000}}
    assert fitted(asked, 1201, SHORT).kept
    with pytest.raises(UserError, match=r"too long for the relay.* make 1201, but .* context is 1200: lower"):
        fitted(asked, 1200, SHORT)


def test_what_has_no_loss_takes_no_place_in_the_learner():
    tree = {"loss": {"first_share": 0.3}, "refiner": {"max_response_tokens": 1001, "max_prompt_tokens": 1000}}
    found = fitted(tree, 8192, SHORT).recipe
    assert lengths.longest_tokens(found, SHORT) == 1000 + 301


def test_without_a_teacher_in_the_loss_no_view_of_one_limits_an_attempt():
    tree = {"train": {"trajectory": "y_o"}, "loss": {"divergence": "cross_entropy"}}
    found = fitted(tree, 8192, SHORT, teacher=256)
    assert found.recipe.sampler.response_tokens == 8192 - 100
    assert lengths.longest_tokens(found.recipe, SHORT) == 8192


def test_a_refinement_that_is_scored_fits_the_sampler_s_engines_with_the_token_that_comes_after_it():
    nearest = {"refiner": {"n": 4, "select": "nearest"}, "sampler": {"max_model_len": 1000}}
    assert fitted(nearest, 8192, SHORT).recipe.refiner.response_tokens == 1000 - 100 - 1
    asked = nearest | {"refiner": nearest["refiner"] | {"max_response_tokens": 900}}
    with pytest.raises(UserError, match=r"too long for the scoring.* make 1001, but .* context is 1000: lower"):
        fitted(asked, 8192, SHORT)
    assert fitted(asked | {"sampler": {"max_model_len": 1001}}, 8192, SHORT).kept


def test_defaults_always_fit_prompts_of_up_to_half_the_context_and_the_paper_s_response():
    """Whatever is trained, taught and asked of the engines; and the resolved recipe is a valid one."""
    draw = random.Random(0)
    for _ in range(2000):
        positions = draw.choice([256, 1024, 8192, 32768, 40960, 262144])
        half = min(positions // 2, 16384)
        student = draw.randint(1, half)
        vanilla = draw.randint(student, half)
        refine = draw.randint(vanilla, half)
        p = PromptTokens(student, vanilla, refine, draw.randint(0, vanilla - student))
        tree = {
            "train": {
                "trajectory": draw.choice(["y_o", "y_r", "repair", "mixture"]),
                "subset": draw.choice(["all", "repaired"]),
            },
            "teacher": draw.choice([{}, OPD]) | {"view": draw.choice(["refine", "vanilla"])},
        }
        model = replace(FACTS, max_positions=positions)
        if tree["train"]["trajectory"] == "y_r" and draw.random() < 0.5:
            tree["train"]["when_refinement_fails"] = "raw_if_passed"
        if tree["train"]["trajectory"] != "y_o":
            tree["refiner"] = {"n": 4, "select": draw.choice(["first", "nearest"])}
        recipe = from_tree(tree)
        contexts = lengths.Contexts.of(recipe, model, model)
        found = lengths.fit(recipe, [lengths.Problem("p", "text", p)], [student], contexts, model, model)
        assert not found.set_aside and from_tree(found.recipe.model_dump()) == found.recipe


def test_a_run_that_goes_on_keeps_the_lengths_that_it_began_with():
    begun = resolved({}, 8192, SHORT)
    assert of(lengths.carried(from_tree({}), begun)) == of(begun)
    asked = lengths.carried(from_tree({"sampler": {"max_response_tokens": 5}}), begun)
    assert of(asked) == [5, *of(begun)[1:]]
