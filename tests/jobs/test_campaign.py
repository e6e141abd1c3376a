"""A campaign from its draw to its table, over runs that a script makes up at once: Ray has no part in it."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch.distributed.checkpoint import save

from trd_ray import lineage
from trd_ray.record.directory import write_parquet
from trd_ray.rows import ROW, to_table

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
from chaos_rounds import campaign  # noqa: E402
from chaos_rounds.ways import KILL, Way, steps_for  # noqa: E402

STEPS = steps_for(1)
WAYS = tuple(Way(victim, int(KILL), "train", "stream", "local") for victim in ("learner", "driver"))
# A run that is there at once, whose driver ends once if it is struck. The learner is struck without a consequence.
SCRIPT = """
import json, os, shutil, sys, time
from pathlib import Path
plan = json.loads(Path(os.environ["TRD_CHAOS_PLAN"]).read_text())
folder, made = Path(plan["folder"]), Path({made!r})
with open(made.with_name("starts"), "a") as starts:
    starts.write(folder.name + "\\n")
[run] = [Path(a.partition("=")[2]) for a in sys.argv if a.startswith("run_dir=")]
if not run.exists():
    shutil.copytree(made, run)
    if "name=lossy" in sys.argv and plan["strikes"]:
        (run / "rows" / "step-000003.parquet").unlink()
with open(folder / "moments.jsonl", "a") as log:
    for moment in ("train", "recorded"):
        log.write(json.dumps({{"when": time.time(), "moment": moment, "step": 2}}) + "\\n")
for strike in plan["strikes"]:
    struck = folder / f"struck-{{strike['number']:03d}}.json"
    if not struck.exists():
        struck.write_text(json.dumps({{"when": time.time(), "step": strike["step"], "pid": os.getpid()}}))
        sys.exit(137 if strike["victim"] == "driver" else 0)
"""


@pytest.fixture
def made(tmp_path, monkeypatch) -> Path:
    """A whole run directory, which the script copies; beside it `starts` says which runs were started."""
    directory = tmp_path / "made"
    per_step = campaign.ROWS_PER_STEP
    given = {field.name: "" if pa.types.is_string(field.type) else 0 for field in ROW if not field.nullable}
    sha256 = lineage.START
    for folder in ("rows", "checkpoints"):
        (directory / folder).mkdir(parents=True)
    for step in range(1, STEPS + 1):
        numbers = range((step - 1) * per_step, step * per_step)
        rows = [given | {"row": n, "step": step, "problem_id": f"p{n}", "seed": n, "train": True} for n in numbers]
        write_parquet(directory / "rows" / f"step-{step:06d}.parquet", to_table(rows))
        sha256 = lineage.advance(sha256, step, list(numbers))
    (directory / "metrics.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in range(1, STEPS + 1)))
    checkpoint = directory / "checkpoints" / f"step-{STEPS:06d}"
    save({"x": torch.zeros(2)}, checkpoint_id=checkpoint / "learner", no_dist=True)
    (checkpoint / "model").mkdir()
    (checkpoint / "model" / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "state.json").write_text(json.dumps({"steps": STEPS, "rows_sha256": sha256}))
    script = tmp_path / "lead.py"
    script.write_text(SCRIPT.format(made=str(directory)))
    monkeypatch.setattr("chaos_rounds.struck_run.LEAD", script)
    monkeypatch.setattr("chaos_rounds.struck_run.LEAVE_S", 1.0)
    return directory


def starts(made: Path) -> list[str]:
    return made.with_name("starts").read_text().split()


def go(folder: Path, *overrides: str, rounds: int = 2, seed: int = 0, together: int = 1) -> list:
    settings = campaign.Settings(
        "miniature_opsd", overrides, folder, rounds, seed=seed, stand_ins=True, together=together, ways=WAYS, keep=False
    )
    return campaign.Campaign(settings).go()


def test_a_campaign_goes_on_where_it_ended_and_makes_rounds_of_other_code_again(made, tmp_path, monkeypatch):
    folder = tmp_path / "campaign"
    found = go(folder)
    assert [(r.verdict, r.exits) for r in sorted(found, key=lambda r: r.victim)] == [("ok", [137, 0]), ("ok", [0])]
    assert starts(made).count("calm-stream") == 1 and len(starts(made)) == 4
    assert "2 rounds: 2 ok, 0 failed, 0 missed. 0 hangs" in (folder / "table.md").read_text()
    assert sorted(place.name for place in folder.iterdir()) == [
        "calm-stream", "round-000.json", "round-001.json", "table.md",
    ]  # fmt: skip

    assert go(folder) == found and len(starts(made)) == 4
    assert len(go(folder, rounds=3)) == 3 and len(starts(made)) in (5, 6)
    monkeypatch.setattr(campaign, "code_digest", lambda: "other")
    assert [r.code for r in go(folder)] == ["other", "other"]
    assert starts(made).count("calm-stream") == 2


def test_a_strike_whose_moment_never_came_is_made_again_in_a_run_of_its_own(made, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "steps_for", lambda _: STEPS)
    found = go(tmp_path / "campaign", seed=3, together=2)  # the learner is struck first, and the script's run ends then
    assert [(r.victim, r.verdict, r.exits) for r in found] == [("learner", "ok", [0]), ("driver", "ok", [137, 0])]
    assert starts(made) == ["calm-stream", "run-000", "run-001", "run-001"]


def test_a_run_that_is_not_as_it_must_be_is_kept_and_every_fault_of_it_is_named(made, tmp_path):
    found = go(tmp_path / "campaign", "name=lossy")
    assert {r.verdict for r in found} == {"failed"}
    text = "; ".join(found[0].flaws)
    for words in ("8 rows lost: 16, 17, 18", "other rows made", "another problem, place or seed"):
        assert words in text
    assert (tmp_path / "campaign" / "run-000" / "run.out").exists()
    assert "2 with rows lost" in (tmp_path / "campaign" / "table.md").read_text()
