"""The miniature worlds: problems kept apart, models that score as promised, a build that repeats; and the arithmetic.

What the world of code promises besides stands in test_miniature_code.
"""

import functools
import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen3ForCausalLM

from trd_ray import config, miniature
from trd_ray.errors import UserError
from trd_ray.miniature import build, measure, pretrain, task, tokenizer
from trd_ray.miniature.world import NAMES, Spec, Upbringing
from trd_ray.views import Views

PREFIX = {"arithmetic": "", "code": "code_"}  # of a world's models, splits and recipes
REWRITES = {"arithmetic": 0.95, "code": 0.93}  # share of attempts that both models rewrite rightly, at least
RECIPES = [(world, f"miniature_{prefix}{mode}") for world, prefix in PREFIX.items() for mode in ("opsd", "opd")]
TINY = Upbringing(
    student=Spec(layers=1, tied=True, rows=(2, 1, 1), steps=3, width=32, heads=1, feed_forward=32),
    teacher=Spec(layers=1, tied=False, rows=(2, 2), steps=3, width=32, heads=1, feed_forward=32),
    score_chains=4,
)

in_both_worlds = pytest.mark.parametrize("world", build.WORLDS.values(), ids=list(build.WORLDS))
with_both_recipes = pytest.mark.parametrize(("world", "recipe"), RECIPES, ids=[recipe for _, recipe in RECIPES])


@pytest.fixture(scope="module")
def words():
    return tokenizer.build()


@functools.cache
def shipped(world: str) -> list[Qwen3ForCausalLM]:
    return [Qwen3ForCausalLM.from_pretrained(miniature.model_path(PREFIX[world] + name)).eval() for name in NAMES]


def tiny(world: str):
    return replace(build.WORLDS[world], plan=TINY)


def attempts(n: int) -> list[tuple[task.Chain, list[task.Line]]]:
    rng = random.Random(5)
    chains = [task.random_chain(rng, task.TRAIN_STEPS) for _ in range(n)]
    return [(chain, pretrain.flawed_attempt(chain, task.SECRET, rng)) for chain in chains]


# The problems


@in_both_worlds
def test_the_problems_are_the_same_at_every_call_and_differ_from_each_other(world):
    for split, n in (("train", 3200), ("test", 200), ("tune", 200)):
        rows = miniature.problems(PREFIX[world.name] + split)
        assert rows == miniature.problems(PREFIX[world.name] + split)
        assert len({row["problem_id"] for row in rows}) == len({row["problem"] for row in rows}) == len(rows) == n


def test_another_seed_gives_other_problems():
    first, second = ({row["problem"] for row in task.problems("test", 200, seed)} for seed in (0, 1))
    assert len(first & second) < 10


@in_both_worlds
def test_no_held_out_problem_is_ever_trained_on(world):
    held_out = {row["problem"] for split in ("test", "tune") for row in miniature.problems(PREFIX[world.name] + split)}
    held_out |= {chain.problem for chain in measure.held_out_chains(world, 1000, seed=4)}
    assert len(held_out) > 1300
    trained = {row["problem"] for row in miniature.problems(PREFIX[world.name] + "train")}
    for name in NAMES:
        batches = world.batches(name)
        trained |= {example.values["problem"] for _ in range(40) for kind in next(batches) for example in kind}
    assert not held_out & trained


def test_chains_have_two_to_six_steps_to_train_on_and_six_to_evaluate():
    assert {len(row["problem"]) // 2 for row in miniature.problems("train")} == {2, 3, 4, 5, 6}
    assert {len(row["problem"]) // 2 for row in miniature.problems("test")} == {6}


def test_every_reference_and_answer_is_right_by_arithmetic_done_apart():
    at: dict[tuple[str, str], str] = {}  # the secret table, as the references show it
    for row in miniature.problems("train") + miniature.problems("test"):
        value, told = row["problem"][0], row["problem"][0]
        *lines, last = row["reference"].split("; ")
        for line in lines:
            left, op, right, result = re.fullmatch(r"(\d)([-+@])([123])=(\d)", line).groups()
            assert left == value
            if op == "@":
                assert at.setdefault((left, right), result) == result, "@ is not a function"
            else:
                assert int(result) == (int(left) + int(op + right)) % 10
            value, told = result, told + op + right
        assert told == row["problem"]
        assert (row["answer"], last) == (value, f"\\boxed{{{value}}}")
    assert len(at) == 30
    assert all({at[left, right] for left, r in at if r == right} == set("0123456789") for right in "123")


def test_a_rewrite_is_right_keeps_the_self_talk_and_drops_the_second_looks():
    wrong = 0
    for chain, attempt in attempts(300):
        rewritten = task.rewrite(chain, task.SECRET, attempt)
        said = [word for word in re.findall("[A-Z][a-z]+", task.text(attempt)) if word in ("Hmm", "So")]
        assert re.findall("[A-Z][a-z]+", task.text(rewritten)) == said
        assert re.sub("(Hmm|So) ", "", task.text(rewritten)) == task.text(task.solve(chain, task.SECRET))
        wrong += attempt[-1].result != rewritten[-1].result
    assert 60 < wrong < 240, "the attempts must be worth rewriting"


# The tokenizers and the prompts


@in_both_worlds
def test_encoding_then_decoding_returns_every_text_of_the_world(world):
    words = world.words()
    split = PREFIX[world.name] + "test"
    texts = {row[key] for row in miniature.problems(split) for key in ("problem", "reference")}
    for name in NAMES:
        batches = world.batches(name)
        for example in (example for _ in range(20) for kind in next(batches) for example in kind):
            texts |= {example.answer, *(example.values[key] for key in example.values.keys() - {"attempt"})}
    for text in texts:
        ids = words.encode(text, add_special_tokens=False)
        assert words.decode(ids) == text
        assert words.unk_token_id not in ids


def test_the_words_of_a_change_of_mind_are_one_token_bare_or_after_a_space(words):
    for word in ("Wait", " Wait", "Hmm", " Hmm"):
        assert words.convert_ids_to_tokens(words.encode(word, add_special_tokens=False)) == [word.strip()]


@in_both_worlds
@pytest.mark.parametrize("name", NAMES)
def test_the_end_of_a_turn_is_the_models_end_token(world, name):
    folder = miniature.model_path(PREFIX[world.name] + name)
    words = AutoTokenizer.from_pretrained(folder)
    asked, answered = {"arithmetic": ("1+1", "1+1=2; \\boxed{2}"), "code": ("read; print sum", "```python\n```")}[
        world.name
    ]
    turn = words.apply_chat_template(
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}], tokenize=False
    )
    assert turn == f"<|user|>{asked}<|end|><|assistant|>{answered}<|end|>"
    end = words.encode(turn, add_special_tokens=False)[-1]
    assert end == words.eos_token_id
    assert end == AutoConfig.from_pretrained(folder).eos_token_id
    assert end == GenerationConfig.from_pretrained(folder).eos_token_id
    assert words.get_vocab() == world.words().get_vocab()


@with_both_recipes
def test_the_recipes_views_are_the_token_sequences_the_models_were_trained_on(world, recipe):
    recipe, world = config.load(recipe), build.WORLDS[world]
    assert recipe.prompts.model_dump(exclude_none=True, exclude={"system", "task"}) == tokenizer.PROMPTS
    words = world.words()
    views = Views(recipe, words, words)
    view = "refine_with_reference" if recipe.teacher.mode == "opsd" else "refine"
    batches = world.batches("student")
    for values in (example.values for _ in range(5) for example in next(batches)[2]):
        y_o = words.encode(values["attempt"], add_special_tokens=False) + [words.eos_token_id]
        refine = views.refine(values["problem"], values["reference"], y_o)
        assert (refine.ids, refine.cut_tokens) == (words.encode(measure.prompt_text(words, view, values)), 0)
        assert views.student(values["problem"]) == words.encode(measure.prompt_text(words, "solve", values))


@with_both_recipes
def test_the_longest_attempt_fits_the_recipes_limits_uncut(world, recipe):
    recipe, words = config.load(recipe), build.WORLDS[world].words()
    rows = miniature.problems(PREFIX[world] + "test")
    row = max(rows, key=lambda row: len(words.encode(row["problem"] + row["reference"])))
    y_o = words.encode("Wait")[:1] * recipe.sampler.max_response_tokens
    view = Views(recipe, words, words).refine(row["problem"], row["reference"], y_o)
    assert view.cut_tokens == 0
    assert len(view.ids) <= recipe.refiner.max_prompt_tokens
    assert recipe.refiner.max_prompt_tokens + recipe.refiner.max_response_tokens <= recipe.refiner.max_model_len
    assert len(words.encode(measure.prompt_text(words, "solve", row))) <= (
        recipe.sampler.max_model_len - recipe.sampler.max_response_tokens
    )


@with_both_recipes
def test_every_text_the_models_learn_fits_the_recipes_response_limits(world, recipe):
    recipe, world = config.load(recipe), build.WORLDS[world]
    words, batches = world.words(), world.batches("student")
    for example in (example for _ in range(20) for kind in next(batches) for example in kind):
        limit = recipe.refiner if example.view == "refine_with_reference" else recipe.sampler
        assert len(words.encode(example.answer)) < limit.max_response_tokens


# The models


@in_both_worlds
def test_the_shipped_models_come_from_this_plan_and_weigh_less_than_5_mb(world):
    folder = miniature.model_path(PREFIX[world.name] + "student").parent
    built = f"run `trd miniature build --world {world.name}` and ship its folder"
    assert world.digest in (folder / "build.json").read_text(), built
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 5e6


@in_both_worlds
def test_the_student_ties_its_embeddings_and_the_teacher_does_not(world):
    assert [m.lm_head.weight is m.model.embed_tokens.weight for m in shipped(world.name)] == [True, False]


@in_both_worlds
def test_the_base_solves_about_a_third_and_both_models_rewrite_nearly_all(world):
    scored = measure.scores(world, *shipped(world.name), n=300, seed=11)
    student, teacher = scored["student"], scored["teacher"]
    assert 0.22 < student["solves"] < 0.45
    assert student["rewrites"] > REWRITES[world.name]
    assert teacher["solves"] > 0.95
    assert teacher["rewrites"] > 0.95
    assert max(student["rewrite_tokens"], teacher["rewrite_tokens"]) < student["solution_tokens"] - 5


@in_both_worlds
def test_both_refiners_mend_failed_attempts(world):
    torch.manual_seed(2)
    student, teacher = shipped(world.name)
    chains = measure.held_out_chains(world, 300, seed=2)
    attempted = zip(chains, measure.respond(world, student, "solve", chains), strict=True)
    failed = [(chain, text) for chain, text in attempted if not world.solved(chain, text)]
    chains, y_o = [chain for chain, _ in failed], [text for _, text in failed]
    for model, view in ((teacher, "refine"), (student, "refine_with_reference")):
        assert measure.accuracy(world, chains, measure.respond(world, model, view, chains, y_o)) > REWRITES[world.name]


# The build


@pytest.mark.parametrize("world", build.WORLDS)
def test_building_twice_gives_the_same_bytes(tmp_path, world):
    quiet = Console(quiet=True)
    scored = [build.build(tmp_path / run, tiny(world), quiet)["scores"] for run in ("a", "b")]
    assert scored[0] == scored[1]
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 13
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    save = build._save

    def interrupted(model, words, folder):
        save(model, words, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.build(tmp_path / "models", tiny("arithmetic"), Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_else_is_kept_unless_forced(tmp_path):
    (tmp_path / "models").mkdir()
    mine = tmp_path / "models" / "mine.txt"
    mine.write_text("keep me")
    with pytest.raises(UserError, match="--force"):
        build.build(tmp_path / "models", tiny("arithmetic"), Console(quiet=True))
    assert mine.read_text() == "keep me"
    build.build(tmp_path / "models", tiny("arithmetic"), Console(quiet=True), force=True)
    assert (tmp_path / "models" / "student" / "model.safetensors").is_file()
    assert not mine.exists()


def test_a_built_folder_is_used_as_it_is(tmp_path):
    first = build.build(tmp_path / "models", tiny("arithmetic"), Console(quiet=True))
    weights = tmp_path / "models" / "student" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert build.build(tmp_path / "models", tiny("arithmetic"), Console(quiet=True))["scores"] == first["scores"]
    assert weights.stat().st_mtime_ns == made


@in_both_worlds
def test_the_command_prints_the_scores_of_the_shipped_models_without_building_them_again(capsys, world):
    folder = miniature.model_path(PREFIX[world.name] + "student").parent
    assert build.main(["build", "--world", world.name, "--out", str(folder)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"student: solves 0\.[234]", printed)
    assert "teacher: solves 0.99" in printed or "teacher: solves 1.0" in printed


def test_the_cache_is_named_by_the_world_and_its_plan(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arithmetic, code = build.WORLDS.values()
    reseeded = replace(arithmetic, plan=replace(arithmetic.plan, seed=1))
    folders = {build.cache_folder(world) for world in (arithmetic, code, reseeded, tiny("arithmetic"))}
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {tmp_path / "trd_ray" / "miniature"}


def test_looking_at_the_worlds_does_not_import_torch():
    code = (
        "import sys; from trd_ray import miniature; miniature.problems('code_test'); miniature.model_path('student'); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
