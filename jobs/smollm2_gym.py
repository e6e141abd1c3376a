"""`python jobs/smollm2_gym.py --directory DIR`: TRD and forward KL on a real checkpoint, as a demonstration.

    SmolLM2-135M-Instruct, shown two examples of the answer's form -> the student
    easy families of reasoning_gym -> it answers some items of each -> one that it solves sometimes
    that family -> two runs with LoRA, one seed, 10 steps of 16 rows: TRD, forward KL on y_o -> table.md, results.json

The teacher is the model itself with the item's answer (OPSD). What is shown is that a real checkpoint goes through the
whole loop, and its ledger: which share of the failed rollouts a model of this size repairs when it is told the answer.
One seed and so few rows say nothing about which method is better. Where the score did not move, the table says so.

Started again, the same command goes on. `--family NAME` leaves out the search. Overrides
(`steps=20`, `learner.lr=1e-3`, `cluster.memory_gib=20`) reach both runs.

Exit codes: 0 it is written, moved or not, 1 no family is solved sometimes, 2 a mistake in the options or a failed run.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import seeded_runs
import yaml

from trd_ray import models
from trd_ray.config import apply_override, close_to, from_tree, recipe_tree
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.record.directory import RunDirectory
from trd_ray.record.ledger import facts_of_run, ledger
from trd_ray.record.markdown import table
from trd_ray.score.stats import Estimate, Score, compare, percent
from trd_ray.wordings import ITEM_FORM

FAMILIES: dict[str, dict[str, Any]] = {  # with arguments that make their items short and easy
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "basic_arithmetic": {"max_terms": 3, "max_digits": 1, "allow_parentheses": False, "allow_negation": False},
    "gcd": {"max_value": 20},
    "simple_equations": {"max_terms": 2, "max_value": 10},
    "leg_counting": {"min_animals": 1, "max_animals": 2, "max_instances": 3},
    "number_sequence": {},
    "letter_counting": {"min_words": 3, "max_words": 5},
    "spell_backward": {"min_word_len": 3, "max_word_len": 4},
    "word_sorting": {"min_words": 3, "max_words": 3, "max_word_length": 5},
    "number_sorting": {"min_numbers": 3, "max_numbers": 3, "max_decimals": 0, "min_value": 0, "max_value": 20},
}
ITEMS = {"size": 400, "test": 64}
LOOKED_AT = {"limit": 16, "samples": 4}  # of each family, in the search
SOMETIMES = (0.05, 0.75)  # the pass rates between which there is something to repair and something to learn from
RUNS = {"trd": ("y_r", "refine"), "forward_kl": ("y_o", "vanilla")}  # name -> train.trajectory, teacher.view
NAMES = {"trd": "TRD", "forward_kl": "forward KL on y_o"}
RESPONSE_TOKENS = 64
# Turns before each question. Without them SmolLM2 has the answer now and then, but never in the form that a scorer of
# reasoning_gym reads: of 64 samples of each of these families none had it.
SHOWN = {
    "What is 2 + 3?": "2 + 3 = 5\n<answer>5</answer>",
    "Which word is longer: sea or mountain?": "sea has 3 letters, mountain has 8\n<answer>mountain</answer>",
}
TEMPLATE = "chat_template.jinja"


def make_student(directory: Path) -> None:
    """SmolLM2 in a folder of its own, whose chat template begins every conversation with the turns that are shown."""
    smollm2, place = Path(models.resolve("smollm2")), student(directory)
    place.mkdir(exist_ok=True)
    for file in smollm2.iterdir():
        link = place / file.name
        if file.name != TEMPLATE and link.resolve() != file.resolve():
            link.unlink(missing_ok=True)  # to a cache that was elsewhere
            link.symlink_to(file)
    turns = []
    for question, answer in SHOWN.items():
        turns += [{"role": "user", "content": f"{question}\n\n{ITEM_FORM}"}, {"role": "assistant", "content": answer}]
    begin = f"{{% set messages = {json.dumps(turns)} + messages %}}"
    write_atomically(place / TEMPLATE, begin + (smollm2 / TEMPLATE).read_text())


def student(directory: Path) -> Path:
    return directory / "student"


def base_tree(directory: Path) -> dict[str, Any]:
    """What both runs and the search have in common: SmolLM2 on 2 cores, with short answers."""
    tree = recipe_tree("smollm2_smoke")
    tree["student"] = {"path": str(student(directory))}
    for pool in ("sampler", "refiner"):
        tree[pool] |= {"max_response_tokens": RESPONSE_TOKENS, "max_concurrent": 16}
    return tree


def search_tree(families: Sequence[str], directory: Path) -> dict[str, Any]:
    """A recipe whose held-out sets are the families; `trd evaluate` asks its student all of them."""
    sets = {
        name: {"path": f"reasoning_gym:{name}", "arguments": ITEMS | FAMILIES[name]} | LOOKED_AT for name in families
    }
    tree = base_tree(directory)
    tree |= {"name": "families", "run_dir": str(directory / "families")}
    tree["evaluation"] = {"path": None, "sets": sets, "max_response_tokens": RESPONSE_TOKENS}
    from_tree(dict(tree))
    return tree


def run_tree(method: str, family: str, directory: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    trajectory, view = RUNS[method]
    tree = base_tree(directory)
    tree |= {"name": f"smollm2-{family}-{method}", "run_dir": str(directory / f"{family}-{method}")}
    tree |= {"steps": 10, "rollouts_per_step": 16, "train": {"trajectory": trajectory}}
    tree["teacher"]["view"] = view
    tree["data"] = {"path": f"reasoning_gym:{family}", "arguments": ITEMS | FAMILIES.get(family, {})}
    tree["learner"] |= {"lora": {"rank": 16, "alpha": 32}, "lr": 1.0e-4}
    tree["evaluation"] = {
        "path": f"reasoning_gym:{family}",
        "samples": 4,
        "max_response_tokens": RESPONSE_TOKENS,
        "before": method == "trd",  # both begin with the same weights
    }
    for override in overrides:
        apply_override(tree, override)
    from_tree(dict(tree))
    return tree


# The search


@dataclass(frozen=True)
class Found:
    """How the base does in a family."""

    family: str
    passed: float  # share of the samples
    mixed: float  # share of the items that some samples pass and others do not


def of_family(family: str, per_problem: Mapping[str, Sequence[bool]]) -> Found:
    share_P = np.array([np.mean(samples) for samples in per_problem.values()])
    return Found(family, float(share_P.mean()), float(((share_P > 0) & (share_P < 1)).mean()))


def chosen(found: Sequence[Found]) -> Found | None:
    """The family with the most items that are solved sometimes, of those neither hopeless nor done."""
    least, most = SOMETIMES
    fit = [one for one in found if least <= one.passed <= most and one.mixed]
    return max(fit, key=lambda one: (one.mixed, one.family), default=None)


def search(families: Sequence[str], directory: Path) -> list[Found]:
    """Ask the base, where it has not been asked yet. Raises UserError where that fails."""
    tree = search_tree(families, directory)
    place = Path(tree["run_dir"]) / "evaluation"
    if not all((place / f"{name}.json").is_file() for name in families):
        recipe = directory / "families.yaml"
        write_atomically(recipe, yaml.safe_dump(tree, sort_keys=False))
        if subprocess.run([sys.executable, "-m", "trd_ray.cli", "evaluate", str(recipe)]).returncode:
            raise UserError("the base could not be asked: the lines above say why, and the same command goes on")
    return [of_family(name, json.loads((place / f"{name}.json").read_text())["per_problem"]) for name in families]


def search_table(found: Sequence[Found]) -> str:
    rows = [["family", "passed", "solved sometimes"]]
    return table([*rows, *([one.family, f"{one.passed:.0%}", f"{one.mixed:.0%}"] for one in found)])


# What the runs have found


@dataclass(frozen=True)
class Outcome:
    method: str
    score: Score
    minus_base: Estimate
    ledger: dict[str, float]


def outcome(method: str, base: Score, trained: Score, counted: dict[str, float]) -> Outcome:
    compared = compare(trained, base, resamples=10_000, seed=0)
    assert compared.paired_with
    return Outcome(method, trained, compared.paired_with.differences[avg(base)], counted)


def avg(score: Score) -> str:
    return f"avg@{score.samples}"


def result_table(base: Score, outcomes: Sequence[Outcome]) -> str:
    rows = [["", f"Avg@{base.samples}", "- base", "mean tokens"]]
    rows.append(["base", percent(base.scores[avg(base)]), "", f"{base.tokens_mean:.1f}"])
    for one in outcomes:
        score = percent(one.score.scores[avg(base)])
        rows.append([NAMES[one.method], score, percent(one.minus_base, signed=True), f"{one.score.tokens_mean:.1f}"])
    return table(rows)


def ledger_table(outcomes: Sequence[Outcome]) -> str:
    """What became of all rollouts of a run: rows are y_o, columns y_r; forward KL has no y_r."""
    rows = [["", "rollouts", "y_o passed", "pass to pass", "pass to fail", "fail to pass", "fail to fail"]]
    for one in outcomes:
        cells = [one.ledger.get(f"ledger/{o}_{r}") for o in ("pass", "fail") for r in ("pass", "fail")]
        shown = ["" if cell is None else f"{cell:.0f}" for cell in cells]
        rows.append([NAMES[one.method], f"{one.ledger['rollouts']:.0f}", f"{one.ledger['y_o/passed']:.0%}", *shown])
    return table(rows)


def verdict(outcomes: Sequence[Outcome], steps: int, rows: int) -> str:
    """A sentence for each method: moved or not, and for TRD what the teacher made of the failed rollouts."""
    told = []
    for one in outcomes:
        by = f"{percent(one.minus_base, signed=True)} points"
        length = f"{steps} steps of {rows} rows"
        if not one.minus_base.clear_of_zero:
            told.append(f"{NAMES[one.method]} could not move the student in {length}: {by} hold 0.")
        else:
            way = "better" if one.minus_base.value > 0 else "worse"
            told.append(f"{NAMES[one.method]} made the student {way} in {length}: {by}.")
        repaired, left = (one.ledger.get(f"ledger/fail_{r}") for r in ("pass", "fail"))
        if repaired is not None and left is not None and repaired + left:
            told.append(
                f"Told the answer, it repaired {repaired:.0f} of {repaired + left:.0f} rollouts that had failed "
                f"({repaired / (repaired + left):.0%})."
            )
    return "\n".join(told)


def of_runs(trees: Mapping[str, Mapping[str, Any]]) -> tuple[Score, list[Outcome]]:
    runs = {method: RunDirectory(Path(tree["run_dir"])) for method, tree in trees.items()}
    scores = {method: {one.name: one for one in run.read_evaluations()} for method, run in runs.items()}
    base = scores["trd"]["base"]
    return base, [
        outcome(method, base, scores[method]["trained"], ledger(facts_of_run(run.read_rows())))
        for method, run in runs.items()
    ]


def settings(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = seeded_runs.parser("smollm2_gym", __doc__, seeds=None)
    parser.add_argument("--family", help=f"of reasoning_gym, without a search among {', '.join(FAMILIES)}")
    given = parser.parse_args(arguments)
    if given.family and given.family not in FAMILIES:
        hint = close_to(given.family, list(FAMILIES))
        raise UserError(
            f"--family {given.family} is none of {', '.join(FAMILIES)}, whose items are made easy here{hint}"
        )
    for method in RUNS:  # a mistake in an override is told before anything starts
        run_tree(method, given.family or next(iter(FAMILIES)), given.directory, given.overrides)
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given = settings(arguments)
        given.directory.mkdir(parents=True, exist_ok=True)
        make_student(given.directory)
        found = [] if given.family else search(list(FAMILIES), given.directory)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    best = chosen(found)
    family = given.family or (best.family if best else None)
    text = search_table(found) + "\n\n" if found else ""
    if family is None:
        print(f"{text}SmolLM2 solves none of these families sometimes: there is nothing to show here")
        return 1
    trees = {method: run_tree(method, family, given.directory, given.overrides) for method in RUNS}
    if not seeded_runs.train_all(trees.values()):
        return 2
    base, outcomes = of_runs(trees)
    recipe = from_tree(dict(trees["trd"]))
    assert recipe.steps
    said = verdict(outcomes, recipe.steps, recipe.rollouts_per_step)
    text += f"{family}:\n\n{result_table(base, outcomes)}\n\n{ledger_table(outcomes)}\n\n{said}"
    write_atomically(given.directory / "table.md", text + "\n")
    results = {"family": family, "search": [asdict(one) for one in found], "base": asdict(base)}
    results |= {"runs": [asdict(one) for one in outcomes]}
    write_atomically(given.directory / "results.json", json.dumps(results, indent=1))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
