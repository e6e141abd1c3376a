"""The miniature world: its problems are right and kept apart, its tokens lose nothing, its models score as promised."""

import random
import re
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen3ForCausalLM

from trd_ray import config, miniature
from trd_ray.errors import UserError
from trd_ray.miniature import build, pretrain, score, task, tokenizer
from trd_ray.views import Views

RECIPES = ["miniature_opsd", "miniature_opd"]
MODELS = ["student", "teacher"]
TINY = build.Plan(
    student=build.Spec(layers=1, tied=True, rows=(2, 1, 1), steps=3, width=32, heads=1, feed_forward=32),
    teacher=build.Spec(layers=1, tied=False, rows=(2, 2), steps=3, width=32, heads=1, feed_forward=32),
    score_chains=4,
)


@pytest.fixture(scope="module")
def words():
    return tokenizer.build()


@pytest.fixture(scope="module")
def shipped():
    return {name: Qwen3ForCausalLM.from_pretrained(miniature.model_path(name)).eval() for name in MODELS}


def attempts(n: int) -> list[tuple[task.Chain, list[task.Line]]]:
    rng = random.Random(5)
    chains = [task.random_chain(rng, task.TRAIN_STEPS) for _ in range(n)]
    return [(chain, pretrain.flawed_attempt(chain, task.SECRET, rng)) for chain in chains]


# The task


def test_the_problems_are_the_same_at_every_call_and_differ_from_each_other():
    for split, n in (("train", 3200), ("test", 200)):
        rows = miniature.problems(split)
        assert rows == miniature.problems(split)
        assert len({row["problem_id"] for row in rows}) == len({row["problem"] for row in rows}) == len(rows) == n


def test_another_seed_gives_other_problems():
    first, second = ({row["problem"] for row in task.problems("test", 200, seed)} for seed in (0, 1))
    assert len(first & second) < 10


def test_no_held_out_problem_is_ever_trained_on():
    held_out = {row["problem"] for seed in range(5) for row in task.problems("test", 400, seed)}
    trained = {row["problem"] for seed in range(3) for row in task.problems("train", 3200, seed)}
    for name in MODELS:
        batches = build.Plan().batches(name)
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


# The tokenizer and the prompts


def test_encoding_then_decoding_returns_every_text_of_the_task(words):
    texts = [row[key] for row in miniature.problems("test") for key in ("problem", "reference")]
    for chain, attempt in attempts(300):
        texts += [task.text(attempt), task.text(task.rewrite(chain, task.SECRET, attempt))]
    for text in texts:
        ids = words.encode(text, add_special_tokens=False)
        assert words.decode(ids) == text
        assert words.unk_token_id not in ids


def test_the_words_of_a_change_of_mind_are_one_token_bare_or_after_a_space(words):
    for word in ("Wait", " Wait", "Hmm", " Hmm"):
        assert words.convert_ids_to_tokens(words.encode(word, add_special_tokens=False)) == [word.strip()]


@pytest.mark.parametrize("name", MODELS)
def test_the_end_of_a_turn_is_the_models_end_token(name):
    folder = miniature.model_path(name)
    words = AutoTokenizer.from_pretrained(folder)
    turn = words.apply_chat_template(
        [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "1+1=2; \\boxed{2}"}], tokenize=False
    )
    assert turn == "<|user|>1+1<|end|><|assistant|>1+1=2; \\boxed{2}<|end|>"
    end = words.encode(turn, add_special_tokens=False)[-1]
    assert end == words.eos_token_id
    assert end == AutoConfig.from_pretrained(folder).eos_token_id
    assert end == GenerationConfig.from_pretrained(folder).eos_token_id
    assert words.get_vocab() == tokenizer.build().get_vocab()


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_views_are_the_token_sequences_the_models_were_trained_on(name, words):
    recipe = config.load(name)
    assert recipe.prompts.model_dump(exclude_none=True, exclude={"system"}) == tokenizer.PROMPTS
    views = Views(recipe, words, words)
    suffix = "_with_reference" if recipe.teacher.mode == "opsd" else ""
    for chain, attempt in attempts(50):
        values = {"problem": chain.problem, "reference": task.text(task.solve(chain, task.SECRET))}
        values["attempt"] = task.text(attempt)
        y_o = words.encode(values["attempt"], add_special_tokens=False) + [words.eos_token_id]
        trained = {view: words.encode(score.prompt_text(words, view, values)) for view in tokenizer.PROMPTS}
        assert views.student(values["problem"]) == trained["solve"]
        refine = views.refine(values["problem"], values["reference"], y_o)
        assert (refine.ids, refine.cut_tokens) == (trained["refine" + suffix], 0)


@pytest.mark.parametrize("name", RECIPES)
def test_the_longest_attempt_fits_the_recipes_limits_uncut(name, words):
    recipe = config.load(name)
    row = max(miniature.problems("test"), key=lambda row: len(row["reference"]))
    y_o = words.encode("Wait")[:1] * recipe.sampler.max_response_tokens
    view = Views(recipe, words, words).refine(row["problem"], row["reference"], y_o)
    assert view.cut_tokens == 0
    assert len(view.ids) <= recipe.refiner.max_prompt_tokens
    assert recipe.refiner.max_prompt_tokens + recipe.refiner.max_response_tokens <= recipe.refiner.max_model_len
    assert len(words.encode(score.prompt_text(words, "solve", row))) <= (
        recipe.sampler.max_model_len - recipe.sampler.max_response_tokens
    )


# The models


def test_the_shipped_models_come_from_this_plan_and_weigh_less_than_8_mb():
    folder = miniature.model_path("student").parent
    assert build.Plan().digest in (folder / "build.json").read_text(), "run `trd miniature build` and ship its folder"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8e6


def test_the_student_ties_its_embeddings_and_the_teacher_does_not(shipped):
    tied = {name: model.lm_head.weight is model.model.embed_tokens.weight for name, model in shipped.items()}
    assert tied == {"student": True, "teacher": False}


def test_the_base_solves_about_a_third_and_both_models_rewrite_nearly_all(shipped, words):
    scored = score.scores(shipped["student"], shipped["teacher"], words, n=300, seed=11)
    student, teacher = scored["student"], scored["teacher"]
    assert 0.22 < student["solves"] < 0.45
    assert student["rewrites"] > 0.95
    assert teacher["solves"] > 0.95
    assert teacher["rewrites"] > 0.95
    assert max(student["rewrite_tokens"], teacher["rewrite_tokens"]) < student["solution_tokens"] - 5


def test_the_teacher_mends_failed_attempts(shipped, words):
    torch.manual_seed(2)
    chains = score.held_out_chains(300, seed=2)
    y_o = score.respond(shipped["student"], words, "solve", chains)
    failed = [
        (chain, text)
        for chain, text in zip(chains, y_o, strict=True)
        if task.boxed(text) != str(task.solve(chain, task.SECRET)[-1].result)
    ]
    chains, y_o = [chain for chain, _ in failed], [text for _, text in failed]
    assert score.accuracy(chains, score.respond(shipped["teacher"], words, "refine", chains, y_o)) > 0.95
    assert score.accuracy(chains, score.respond(shipped["student"], words, "refine_with_reference", chains, y_o)) > 0.95


# The build


def test_building_twice_gives_the_same_bytes(tmp_path):
    quiet = Console(quiet=True)
    scored = [build.build(tmp_path / run, TINY, quiet)["scores"] for run in ("a", "b")]
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
        build.build(tmp_path / "models", TINY, Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_else_is_kept_unless_forced(tmp_path):
    (tmp_path / "models").mkdir()
    mine = tmp_path / "models" / "mine.txt"
    mine.write_text("keep me")
    with pytest.raises(UserError, match="--force"):
        build.build(tmp_path / "models", TINY, Console(quiet=True))
    assert mine.read_text() == "keep me"
    build.build(tmp_path / "models", TINY, Console(quiet=True), force=True)
    assert (tmp_path / "models" / "student" / "model.safetensors").is_file()
    assert not mine.exists()


def test_a_built_folder_is_used_as_it_is(tmp_path):
    first = build.build(tmp_path / "models", TINY, Console(quiet=True))
    weights = tmp_path / "models" / "student" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert build.build(tmp_path / "models", TINY, Console(quiet=True))["scores"] == first["scores"]
    assert weights.stat().st_mtime_ns == made


def test_the_command_prints_the_scores_of_the_shipped_models_without_building_them_again(capsys):
    shipped = miniature.model_path("student").parent
    assert build.main(["build", "--out", str(shipped)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "student: solves 0.3" in printed
    assert "teacher: solves 0.99" in printed


def test_the_cache_is_named_by_the_recipe(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = {build.cache_folder(plan) for plan in (build.Plan(), build.Plan(seed=1), TINY)}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {tmp_path / "trd_ray" / "miniature"}


def test_looking_at_the_world_does_not_import_torch():
    code = (
        "import sys; from trd_ray import miniature; miniature.problems('test'); miniature.model_path('student'); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
