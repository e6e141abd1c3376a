"""A recipe says exactly what runs: defaults filled in, overrides applied, everything else refused in one sentence."""

import pytest
import yaml

from trd_ray import config
from trd_ray.config.rank_counts import RankRange
from trd_ray.errors import UserError


def refusal(tree: dict) -> str:
    with pytest.raises(UserError) as refused:
        config.from_tree(tree)
    return str(refused.value)


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_recipe_states_only_what_differs_from_the_defaults(recipe_file):
    recipe = config.load(recipe_file("name: mine\nlearner: {lr: 1.0e-4}\n"))
    assert (recipe.name, recipe.learner.lr) == ("mine", 1e-4)
    assert recipe.sampler == config.SamplerConfig()


def test_an_empty_recipe_is_the_defaults(recipe_file):
    assert config.load(recipe_file("")) == config.Recipe()


def test_an_override_goes_before_the_file_and_is_read_as_yaml(recipe_file):
    path = recipe_file("steps: 3\nlearner: {lr: 1.0e-4}\n")
    overrides = [
        "steps=7",
        "learner.lr=2e-6",
        "data.columns={problem: question}",
        "teacher.path=",
        "sampler.extra.seed=1",
    ]
    recipe = config.load(path, overrides)
    assert (recipe.steps, recipe.learner.lr) == (7, 2e-6)
    assert recipe.data.columns == {"problem": "question"}
    assert recipe.teacher.path is None
    assert recipe.sampler.extra == {"seed": 1}


def test_a_dumped_recipe_loads_to_an_equal_one(recipe_file):
    recipe = config.from_tree(
        {"stream": {"max_staleness": "never"}, "learner": {"betas": [0.8, 0.9]}, "run_dir": "~/x"}
    )
    assert config.load(recipe_file(config.dump(recipe))) == recipe


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"learnr": {}}, "unknown key learnr (did you mean learner?)"),
        ({"learner": {"lrr": 1}}, "unknown key learner.lrr (did you mean lr?)"),
        ({"learner.lr": 1e-4}, "unknown key learner.lr: in a file write it as learner: {lr: 0.0001}"),
        ({"learner": {"lora.rank": 8}}, "unknown key learner.lora.rank: in a file write it as lora: {rank: 8}"),
        ({"learner.lora": {"rank": 8}}, "unknown key learner.lora: in a file write it as learner: {lora: {rank: 8}}"),
        ({"learnr.lr": 1}, "unknown key learnr.lr (did you mean learner?)"),
        (
            {"cluster": {"zzz": 1}},
            "unknown key cluster.zzz (known here: address, local_cpus, object_store_gib, dashboard, memory_gib, "
            "fetch_timeout_s, wait_for_nodes_s)",
        ),
        ({"learner": {"lora": {"rnk": 1}}}, "unknown key learner.lora.rnk (did you mean rank?)"),
        ({"learner": {"lora": {"rank": 0}}}, "learner.lora.rank must be at least 1, but found 0"),
        ({"learner": {"lora": True}}, "learner.lora must not be true or false"),
        ({"learner": {"lr": "fast"}}, "learner.lr must be a number, but found 'fast'"),
        ({"learner": {"lr": float("nan")}}, "learner.lr must be a finite number, but found nan"),
        ({"sync": {"timeout_s": float("inf")}}, "sync.timeout_s must be a finite number, but found inf"),
        ({"learner": {"lr": 0}}, "learner.lr must be greater than 0.0, but found 0"),
        ({"learner": {"betas": [0.9, 1]}}, "learner.betas.1 must be less than 1.0, but found 1"),
        ({"learner": {"betas": [0.9]}}, "learner.betas.1 is missing"),
        ({"learner": 5}, "learner must be a group of keys, but found 5"),
        ({"steps": 2.5}, "steps must be a whole number, but found 2.5"),
        ({"steps": 0}, "steps must be at least 1, but found 0"),
        ({"steps": True}, "steps must not be true or false"),
        ({"name": 5}, "name must be text (quote it if it looks like a number), but found 5"),
        ({"data": {"shuffle": "maybe"}}, "data.shuffle must be true or false, but found 'maybe'"),
        ({"teacher": {"mode": "opds"}}, "teacher.mode must be 'opsd' or 'opd', but found 'opds'"),
        # Two branches of a union make one sentence.
        ({"stream": {"max_staleness": "x"}}, "stream.max_staleness must be a whole number or 'never', but found 'x'"),
        ({"stream": {"max_staleness": -1}}, "stream.max_staleness must be 0, a positive number of versions, or never"),
    ],
)
def test_a_fault_is_told_in_one_sentence_that_names_the_key(tree, sentence):
    assert refusal(tree) == sentence


def test_every_fault_is_told_at_once():
    told = refusal({"learner": {"dtype": "fp32", "lrr": 1}, "steps": "a"})
    assert told.count(";") == 2
    assert all(key in told for key in ("learner.dtype", "learner.lrr", "steps"))


@pytest.mark.parametrize(
    ("tree", "remedy"),
    [
        ({"teacher": {"mode": "opd"}}, "set teacher.path"),
        ({"teacher": {"path": "other"}}, "set teacher.mode=opd"),
        ({"teacher": {"mode": "opd", "path": "other", "follow": "live"}}, "set teacher.follow=frozen"),
        ({"refiner": {"share_sampler": True}}, "write placement: shared at the top of the recipe"),
        ({"placement": "shared"}, "set learner.lora={} and sync.lora=adapter; or set teacher.follow=live"),
        ({"placement": "shared", "learner": {"lora": {}}}, "set learner.lora={} and sync.lora=adapter"),
        ({"placement": "shared", "teacher": {"mode": "opd", "path": "t"}}, "set teacher.mode=opsd"),
        ({"placement": "shared", "teacher": {"follow": "ema"}}, "with an average: set teacher.follow=frozen"),
        (
            {"placement": "shared", "teacher": {"follow": "live"}, "refiner": {"dtype": "float16"}},
            "which compute in bfloat16, but refiner.dtype is float16: leave it out",
        ),
        ({"placement": "time"}, "placement must be 'separate', 'shared' or 'timeshare'"),
        ({"rollouts_per_step": 10, "sampler": {"n": 4}}, "multiple of sampler.n"),
        ({"teacher": {"mode": "opd", "path": "other", "follow": "ema"}}, "set teacher.follow=frozen"),
        (
            {"train": {"trajectory": "nearest"}},
            "set refiner.select=nearest and refiner.n=4",
        ),
        ({"train": {"mixture_share": 0.2}}, "set train.trajectory=mixture, or leave it out"),
        (
            {"train": {"trajectory": "repair", "when_refinement_fails": "raw_if_passed"}},
            "set train.when_refinement_fails=drop",
        ),
        ({"train": {"trajectory": "repair", "subset": "passed"}}, "set train.trajectory=y_o, or train.subset=all"),
        (
            {"train": {"trajectory": "y_o"}, "refiner": {"n": 4, "select": "nearest"}},
            "refiner.select=nearest is about",
        ),
        ({"train": {"trajectory": "y_o"}, "refiner": {"max_edited_share": 0.5}}, "refiner.max_edited_share is about"),
        (
            {"train": {"trajectory": "reference"}, "refiner": {"max_edited_share": 0.5}},
            "train.trajectory=reference trains on none",
        ),
        ({"train": {"trajectory": "y_o"}, "refiner": {"from": "problem"}}, "refiner.from=problem is about refinements"),
        ({"refiner": {"relay_logprob": -3}}, "set refiner.from=relay, or leave it out"),
        (
            {"refiner": {"from": "problem", "feedback": "verdict"}},
            "which refiner.from=problem does not show: set refiner.feedback=none",
        ),
        ({"refiner": {"select": "best_score"}}, "a single refinement to choose from: set refiner.n=4"),
        ({"train": {"subset": "best"}}, "set sampler.n=2, or train.subset=all"),
        ({"train": {"trajectory": "y_o"}, "loss": {"span": "edited"}}, "set loss.span=all, or another"),
        ({"data": {"passes": 2}}, "whose rollouts are sampled anew: set steps, which may be more than one pass has"),
        ({"loss": {"beta": 0.2}}, "loss.divergence is forward_kl"),
        ({"loss": {"rest": "tail"}}, "set loss.top_k"),
        (
            {"loss": {"divergence": "cross_entropy", "top_k": 8, "token_clip": 0.1}},
            "loss.top_k and loss.token_clip compare two distributions",
        ),
        (
            {"loss": {"divergence": "cross_entropy"}, "diagnostics": {"rows": 8}},
            "set diagnostics.rows=0, or another loss.divergence",
        ),
        ({"sync": {"lora": "adapter"}}, "set learner.lora={}, or sync.lora=merged"),
        ({"checkpoint": {"export": "adapter"}}, "set learner.lora={}, or checkpoint.export=merged"),
        ({"sync": {"lora": "adapter", "in_flight": "keep"}, "learner": {"lora": {}}}, "set sync.in_flight=drain"),
        ({"sync": {"lora": "adapter"}, "learner": {"lora": {"rank": 513}}}, "rank 512 at most"),
        ({"sync": {"lora": "adapter"}, "learner": {"lora": {}}, "teacher": {"follow": "ema"}}, "set sync.lora=merged"),
        ({"evaluation": {"every_steps": 5}, "stream": {"max_staleness": "never"}}, "set stream.max_staleness"),
        ({"checkpoint": {"best": "evaluation/av"}}, "did you mean evaluation/avg?"),
        ({"checkpoint": {"best": "evaluation/avg"}, "evaluation": {"path": None}}, "set evaluation.path"),
        (
            {
                "checkpoint": {"best": "evaluation/avg", "every_steps": 3},
                "evaluation": {"after": False, "every_steps": 2},
            },
            "a multiple of evaluation.every_steps",
        ),
    ],
)
def test_a_combination_that_cannot_work_is_refused_with_what_to_set(tree, remedy):
    assert remedy in refusal(tree)


@pytest.mark.parametrize("text", ["learner: [", "- a\n- b\n", "just words"])
def test_a_file_that_is_no_mapping_of_keys_is_refused(recipe_file, text):
    with pytest.raises(UserError, match="recipe"):
        config.load(recipe_file(text))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps: 3\nname: a\nsteps: 4\n", "the key 'steps' stands twice, in lines 1 and 3: keep one"),
        ("learner:\n  lr: 1.0e-4\n  'lr': 1.0e-5\n", "the key 'lr' stands twice, in lines 2 and 3"),
        ("learner: {lr: 1.0e-4, lr: 1.0e-5}\n", "the key 'lr' stands twice, in line 1"),
    ],
)
def test_a_repeated_key_is_refused_with_its_lines_and_the_file(recipe_file, text, told):
    path = recipe_file(text)
    with pytest.raises(UserError) as refused:
        config.load(path)
    assert told in str(refused.value) and path in str(refused.value)


def test_a_repeated_key_in_an_override_is_refused_and_a_key_beside_a_merged_one_is_not(recipe_file):
    with pytest.raises(UserError, match=r"override 'learner=.*the key 'lr' stands twice"):
        config.load(recipe_file(""), ["learner={lr: 1.0e-4, lr: 1.0e-5}"])
    merged = "sampler: &engine\n  <<: &small {cpus: 2, n: 1}\n  cpus: 0.5\nrefiner:\n  <<: *engine\n  n: 2\n"
    recipe = config.load(recipe_file(merged))
    assert (recipe.sampler.cpus, recipe.sampler.n, recipe.refiner.cpus, recipe.refiner.n) == (0.5, 1, 0.5, 2)


def test_a_recipe_that_a_run_left_is_named_when_it_cannot_be_read(tmp_path):
    place = tmp_path / "recipe.yaml"
    for text in ("", "- a\n", "learner: [", "learnr: {}\n"):
        place.write_text(text)
        with pytest.raises(UserError) as refused:
            config.stored(place)
        assert str(place) in str(refused.value)


@pytest.mark.parametrize("override", ["steps", "=3", "steps.sub=3", "steps=[1"])
def test_a_malformed_override_is_refused_and_quoted(recipe_file, override):
    with pytest.raises(UserError, match="override") as refused:
        config.load(recipe_file("steps: 3"), [override])
    assert repr(override) in str(refused.value)


def test_a_missing_recipe_lists_the_shipped_ones():
    with pytest.raises(UserError, match="smollm2_smoke.*did you mean smollm2_smoke"):
        config.load("smolm2_smoke")


def test_ranks_are_a_number_or_bounds():
    def workers(value: object) -> object:
        return config.from_tree({"learner": {"workers": value}}).learner.workers

    assert workers(3) == workers("3") == 3
    assert config.from_tree({"learner": {"workers": 3}}).learner.bounds == RankRange(min=3, max=3)
    recipe = config.from_tree({"learner": {"workers": {"min": 2, "max": 8}}})
    assert recipe.learner.bounds == RankRange(min=2, max=8) and recipe.learner.ranks == 2
    assert config.from_tree(yaml.safe_load(config.dump(recipe))) == recipe
    assert recipe.with_ranks(5).learner.workers == 5
    for wrong in (0, 1.5, "many", {"min": 2}, {"min": 3, "max": 2}, {"min": 0, "max": 2}, {"min": 1, "max": "x"}):
        with pytest.raises(UserError, match=r"learner\.workers must .*but found"):
            workers(wrong)
