"""Whole runs on data as people have it: conversations and verl's Parquet mixed by weight, and a system turn."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from runs import NO_EVALUATION, run
from trd_ray import miniature

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


def parquet(path: Path, rows: list[dict]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def says(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def test_a_run_on_conversations_and_on_verl_s_parquet_meets_each_by_its_weight(tmp_path):
    problems = miniature.problems("train")[:40]
    talks = [
        {"messages": [says("user", p["problem"]), says("assistant", p["reference"])], "answer": p["answer"]}
        for p in problems[:30]
    ]
    verl = [
        {
            "data_source": "miniature",
            "prompt": [says("user", p["problem"])],
            "reward_model": {"style": "rule", "ground_truth": p["answer"]},
            "extra_info": {"index": n, "answer": p["reference"]},
        }
        for n, p in enumerate(problems[30:])
    ]
    sources = [
        {"name": "talks", "path": parquet(tmp_path / "talks.parquet", talks), "weight": 3},
        {
            "name": "verl",
            "path": parquet(tmp_path / "verl.parquet", verl),
            "columns": {"reference": "extra_info.answer"},
            "weight": 1,
        },
    ]
    told = f"data.sources={yaml.safe_dump(sources, default_flow_style=True, width=10_000).strip()}"
    small = ["steps=2", "rollouts_per_step=16", *NO_EVALUATION, told]
    dry = run(tmp_path / "dry", "train", "miniature_opsd", *small, "--dry-run")
    assert "talks 30 problems, 75.0% of the rows" in dry.output and "verl 10 problems, 25.0%" in dry.output
    done = run(tmp_path / "run", "train", "miniature_opsd", *small)
    assert done.code == 0, done.output[-3000:]
    by_answer = {p["problem"]: p for p in problems}
    for row in done.rows:
        assert (row["answer"], row["reference"]) == tuple(by_answer[row["problem"]][k] for k in ("answer", "reference"))
        assert row["source"] == row["problem_id"].split("/")[0] and row["turns"] is None
    for step in done.metrics:
        assert (step["source/talks/rows"], step["source/verl/rows"]) == (12, 4)
        assert step["source/talks/refined_pass_rate"] > step["source/talks/pass_rate"]
    assert "## Sources" in (done.directory / "summary.md").read_text()


def test_a_run_on_conversations_with_a_system_turn_shows_it_to_the_student(tmp_path):
    system = says("system", "Answer in one short sentence.")
    rows = [
        {"prompt": [system, says("user", f"What is {n} + 1?")], "answer": str(n + 1), "solution": f"\\boxed{{{n + 1}}}"}
        for n in range(8)
    ]
    path = parquet(tmp_path / "prompts.parquet", rows)
    done = run(tmp_path / "run", "train", "smollm2_smoke", "steps=1", f"data.path={path}", *NO_EVALUATION)
    assert done.code == 0, done.output[-3000:]
    assert all(json.loads(row["turns"]) == [system] for row in done.rows)
    assert len({tuple(row["student_ids"][:10]) for row in done.rows}) == 1  # the system turn, which is one for all
