"""A whole run on a family of reasoning_gym, with two more evaluation sets, of which one is a guard."""

import importlib.util
import json

import pytest

from runs import run


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")
def test_a_family_of_reasoning_gym_goes_through_the_whole_loop_with_a_guard_beside(tmp_path):
    family = "reasoning_gym:spell_backward"
    sets = (
        f"{{old: {{path: word_problems:test, limit: 2, guard: true}}, same: {{path: {family}, limit: 3, samples: 1}}}}"
    )
    done = run(
        tmp_path / "run",
        "train",
        "smollm2_smoke",
        f"data.path={family}",
        "data.arguments={size: 8, test: 4, seed: 1, min_word_len: 3, max_word_len: 4}",
        f"evaluation.path={family}",
        f"evaluation.sets={sets}",
        "evaluation.bootstrap=200",
        "sampler.max_response_tokens=24",
        "refiner.max_response_tokens=24",
        "evaluation.max_response_tokens=24",
        "checkpoint.every_steps=1",
        "checkpoint.best=evaluation/same/avg",
        timeout_s=800,
    )
    assert done.code == 0, done.output[-3000:]
    assert done.left == []
    rows = done.rows
    assert len(rows) == 8
    for row in rows:
        assert row["problem_id"].startswith("spell_backward/1/")
        assert "<answer>" in row["problem"]
        assert row["y_o"]["passed"] is not None and 0 <= row["y_o"]["score"] <= 1
    assert {row["problem_id"] for row in rows} <= {f"spell_backward/1/{i}" for i in range(8)}
    last = done.metrics[-1]
    assert {"evaluation/avg", "evaluation/old/avg", "evaluation/old/lost", "evaluation/same/pass"} <= last.keys()
    assert "evaluation/same/lost" not in last
    evaluation = done.directory / "evaluation"
    for of, samples in (("", 2), ("old", 2), ("same", 1)):
        for name in ("base", "trained"):
            score = json.loads((evaluation / of / f"{name}.json").read_text())
            assert score["samples"] == samples and set(map(len, score["per_problem"].values())) == {samples}
    trained = json.loads((evaluation / "trained.json").read_text())
    assert set(trained["per_problem"]) == {f"spell_backward/1/{i}" for i in range(8, 12)}
    summary = (done.directory / "summary.md").read_text()
    assert "## Evaluation sets" in summary and "| old |" in summary
