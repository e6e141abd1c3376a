"""Bad input ends in one sentence with the remedy and exit code 2, before anything is started or written."""

import json
import re
import shutil
import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from trd_ray.cli import main
from trd_ray.miniature import model_path, problems
from trd_ray.rows import to_table


@pytest.fixture
def data(tmp_path):
    """Writes a JSONL file of problems and returns the override that names it."""

    def write(lines: list) -> str:
        path = tmp_path / "data.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return f"data.path={path}"

    return write


def model(tmp_path, name: str, file: str, change) -> str:
    """A copy of a miniature model with one JSON file changed."""
    folder = shutil.copytree(model_path(name), tmp_path / "model")
    tree = json.loads((folder / file).read_text())
    change(tree)
    (folder / file).write_text(json.dumps(tree))
    return str(folder)


def refused(capsys, tmp_path, *arguments: str, command: str = "train", recipe: str = "miniature_opsd") -> str:
    run_dir = tmp_path / "run"
    before = set(tmp_path.iterdir())
    # What else runs on this machine is no part of the claims.
    assert main([command, recipe, f"run_dir={run_dir}", "cluster.memory_gib=64", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("trd: ")
    assert set(tmp_path.iterdir()) == before
    return said[0]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["learner.lrr=1"], ["unknown key learner.lrr", "did you mean lr"]),
        (["steps=many"], ["steps", "whole number", "many"]),
        (["learner.lr=.nan"], ["learner.lr"]),
        (["student.path=/no/such/model"], ["/no/such/model", "config.json"]),
        (["data.path=/no/such.jsonl"], ["there is no data file /no/such.jsonl", "data.path"]),
        (["learner.cpus=64"], ["64", "CPUs", "lower"]),
        (["sampler.gpus=1"], ["GPU", "the cluster has 0"]),
        (["sampler.cpu_kv_cache_gib=9000"], ["memory", "GiB"]),
        (["cluster.object_store_gib=900000"], ["cluster.object_store_gib is 900000", "free now"]),
        (["checkpoint.best=kl/maen"], ["checkpoint.best=kl/maen", "did you mean kl/mean?"]),
        (["checkpoint.best=foo"], ["checkpoint.best=foo", "y_r/passed"]),
        (["sampler.extra.foo_bar=1"], ["sampler.extra.foo_bar"]),
        (["loss.top_k=1000"], ["loss.top_k", "28"]),
        (["placement=shared"], ["teacher.follow=live", "learner.lora={}", "sync.lora=adapter"]),
        (["refiner.share_sampler=true"], ["refiner.share_sampler", "placement=shared"]),
        (["sampler.max_response_tokens=4000"], ["sampler.max_model_len"]),
        (["refiner.max_prompt_tokens=17"], ["refiner.max_prompt_tokens"]),
        (["verify.function=review", "refiner.feedback=verdict"], ["verify.function=review", "refiner.feedback=none"]),
        (["data.source=corpus", "data.path=/no/corpus"], ["/no/corpus", "jobs/refine.py"]),
        (["prompts.solve=solve {problme}"], ["prompts.solve", "{problme}"]),
        (["--resume"], ["resume"]),
    ],
)
def test_a_bad_setting_is_refused(capsys, tmp_path, arguments, words):
    said = refused(capsys, tmp_path, *arguments)
    assert all(word in said for word in words), said


def test_a_misspelt_benchmark_is_refused_with_the_list_in_training_too(capsys, tmp_path):
    assert main(["train", "miniature_opsd", f"run_dir={tmp_path / 'run'}", "evaluation.path=aime42"]) == 2
    said = capsys.readouterr().err
    assert "there is no benchmark aime42 (did you mean aime2" in said and "livecodebench_v6" in said


def test_an_unknown_recipe_is_refused_with_the_known_ones(capsys, tmp_path):
    assert "miniature_opsd" in refused(capsys, tmp_path, recipe="miniature_opds")


GOOD = {"problem": "1+1", "answer": "2", "reference": "1+1=2;"}


@pytest.mark.parametrize(
    "lines, words",
    [
        ([], ["is empty"]),
        ([GOOD, '{"problem": "1+'], ["line 2", "cut off"]),
        ([{"question": "1+1", "answer": "2"}], ["data.columns", "question"]),
        ([GOOD | {"problem_id": "a"}, GOOD | {"problem_id": "a", "problem": "2+2"}], ["duplicate", "'a'"]),
        ([GOOD | {"answer": " "}], ["line 1", "answer"]),
        ([{"problem": "1+1", "answer": "2"}], ["reference"]),
    ],
)
def test_bad_data_is_refused(capsys, tmp_path, data, lines, words):
    said = refused(capsys, tmp_path, data(lines))
    assert all(word in said.replace("duplicated", "duplicate").replace("twice", "duplicate") for word in words), said


def test_a_teacher_with_another_vocabulary_is_refused(capsys, tmp_path):
    def swap(tree):
        vocabulary = tree["model"]["vocab"]
        vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]

    teacher = model(tmp_path, "teacher", "tokenizer.json", swap)
    assert "different vocabularies" in refused(capsys, tmp_path, f"teacher.path={teacher}", recipe="miniature_opd")


def test_a_template_that_ends_with_another_token_than_eos_is_refused(capsys, tmp_path):
    student = model(tmp_path, "student", "generation_config.json", lambda tree: tree.update(eos_token_id=0))
    assert "eos_token_id" in refused(capsys, tmp_path, f"student.path={student}")


def test_a_run_directory_in_use_is_refused(capsys, tmp_path):
    from trd_ray.config import load
    from trd_ray.record.directory import RunDirectory

    held = RunDirectory.create(tmp_path / "run", load("miniature_opsd", [f"run_dir={tmp_path / 'run'}"]))
    assert "in use" in refused(capsys, tmp_path)
    held.release()
    assert "--resume" in refused(capsys, tmp_path)


def test_a_dry_run_says_yes_or_no_and_starts_nothing(capsys, tmp_path, data):
    source = data(problems("train")[:64])
    assert main(["train", "miniature_opsd", source, f"run_dir={tmp_path / 'run'}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "fits: yes" in said and "sampler" in said and "KV cache" in said
    assert not (tmp_path / "run").exists()
    assert main(["train", "miniature_opsd", "--dry-run", source, "learner.cpus=64"]) == 2
    assert "fits: no" in capsys.readouterr().out


def test_resuming_a_finished_run_with_another_recipe_names_the_recipe_not_the_steps(capsys, tmp_path):
    from trd_ray.config import load
    from trd_ray.record.directory import RunDirectory

    directory = tmp_path / "run"
    RunDirectory.create(directory, load("miniature_opsd", [f"run_dir={directory}"])).release()
    (directory / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 26)))
    said = refused(capsys, tmp_path, "learner.lr=1e-5", "--resume")
    assert "began with another recipe: put back learner.lr=0.0015 (now 1e-05)" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "miniature_opsd"],
        ["refine", "miniature_opsd"],
        ["evaluate", "miniature:student", "miniature:test"],
        ["compare", "miniature"],
    ],
)
def test_a_submitted_job_does_not_write_into_ray_s_copy_of_the_code(capsys, tmp_path, monkeypatch, arguments):
    place = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1c"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    assert main(arguments) == 2
    assert "temporary copy of the code" in (said := capsys.readouterr().err) and "=/shared/runs/" in said
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    "given, resume, overrides",
    [
        ([], "no", ["a=1"]),
        (["--resume"], "required", ["a=1"]),
        (["--resume", "auto"], "auto", ["a=1"]),
        (["--resume=auto"], "auto", ["a=1"]),
        (["--resume", "no"], "no", ["a=1"]),
    ],
)
def test_resume_stands_alone_or_before_auto_and_takes_no_override_for_its_value(given, resume, overrides, monkeypatch):
    from trd_ray import cli

    options = []
    monkeypatch.setattr(cli, "_job", lambda found: options.append(found) or 0)
    assert main(["train", "miniature_opsd", *given, "a=1"]) == 0
    assert options[0].resume == resume and options[0].overrides == overrides


@pytest.mark.parametrize("given, resume", [([], "auto"), (["--resume=no"], "no"), (["--resume"], "required")])
@pytest.mark.parametrize("command", ["train", "refine"])
def test_a_submitted_job_resumes_unless_it_says_otherwise(command, given, resume, monkeypatch):
    from trd_ray import cli

    options = []
    monkeypatch.setattr(cli, "_job", lambda found: options.append(found) or 0)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main([command, "miniature_opsd", *given, "a=1"]) == 0
    assert options[0].resume == resume


def test_held_out_problems_laid_out_as_the_training_data_need_no_columns_of_their_own(capsys, tmp_path):
    files = []
    for part, few in (("train", 64), ("test", 5)):
        rows = [
            {"question": p["problem"], "final_answer": p["answer"], "solution": p["reference"]}
            for p in problems(part)[:few]
        ]
        files.append(tmp_path / f"{part}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = "data.columns={problem: question, answer: final_answer, reference: solution}"
    own = [f"data.path={files[0]}", columns, f"evaluation.path={files[1]}"]
    assert main(["train", "miniature_opsd", *own, "--dry-run"]) == 0
    assert "5 problems to evaluate on" in capsys.readouterr().out


def test_a_dry_run_on_a_corpus_says_its_rows_and_steps_and_what_it_shares_with_what_is_held_out(capsys, tmp_path):
    (tmp_path / "corpus" / "rows").mkdir(parents=True)
    order = {"step": 0, "epoch": 0, "sample_index": 0, "seed": 0}
    rows = [{"problem_id": "p", **p, **order, "row": i} for i, p in enumerate(problems("train")[:20])]
    pq.write_table(to_table(rows), tmp_path / "corpus" / "rows" / "step-000000.parquet")
    on_corpus = ["data.source=corpus", f"data.path={tmp_path / 'corpus'}", "rollouts_per_step=8"]
    assert main(["train", "miniature_opsd", *on_corpus, "evaluation.path=null", "--dry-run"]) == 0
    assert "a corpus of 20 rows, 2 steps of 8 rollouts on 16 problems" in capsys.readouterr().out
    assert main(["train", "miniature_opsd", *on_corpus, "data.passes=4", "steps=5", "--dry-run"]) == 0
    assert "5 steps of 8 rollouts on 16 problems in 2.5 passes" in capsys.readouterr().out
    assert main(["train", "miniature_opsd", *on_corpus, "steps=1", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "1 steps of 8 rollouts on 8 problems" in said and "none of 200 held-out problems is trained on" in said


def test_every_row_of_a_corpus_has_one_of_the_recipe_s_teachers_also_where_two_refined_one_problem(capsys, tmp_path):
    (tmp_path / "corpus" / "rows").mkdir(parents=True)
    plain = {"step": 0, "epoch": 0, "sample_index": 0, "seed": 0, "problem_id": "p"} | problems("train")[0]
    place = tmp_path / "corpus" / "rows" / "step-000000.parquet"
    teachers = "teachers={own: {mode: opsd, follow: live}, first: {mode: opsd}}"
    asked = ["data.source=corpus", f"data.path={tmp_path / 'corpus'}", "rollouts_per_step=4", teachers]
    for names, said in (
        (["own", "own", "first", "else"], "1 of 4 rows of the corpus .* such as 'else' .*: add it to teachers"),
        (["own", "own", "first", None], "1 of 4 rows .* name no teacher.*: set teacher in place of teachers, or make"),
    ):
        rows = [plain | {"row": i, "teacher": name} for i, name in enumerate(names)]
        pq.write_table(to_table(rows), place)
        assert re.search(said, refused(capsys, tmp_path, *asked, "evaluation.path=null"))


def test_a_corpus_of_programs_is_refined_anew_only_from_its_problems_which_have_tests(capsys, tmp_path):
    (tmp_path / "corpus" / "rows").mkdir(parents=True)
    order = {"row": 0, "step": 0, "epoch": 0, "sample_index": 0, "seed": 0}
    rows = [problems("code_train")[0] | {"problem_id": "p"} | order]
    pq.write_table(to_table(rows), tmp_path / "corpus" / "rows" / "step-000000.parquet")
    on_corpus = ["data.source=corpus", f"data.path={tmp_path / 'corpus'}"]
    said = refused(capsys, tmp_path, *on_corpus, command="refine", recipe="miniature_code_opsd")
    assert "does not keep their tests: set data.source=problems" in said


def test_what_is_wrong_with_data_model_and_placement_is_told_at_once(capsys, tmp_path):
    bad = ["data.path=/no/such.jsonl", "evaluation.path=/no/other.jsonl", "student.path=/no/such/model"]
    assert main(["train", "miniature_opsd", f"run_dir={tmp_path / 'run'}", *bad]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "trd: 3 things are in the way:" and len(said) == 4
    assert all(any(f"  - there is no {what}" in line for line in said) for what in ("data file", "such model"))

    bad = ["data.path=/no/such.jsonl", "learner.cpus=64", "evaluation.max_response_tokens=4000"]
    assert main(["train", "miniature_opsd", f"run_dir={tmp_path / 'run'}", *bad]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in ("/no/such.jsonl", "needs 65.25 CPUs", "lower evaluation.max_response_tokens"))
    assert not list(tmp_path.iterdir())


def own_data(tmp_path) -> list[str]:
    """The README's example with the model that is made here, which has a context of 8,192 tokens."""
    rows = [
        {"question": f"What is {i} + {i}?", "final_answer": f"{2 * i}", "solution": f"It is {2 * i}."} for i in range(8)
    ]
    for name, part in (("problems", rows[:6]), ("held_out", rows[6:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "my.yaml").write_text(
        f"""
name: mine
student: {{path: smollm2}}
data:
  path: {tmp_path}/problems.jsonl
  columns: {{problem: question, answer: final_answer, reference: solution}}
evaluation:
  path: {tmp_path}/held_out.jsonl
  columns: {{problem: question, answer: final_answer, reference: solution}}
"""
    )
    return [str(tmp_path / "my.yaml"), f"run_dir={tmp_path / 'run'}"]


def test_a_recipe_with_one_s_own_data_and_a_small_model_needs_no_lengths(capsys, tmp_path):
    arguments = own_data(tmp_path)
    # What is left to say is of this machine.
    small = ["rollouts_per_step=4", "learner.tokens_per_micro_batch=512"]
    code = main(["train", *arguments, *small, "--dry-run"])
    said, refused = capsys.readouterr()
    assert not refused
    verdict = said[said.index("fits:") :]
    assert code == (0 if verdict.strip() == "fits: yes" else 2)
    assert all("CPUs" in line or "memory" in line for line in verdict.splitlines()[1:]), verdict
    assert "max_response_tokens: null" not in said and "max_prompt_tokens: null" not in said


def test_problems_that_are_too_long_are_left_out_of_the_run_and_written_down_if_so_asked(tmp_path):
    from trd_ray.config import load
    from trd_ray.session.inputs import prepare

    recipe, run_dir = own_data(tmp_path)
    row = {"question": "How many? " * 5000, "final_answer": "5000", "solution": "As many."}
    with open(tmp_path / "problems.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    inputs = prepare(load(recipe, [run_dir, "data.too_long=drop"]))
    assert inputs.problems is not None and inputs.problems.num_rows == 6
    [out] = inputs.set_aside
    assert out.name == ("How many? " * 6) and out.reason.startswith("too long: its prompt of")
    assert out.problem_id not in inputs.problems["problem_id"].to_pylist()


def test_a_resumed_run_keeps_its_default_lengths_though_the_data_have_grown(tmp_path):
    from trd_ray.config import load
    from trd_ray.record.directory import RunDirectory
    from trd_ray.session.inputs import prepare
    from trd_ray.train.plan import to_resume

    path, run_dir = own_data(tmp_path)
    recipe = load(path, [run_dir])
    begun = prepare(recipe).recipe
    RunDirectory.create(recipe.directory, begun).release()
    with open(tmp_path / "problems.jsonl", "a") as file:
        row = {"question": "How many? " * 100, "final_answer": "100", "solution": "As many."}
        file.write(json.dumps(row) + "\n")
    grown = prepare(recipe).recipe
    assert grown.sampler.max_response_tokens != begun.sampler.max_response_tokens
    again = prepare(to_resume(recipe, "required")).recipe
    assert again == begun
    RunDirectory.create(recipe.directory, again, resume=True).release()


def test_a_cluster_that_does_not_answer_is_one_sentence(capfd, tmp_path):
    with socket.socket() as unused:  # bound and not listening: nobody answers there
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        run_dir = f"run_dir={tmp_path / 'run'}"
        assert main(["train", "miniature_opsd", run_dir, f"cluster.address={address}"]) == 2
        [line] = capfd.readouterr().err.strip().splitlines()
        assert line.startswith(f"trd: no Ray cluster answers at {address}") and "cluster.address" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("gib", ["-4", "0", "nan", "inf", "many"])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_gpu_without_memory_is_refused(capsys, gib, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "miniature_opsd", "--dry-run", f"--gpu-gib={gib}"])
    assert ended.value.code == 2 and "--gpu-gib" in capsys.readouterr().err


def begun_run(directory: Path, steps: int, line: dict) -> None:
    from trd_ray.config import load
    from trd_ray.record.directory import RunDirectory
    from trd_ray.session.inputs import prepare

    recipe = prepare(load("miniature_opsd", [f"run_dir={directory}", "cluster.memory_gib=64"])).recipe
    RunDirectory.create(directory, recipe).release()
    (directory / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n} | line) + "\n" for n in range(1, steps + 1))
    )


def test_a_run_whose_checkpoints_are_out_of_sight_is_not_begun_again_unasked(capsys, tmp_path):
    """miniature_opsd writes one every 10 steps. What `auto` in a loop would do again is kept, but the hours are not."""
    begun_run(tmp_path / "run", 21, {"lr": 1e-3})
    said = refused(capsys, tmp_path, "--resume", "auto")
    assert "has recorded 21 steps" in said and "say --resume (without auto)" in said
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 21


def test_a_corpus_is_not_taken_for_a_run_to_go_on_with(capsys, tmp_path):
    begun_run(tmp_path / "run", 3, {})
    assert "holds a corpus that `trd refine` made" in refused(capsys, tmp_path, "--resume", "auto")


REVIEWED = [
    ["verify.function=review"],
    ["verify.functions={maths: {function: math}, taste: {function: review}}"],
    ["verify.functions={maths: {function: math}, taste: {function: review}}", "verify.by=kind"],
]


@pytest.mark.parametrize("keys", REVIEWED, ids=["alone", "weighted", "by a column"])
def test_a_person_judges_a_corpus_alone_and_everything_else_is_refused_with_the_way_there(keys, capsys, tmp_path):
    said = refused(capsys, tmp_path, *keys)
    assert "cannot wait for one" in said
    assert all(word in said for word in ("trd refine", "trd review", "data.source=corpus", "data.path="))
    held_out = written(tmp_path / "held_out.jsonl")
    said = refused(capsys, tmp_path, *keys, "--dry-run", f"evaluation.path={held_out}", command="evaluate")
    assert "an evaluation cannot wait for one" in said and "evaluation.path" in said


def written(place: Path) -> Path:
    place.write_text('{"problem": "6+1", "answer": "7", "kind": "maths"}\n')
    return place


def test_a_source_that_a_person_judges_is_refused_too_where_the_run_trains(capsys, tmp_path):
    recipe = tmp_path / "mixed.yaml"
    sources = "[{name: a, path: miniature:train}, {name: b, path: miniature:tune, verify: review}]"
    recipe.write_text(f"student: {{path: miniature-student}}\ndata: {{sources: {sources}}}\n")
    assert "cannot wait for one" in refused(capsys, tmp_path, recipe=str(recipe))


def test_a_reviewed_corpus_trains_without_an_evaluation_that_a_person_would_judge(capsys, tmp_path):
    reviewed = ["verify.function=review", "data.source=corpus", "data.path=/no/corpus"]
    assert "an evaluation cannot wait" in refused(capsys, tmp_path, *reviewed)
    assert "/no/corpus holds no corpus" in refused(capsys, tmp_path, *reviewed, "evaluation.path=null")


def test_a_corpus_that_a_person_will_judge_is_planned_and_says_so(capsys, tmp_path):
    reviewed = ["refine", "miniature_opsd", f"run_dir={tmp_path / 'run'}", "cluster.memory_gib=64", "--dry-run"]
    assert main([*reviewed, "verify.function=review"]) == 0
    assert "a person judges" in capsys.readouterr().out
    assert main([*reviewed]) == 0 and "a person judges" not in capsys.readouterr().out
