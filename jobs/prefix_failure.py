"""`python jobs/prefix_failure.py --directory DIR`: why training on a failed rollout goes wrong, measured.

    held-out chains -> rollouts of the miniature student, refinements by both teachers
      1. at each step of y_o: what the teacher says next on a right prefix, and on a wrong one
      2. the KL signal by tenth of the trajectory: passed y_o, failed y_o, y_r
      3. the gradient of forward KL, reverse KL and TRD on passed and on failed rollouts, beside that of the pass rate
                 -> tables.md, prefix_failure.svg, results.json

OPD's teacher is a stronger model that sees the problem alone; OPSD's is the student's own weights with the reference.
y_o is scored under the vanilla view and y_r under the refine view, as in training. On a wrong prefix a teacher that
repeats the reference's value contradicts what stands there: that is prefix failure. A teacher that goes on from what
stands there shows none.

Pure torch on one base: intervals resample the problems. `--student FOLDER` looks at a trained student of this world.

Exit codes: 0 it is written, whatever it says, 2 a mistake in the options.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import seeded_runs
from prefix_parts.gradients import GROUPS, METHODS, PassRate, Pull, by_method, cosine, pass_rate
from prefix_parts.positions import TENTHS, Signal, Step, clustered, mean_by_tenths, signals, steps
from prefix_parts.rollouts import MODES, Models, Rollout, rollouts

from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.miniature import TEST_PROBLEMS, model_path
from trd_ray.record.markdown import table
from trd_ray.report import line_panels
from trd_ray.score.stats import percent

RESAMPLES = 10_000
KINDS = {"+ and -": "+-", "@": "@"}  # what is seen of a step: facts that everybody knows, and the secret ones
LINES = ("y_o passed", "y_o failed", "y_r")
AT_LEAST = 2  # problems, and rollouts of each: what the gradient of the pass rate needs


# What the teacher says next


def next_steps(found: Sequence[Step], seed: int) -> list[dict[str, Any]]:
    """A line for each kind of step and each kind of prefix that there are steps of."""
    told = []
    for kind, operators in KINDS.items():
        for right in (True, False):
            its = [one for one in found if one.operator in operators and one.right_prefix == right]
            if not its:
                continue
            problems = [one.problem for one in its]

            def mean(name: str, its: list[Step] = its, problems: list[int] = problems) -> Any:
                return clustered([getattr(one, name) for one in its], problems, RESAMPLES, seed)

            told.append(
                {
                    "steps": kind,
                    "prefix": "right" if right else "wrong",
                    "count": len(its),
                    "teacher_local": mean("local"),
                    "teacher_reference": None if right else mean("reference"),
                    "student_local": mean("student_local"),
                    "forward_kl": mean("forward_kl"),
                    "reverse_kl": mean("reverse_kl"),
                }
            )
    return told


def next_steps_table(by_mode: dict[str, list[dict[str, Any]]]) -> str:
    head = ["", "steps", "prefix", "number", "teacher: right from here", "teacher: the reference's value",
            "student: right from here", "forward KL", "reverse KL"]  # fmt: skip
    rows = [head]
    for mode, told in by_mode.items():
        for one in told:
            reference = one["teacher_reference"]
            rows.append(
                [
                    mode.upper(),
                    one["steps"],
                    one["prefix"],
                    f"{one['count']:,}",
                    percent(one["teacher_local"]),
                    percent(reference) if reference else "the same",
                    percent(one["student_local"]),
                    f"{one['forward_kl'].value:.2f}",
                    f"{one['reverse_kl'].value:.2f}",
                ]  # fmt: skip
            )
    return table(rows)


# The KL signal by position


def by_position(found: dict[tuple[str, str], list[Signal]]) -> dict[str, dict[str, list[float]]]:
    """Which KL -> which trajectories -> the mean a token in each tenth."""
    return {
        which: {name: mean_by_tenths(found[which, name]) for name in LINES if (which, name) in found}
        for which in ("forward", "reverse")
    }


def position_table(by_mode: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    rows = [["", "KL", "trajectories", *(f"{n}" for n in range(1, TENTHS + 1))]]
    for mode, of_kl in by_mode.items():
        for which, lines in of_kl.items():
            rows += [[mode.upper(), which, name, *(f"{v:.2f}" for v in values)] for name, values in lines.items()]
    return table(rows)


def picture(by_mode: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    rows = [
        [
            line_panels.LinePanel(
                f"{mode.upper()}: {which} KL",
                "nats a token",
                {name: [(n, v, v, v) for n, v in enumerate(values, 1)] for name, values in lines.items()},
            )
            for which, lines in of_kl.items()
        ]
        for mode, of_kl in by_mode.items()
    ]
    return line_panels.drawn(rows, "KL signal by tenth of the trajectory", "tenth of the trajectory", "one base")


# The gradients


def pulls_told(pulls: dict[str, dict[str, Pull]], aim: PassRate) -> list[dict[str, Any]]:
    """A line for each method and group; cosines are of the way that an update goes, which is against the gradient."""
    told = []
    for method, by_group in pulls.items():
        for group in GROUPS:
            if group in by_group:
                pull = by_group[group]
                told.append(
                    {
                        "method": method,
                        "group": group,
                        "rows": pull.rows,
                        "tokens": pull.tokens,
                        "loss": pull.loss,
                        "row_norm": pull.row_norm,
                        "agreement": pull.agreement,
                        "pass_rate": cosine(-pull.summed, aim.gradient),
                        "others": {
                            other: cosine(pull.summed, pulls[other][group].summed)
                            for other in METHODS
                            if other != method
                        },
                    }
                )
    return told


def pulls_table(by_mode: dict[str, list[dict[str, Any]]]) -> str:
    rows = [["", "method", "rollouts", "rows", "loss a token", "norm of a row", "agreement", "with the pass rate",
             *(f"with {method}" for method in METHODS)]]  # fmt: skip
    for mode, told in by_mode.items():
        for one in told:
            others = [f"{one['others'][method]:+.2f}" if method in one["others"] else "" for method in METHODS]
            rows.append(
                [
                    mode.upper(),
                    one["method"],
                    one["group"],
                    f"{one['rows']}",
                    f"{one['loss']:.3f}",
                    f"{one['row_norm']:.2f}",
                    f"{one['agreement']:.2f}",
                    f"{one['pass_rate']:+.2f}",
                    *others,
                ]  # fmt: skip
            )
    return table(rows)


# The whole


def loaded(student: Path | None) -> Models:
    from transformers import Qwen3ForCausalLM

    from trd_ray.miniature.pretrain import WORLD

    base, teacher = (
        Qwen3ForCausalLM.from_pretrained(model_path(name), dtype="float32").eval() for name in ("student", "teacher")
    )
    learned = Qwen3ForCausalLM.from_pretrained(student, dtype="float32").eval() if student else base
    return Models(learned, {"opd": teacher, "opsd": base}, WORLD.words())


def measured(models: Models, rows: list[Rollout], gradient_rows: int, seed: int) -> dict[str, Any]:
    aim = pass_rate(models, rows)
    spread = rows[:: max(1, len(rows) // gradient_rows)][:gradient_rows]  # over all problems
    out: dict[str, Any] = {
        "rollouts": len(rows),
        "passed": sum(row.passed for row in rows) / len(rows),
        "refined_passed": {mode: sum(row.taught[mode].y_r_passed for row in rows) / len(rows) for mode in MODES},
        "pass_rate": {"halves": aim.halves, "ceiling": aim.ceiling},
        "next_steps": {},
        "by_position": {},
        "gradients": {},
    }
    for mode in MODES:
        out["next_steps"][mode] = next_steps(list(steps(models, rows, mode)), seed)
        out["by_position"][mode] = by_position(signals(models, rows, mode))
        out["gradients"][mode] = pulls_told(by_method(models, spread, mode), aim)
    return out


def written(found: dict[str, Any]) -> str:
    refined = ", ".join(f"{mode.upper()} {100 * share:.1f}%" for mode, share in found["refined_passed"].items())
    aim = found["pass_rate"]
    return f"""{found["rollouts"]:,} rollouts, {100 * found["passed"]:.1f}% pass; refined: {refined}.

## What the teacher says next

At the result of each step of y_o, percent with 95% intervals over problems. *Right from here* is the result that is \
right for what stands there, on a wrong prefix too.

{next_steps_table(found["next_steps"])}

## The KL signal by tenth of the trajectory

{position_table(found["by_position"])}

## Gradients

*Agreement* is 1 where all rows pull one way. Cosines are of the way that an update goes. The gradient of the pass \
rate is an estimate: those of two halves of the problems have a cosine of {aim["halves"]:+.2f}, so a method that went \
exactly its way would show about {aim["ceiling"]:.2f}.

{pulls_table(found["gradients"])}
"""


def settings(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = seeded_runs.parser("prefix_failure", __doc__, seeds=None, overrides=False)
    add = parser.add_argument
    add("--problems", type=seeded_runs.whole, default=TEST_PROBLEMS, help="held-out chains (default: %(default)s)")
    add("--rollouts", type=seeded_runs.whole, default=8, help="of each (default: %(default)s)")
    add("--gradient-rows", type=seeded_runs.whole, default=192, help="each a backward pass (default: %(default)s)")
    add("--student", type=Path, metavar="FOLDER", help="a trained student of the miniature world (default: the base)")
    add("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.problems > TEST_PROBLEMS:
        raise UserError(f"--problems is {given.problems}, but {TEST_PROBLEMS} chains are held out: give at most those")
    if min(given.problems, given.rollouts) < AT_LEAST:
        raise UserError(
            "the gradient of the pass rate is taken from two halves of the problems, and sets each rollout against the "
            f"others of its problem: give --problems and --rollouts at least {AT_LEAST}"
        )
    if given.student:
        require_student(given.student)
    return given


def require_student(folder: Path) -> None:
    """Raise UserError for what is no model of this world, before anything is sampled."""
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(
            f"--student {folder} has no config.json: give the model's folder, as RUN/checkpoints/STEP/model"
        )
    base = json.loads((model_path("student") / "config.json").read_text())
    own = json.loads(config.read_text())
    if [own.get(key) for key in ("model_type", "vocab_size")] != [base[key] for key in ("model_type", "vocab_size")]:
        raise UserError(
            f"--student {folder} is no model of the miniature world of arithmetic: its vocabulary is another"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given = settings(arguments)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    models = loaded(given.student)
    rows = rollouts(models, given.problems, given.rollouts, given.seed)
    found = measured(models, rows, given.gradient_rows, given.seed)
    text = written(found)
    given.directory.mkdir(parents=True, exist_ok=True)
    write_atomically(given.directory / "prefix_failure.svg", picture(found["by_position"]))
    write_atomically(given.directory / "tables.md", text)
    write_atomically(given.directory / "results.json", json.dumps(found, indent=1, default=asdict))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
