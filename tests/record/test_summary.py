import json
import re

import pytest

from trd_ray.config import from_tree
from trd_ray.record.directory import RunDirectory
from trd_ray.record.markdown import inline, side_by_side
from trd_ray.record.metrics import Metrics
from trd_ray.record.summary import write_summary
from trd_ray.rows import to_table
from trd_ray.score.stats import compare, score

HOSTILE = (
    "ok\n```\n````text\n# Title\n<script>alert(1)</script> [x](javascript:1) | a | b |\n\x1b[2J\u202egnp\ud800\x00"
)


def generation(y: str, tokens: int, passed: bool, text: str, extracted: str, detail: str = "") -> dict:
    made = {"ids": [1] * tokens, "text": text, "finish": "stop", "passed": passed, "extracted": extracted}
    return {y: made | {"detail": detail}}


def rows(step: int, repaired_text: str = "so \\boxed{5}") -> list[dict]:
    made = []
    for i, (raw, refined) in enumerate([(True, True), (False, True), (False, True), (False, False)]):
        plain = {"problem_id": f"p|{i}", "problem": f"Problem {i}?", "answer": "5", "reference": ""}
        order = {"row": 4 * step + i, "step": step, "epoch": 0, "sample_index": 0, "seed": 0}
        y_o = generation("y_o", 100 + i, raw, f"attempt {i} \\boxed{{4}}", "4", "" if raw else "not equal")
        y_r = generation("y_r", 40 + i, refined, repaired_text, "5", "" if refined else "deadline passed")
        made.append(plain | order | y_o | y_r | {"train": refined, "dropped_because": "" if refined else "failed"})
    return made


@pytest.fixture
def directory(tmp_path):
    made = RunDirectory.create(tmp_path / "r", from_tree({"name": "my__run__"}))
    yield made
    made.release()


def test_a_whole_run_is_told_from_what_it_recorded(directory):
    with Metrics(directory.path, 8) as metrics:
        for step in range(8):
            directory.write_rows(step + 1, to_table(rows(step)))
            seconds = {"seconds/step": 10.0 + step, "seconds/sample": 4.0, "seconds/overhead": 0.75}
            gaps = {"sync/gap_mean": 1e-5, "sync/gap_max": 3e-4}
            metrics.log(step + 1, {"y_o/passed": step / 10, "kl/mean": 0.5} | gaps | seconds)
    sampled = [r | {"problem_id": f"q{i % 4}", "y_o": r["y_o"] | {"passed": i < 4}} for i, r in enumerate(rows(0) * 2)]
    base = score(sampled, name="base", step=0, version=0, resamples=200, seed=0)
    solved = [r | {"y_o": r["y_o"] | {"passed": True}} for r in sampled]
    trained = score(solved, name="trained", step=8, version=8, resamples=200, seed=0)
    directory.write_evaluation(base, sampled)
    directory.write_evaluation(compare(trained, base, resamples=200, seed=0), solved)

    text = write_summary(directory)
    assert (directory.path / "summary.md").read_text() == text
    assert "8 steps, 32 rollouts, 24 trained on" in text
    assert "pass rate from 25.0% to 75.0%" in text
    assert "from 101.5 to 41.5 tokens" in text
    said = re.search(r"Avg@2 by \+50.0 points, 95% interval \[(\S+), (\S+)\], which is not clear of zero", text)
    assert said and float(said[1]) < 0 < 50 < float(said[2]), "four problems that move alike prove little"
    assert re.search(r"\| Avg@2 \| 50.0 \[\S+, \S+\] \| 100.0 \[\S+, 100.0\] \| \+50.0 \[\S+, \S+\] \|", text)
    assert "| raw failed | 16 (50.0%) | 8 (25.0%) | 24 (75.0%) |" in text
    assert "| raw passed | 8 (25.0%) | 0 (0.0%) | 8 (25.0%) |" in text
    assert "Not trained on: 8 (failed)." in text
    assert "| refined | 42 | 41.5 | 43 | 0.0% | 0.0% |" in text
    assert "| steps | 1 to 2 | 3 to 4 | 5 to 6 | 7 to 8 |" in text
    assert "| Raw pass | 0.050 | 0.250 | 0.450 | 0.650 |" in text
    assert "| step | 13.50 | 17.00 |" in text
    assert "| overhead | 0.75 | 0.75 |" in text
    assert "| deadline passed | 0 | 8 |" in text
    assert "differ by 1.0e-05 on average (1.0e-05 in the worst step, 3.0e-04 at the worst token)" in text
    assert text.count("attempt ") == 2
    assert "Of typical length among 16 repaired rollouts." in text
    assert "`checkpoints/`" in text


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {},
            [
                "A step took 17.50 s on average. Between pauses it took 16.00 s, 1.14 times its bound, "
                "S + R + T = 14.00 s: the slowest rollout was sampled in S = 9.00 s and refined in R = 3.00 s, and the "
                "learner trained for T = 2.00 s (medians over 3 steps,",
                "step's work). What binds is the work on a row.\n",
            ],
        ),
        (
            {"stream": {"max_staleness": 1}},
            [
                "2.00 times its bound, max(T, S, (S + R + T) / 2) = 9.00 s:",
                "S binds: new weights wait for the slowest rollout. `sync.in_flight=keep` has the bound 7.00 s.\n",
            ],
        ),
        (
            {"stream": {"max_staleness": 1}, "sync": {"in_flight": "keep"}},
            ["2.57 times its bound, max(T, (S + R + T) / 2) = 7.00 s:", "What binds is the work on a row.\n"],
        ),
        (
            {"stream": {"max_staleness": 1}, "sync": {"lora": "adapter"}, "learner": {"lora": {}}},
            ["2.57 times its bound, max(T, (S + R + T) / 2) = 7.00 s:", "What binds is the work on a row.\n"],
        ),
        ({"stream": {"max_staleness": "never"}}, None),
        ({"data": {"source": "corpus", "path": "/a/corpus"}}, None),
    ],
    ids=["on policy", "drain", "keep", "adapter", "never", "corpus"],
)
def test_the_time_of_a_step_stands_beside_its_bound_and_what_sets_that(tmp_path, keys, said):
    directory = RunDirectory.create(tmp_path / "timed", from_tree({"name": "timed"} | keys))
    with Metrics(directory.path, 4) as metrics:
        for step, seconds in enumerate([19.0, 15.0, 16.0, 20.0]):
            made = rows(step)
            for i, row in enumerate(made):
                row["y_o"]["seconds"] = 9.0 - i if step else 99.0
                row["y_r"]["seconds"] = 3.0
            directory.write_rows(step + 1, to_table(made))
            metrics.log(step + 1, {"seconds/step": seconds, "seconds/train": 2.0})
    text = write_summary(directory)
    directory.release()
    assert [words for words in said or [] if words not in text] == []
    assert ("its bound" in text) == bool(said)


def test_a_rollout_that_is_not_what_binds_is_not_blamed(tmp_path):
    recipe = from_tree({"name": "timed", "stream": {"max_staleness": 1}})
    directory = RunDirectory.create(tmp_path / "timed", recipe)
    for step in range(3):
        made = [row | {y: row[y] | {"seconds": 4.0} for y in ("y_o", "y_r")} for row in rows(step)]
        directory.write_rows(step + 1, to_table(made))
    for train, why in ((2.0, "the work on a row"), (9.0, "the learner")):
        lines = [{"step": step, "seconds/step": 9.0, "seconds/train": train} for step in (1, 2, 3)]
        (directory.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        said = f"What binds is {why}, not draining: `sync.in_flight=keep` has the same bound."
        assert said in write_summary(directory)
    directory.release()


def test_a_run_that_was_stopped_before_its_first_step_has_a_summary(directory):
    text = write_summary(directory)
    assert "0 steps, 0 rollouts" in text
    assert "No step was finished." in text


def test_a_run_without_refinement_says_nothing_of_it(directory):
    plain = [{k: v for k, v in r.items() if k != "y_r"} for r in rows(0)]
    directory.write_rows(1, to_table(plain))
    with Metrics(directory.path, 1) as metrics:
        metrics.log(1, {"loss": None, "seconds/step": 1.0})
    text = write_summary(directory)
    assert "refined passed" not in text
    assert "Repaired" not in text


def test_a_run_that_repairs_says_what_it_refined_and_what_that_cost(tmp_path):
    directory = RunDirectory.create(tmp_path / "r", from_tree({"train": {"trajectory": "repair"}}))
    made = rows(0)
    for row in made:  # the first attempt passed, and two of the other three were repaired
        passed = row["y_o"]["passed"]
        row |= {"trajectory": "y_o" if passed else "y_r", "train": True, "dropped_because": ""}
        row |= {"y_r": None} if passed else {"refine_tokens": 4 * len(row["y_r"]["ids"])}
    made[1]["refine_scored_tokens"] = 82
    directory.write_rows(1, to_table(made))
    text = write_summary(directory)
    directory.release()
    assert "on refined rollouts where raw ones failed, else raw ones" in text
    assert "3 of 4 rollouts were refined, which took their pass rate from 0.0% to 66.7%." in text
    assert "Trained on: 1 y_o, 3 y_r." in text
    assert "| attempts (y_o), by the sampler | 406 | 102 |" in text
    assert "by the refiner | 504 | 126 |" in text and "by the sampler | 82 | 20 |" in text


def test_model_output_cannot_leave_its_block(directory):
    directory.write_rows(1, to_table(rows(0, repaired_text=HOSTILE)))
    text = write_summary(directory)
    assert text.startswith("# my\\_\\_run\\_\\_\n")
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert outside.count("```") == 0
    assert "script" in text
    assert "script" not in outside
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\ud800-\udfff]", text)


def test_a_fence_is_longer_than_any_run_of_backticks_inside():
    for run in ("", "`", "```", "`" * 9):
        block = side_by_side(f"a {run}", f"{run}\nb", ("left", "right"), run)
        fence = block.splitlines()[-1]
        assert set(fence) == {"`"}
        assert fence not in "\n".join(block.splitlines()[1:-1])


def test_long_and_wide_text_keeps_to_its_column():
    block = side_by_side("x" * 100_000, "数学" * 300 + "\n\tend", ("left", "right"), "above")
    assert "97600 characters left out" in block
    assert len(block) < 20_000
    assert "[bold]" in side_by_side("[bold]", "", ("a", "b"), "c")


def test_a_cell_is_one_line_without_markup():
    assert inline("a|b\n<img> *x* `c` [l](u)") == r"a\|b \<img\> \*x\* \`c\` \[l\](u)"
    json.dumps(inline("\ud800"))


def test_verdicts_on_programs_are_counted_by_kind_and_a_repaired_one_says_what_failed(directory):
    made = rows(0)
    for i, row in enumerate(made):
        row["answer"] = ""
        row["y_o"]["extracted"] = "print(1)"
        row["y_r"]["extracted"] = "print(2)"
        if not row["y_o"]["passed"]:
            row["y_o"]["detail"] = f"wrong answer in case {i} of 12"
    directory.write_rows(1, to_table(made))
    with Metrics(directory.path, 1) as metrics:
        metrics.log(1, {"y_o/passed": 0.25})
    text = write_summary(directory)
    assert "| wrong answer in case N of N | 3 | 0 |" in text
    assert "y_o, failed: wrong answer in case" in text and "expected" not in text
