"""Run directories as a run leaves them, made up without one: rows, metrics, scores, events and a timeline."""

import json
import random
from pathlib import Path

import numpy as np

from trd_ray.config import from_tree
from trd_ray.record.directory import RunDirectory
from trd_ray.record.ledger import row_metrics
from trd_ray.record.timeline import Timeline
from trd_ray.rows import light, to_table
from trd_ray.score.stats import compare, score

BEGAN = 1_790_000_000.0
SECONDS = 10.0  # a step
HOSTILE = (
    "</script><script>window.hurt=1</script><img src=x onerror='window.hurt=2'><!-- {{ 7*7 }} "
    "\u202egnp\u2066\x00\x1b[2J\ud800javascript:alert(1)" + "\U0001f600" * 3
)


def recorded(
    place: Path,
    steps: int = 6,
    rollouts: int = 8,
    problems: int = 12,
    gain: float = 0.4,
    seed: int = 0,
    ended: str | None = "done",
    evaluated: tuple[str, ...] = ("base", "trained"),
    hostile: bool = False,
    events: tuple[dict, ...] = (),
    **recipe,
) -> Path:
    """A run that trained for so many steps. `ended` None: it said no last word."""
    rng = random.Random(seed)
    tree = {"name": "made-up", "steps": steps, "rollouts_per_step": rollouts, "run_dir": str(place)}
    tree |= {"evaluation": {"path": "miniature:test", "samples": 4, "bootstrap": 300}} | recipe
    directory = RunDirectory.create(place, from_tree(tree))
    lines = []
    timeline = Timeline(place / "timeline.json", wall=lambda: BEGAN)
    for step in range(1, steps + 1):
        rows = [_row(rng, step, i, rollouts, steps, hostile) for i in range(rollouts)]
        table = to_table(rows)
        directory.write_rows(step, table)
        lines.append({"step": step} | row_metrics(light(table), step - 1) | _learned(rng, step, steps, rows))
        _work(timeline, step)
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    timeline.save()
    scores = {}
    for name in evaluated:
        answers = _answers(rng, problems, 0.3 + (gain if name != "base" else 0.0), hostile)
        made = score(answers, name=name, step=0 if name == "base" else steps, version=0, resamples=300, seed=0)
        scores[name] = compare(made, scores["base"], resamples=300, seed=0) if "base" in scores else made
        directory.write_evaluation(scores[name], answers)
    directory.release()
    _tell(place, steps, ended, events)
    return place


def _row(rng: random.Random, step: int, i: int, rollouts: int, steps: int, hostile: bool) -> dict:
    raw, refined = rng.random() < 0.3 + 0.5 * step / steps, rng.random() < 0.9
    text = HOSTILE if hostile else "so \\boxed{4}"
    at = BEGAN + SECONDS * (step - 1)

    def made(passed: bool, tokens: int, begin: float) -> dict:
        found = {
            "ids": list(range(tokens)),
            "logprobs": [-0.5] * tokens,
            "text": text,
            "finish": "stop",
            "version": step - 1,
        }
        verdict = {"passed": passed, "score": float(passed), "extracted": "4", "detail": "" if passed else "not equal"}
        return (
            found
            | verdict
            | {
                "engine": "sampler-0",
                "start_s": begin,
                "seconds": 2.0,
                "verify_start_s": begin + 2,
                "verify_seconds": 0.1,
            }
        )

    of, n = (made(raw, 5 + rng.randrange(20), at), 5 + rng.randrange(10))
    y_r = made(refined, n, at + 3)
    tokens = np.array([rng.random() for _ in range(n)])
    found = {"kl": tokens, "student_nll": tokens / 2, "teacher_nll": tokens / 4, "onset": tokens / 500}
    scored = {"trajectory": "y_r", "view": "refine", "trained": True}
    scored |= {name: list(values.astype(np.float16)) for name, values in found.items()}
    return {
        "problem_id": f"p{i}", "problem": text if hostile else f"Problem {i}?", "answer": "4", "reference": "four",
        "row": rollouts * (step - 1) + i, "step": step - 1, "epoch": 0, "sample_index": 0, "seed": 0,
        "y_o": of, "y_r": y_r, "trajectory": "y_r", "train": True, "dropped_because": "", "response_ids": y_r["ids"],
        "scored": [scored],
    }  # fmt: skip


def _learned(rng: random.Random, step: int, steps: int, rows: list[dict]) -> dict:
    fall = 1 - 0.8 * step / steps
    found = {
        "loss": fall,
        "kl/mean": 0.2 * fall * rng.uniform(0.9, 1.1),
        "kl/row_mean": 0.2 * fall,
        "grad_norm": 1.5 * fall,
    }
    found |= {"student/entropy": 0.3 * fall, "teacher/entropy": 0.1, "student/nll": 0.4 * fall, "teacher/nll": 0.1}
    found |= {"lr": 1e-4 * fall, "sync/gap_mean": 2e-7, "sync/gap_max": 3e-6 * rng.uniform(0.5, 1.5)}
    found |= {
        f"seconds/{stage}": rng.uniform(0.5, 3) for stage in ("sample", "refine", "verify", "train", "sync", "overhead")
    }
    found |= {"seconds/step": SECONDS, "time_s": BEGAN + SECONDS * step, "version": step, "epoch": 0}
    found |= {"tokens_per_s/sampler": rng.uniform(900, 1100), "tokens_per_s/refiner": rng.uniform(500, 700)}
    return found | {
        "trained_tokens": float(sum(len(row["response_ids"]) for row in rows)),
        "updates": 1.0,
        "skipped_updates": 0.0,
    }


def _work(timeline: Timeline, step: int) -> None:
    at = BEGAN + SECONDS * (step - 1)
    timeline.span("wait", at, at + 6)
    timeline.span("train", at + 6, at + 9.5)
    timeline.work("engines", "sampler-0", "sample", [(at, at + 2.5)])
    timeline.work("engines", "refiner-0", "refine", [(at + 3, at + 5)])
    timeline.work("learner", "rank 0", "train", [(at + 6, at + 9)])


def _answers(rng: random.Random, problems: int, rate: float, hostile: bool) -> list[dict]:
    found = []
    for p in range(problems):
        of_problem = min(1.0, max(0.0, rate + rng.uniform(-0.3, 0.3)))
        for k in range(4):
            passed = rng.random() < of_problem
            y = {"ids": [1] * rng.randrange(4, 30), "text": "x", "finish": "stop", "passed": passed, "extracted": "4"}
            name = f"q{p}{HOSTILE if hostile and p == 0 else ''}"
            plain = {"problem": "?", "answer": "4", "reference": "", "row": 4 * p + k, "step": 0, "epoch": 0}
            found.append({"problem_id": name.replace("\ud800", "?"), **plain, "sample_index": k, "seed": 0, "y_o": y})
    return found


def _tell(place: Path, steps: int, ended: str | None, events: tuple[dict, ...]) -> None:
    end = BEGAN + SECONDS * steps
    told = [{"when": BEGAN, "kind": "start", "said": "process 1 on there starts"}, *events]
    told += [{"when": end, "kind": "end", "how": ended, "said": ended}] if ended else []
    (place / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told))
    over = {"how": ended, "said": "", "when": end} if ended else None
    status = {"schema": 1, "program": "train", "written": end, "ended": over, "shown": {"steps": [steps, steps]}}
    (place / "status.json").write_text(json.dumps(status))
