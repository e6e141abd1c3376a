"""`python jobs/draft_acceptance.py RUN`: how many tokens of y_r a draft copied from its prompt would save.

    recorded rows: refine prompt with y_o in it, y_r -> prompt lookup, token by token -> tokens a pass of the model

y_o stands in the refine prompt, so an engine may propose its continuation instead of decoding every token (n-gram
speculation, `refiner.extra={speculative_config: {method: ngram, ...}}` where the engine supports it). It changes no
response. *Tokens a pass* is the acceptance length: what refining is faster by where a pass that checks a draft costs as
much as one that decodes a token, as on a GPU that waits for memory. With large batches, or on a CPU, it is less.

RUN is a run, or a corpus of `trd refine`. Started on one that goes on, it takes the steps that are there.

Exit codes: 0 the table is written, 2 a mistake in the options or no refinement in the rows.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import seeded_runs

from trd_ray.diagnostics.prompt_lookup import Drafting, Lookup, drafting
from trd_ray.diagnostics.run_tables import RunTables
from trd_ray.diagnostics.step_rows import Lists, StepRows, column_of
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.record.markdown import table

GROUPS = ("all", "y_o passed", "y_o failed")
Found = dict[tuple[int, str], Drafting]  # tokens of a draft, group


def refinements(run: Path, most: int) -> Iterator[tuple[Any, Any, float]]:
    """(refine prompt, y_r, whether y_o passed: 1, 0 or NaN) of the first rows that have them."""
    left = most
    for _, step in RunTables.of(run).each(["fault", "refine_prompt_ids", "y_o.passed", "y_r.ids"]):
        rows = StepRows(step)
        prompts = Lists.of(column_of(step, "refine_prompt_ids"), rows.count)
        for row in range(rows.count):
            if rows.sound_B[row] and prompts.there_B[row] and rows.y_r.there_B[row] and left:
                left -= 1
                yield prompts[row].tolist(), rows.y_r[row].tolist(), rows.passed["y_o"][row]
        if not left:
            return


def measured(run: Path, drafts: Sequence[int], runs: tuple[int, int], most: int) -> tuple[Found, int]:
    """What each length of draft would save in each group, and of how many rows. Raises UserError for none."""
    found: Found = {(draft, group): Drafting() for draft in drafts for group in GROUPS}
    count = 0
    for prompt, y_r, passed in refinements(run, most):
        count += 1
        group = {1.0: "y_o passed", 0.0: "y_o failed"}.get(float(passed))
        for draft in drafts:
            one = drafting(prompt, y_r, Lookup(*runs, draft))
            for its in filter(None, ("all", group)):
                found[draft, its] += one
    if not count:
        raise UserError(f"{run} has no refinement yet: name a run that trains on y_r, or a corpus")
    return found, count


def shown(found: Found) -> str:
    rows = [["draft", "rollouts", "y_r tokens", "tokens a pass", "of a draft accepted"]]
    for (draft, group), one in found.items():
        if one.tokens:
            share = f"{one.accepted / one.drafted:.0%}" if one.drafted else "nothing drafted"
            rows.append([str(draft), group, f"{one.tokens:,}", f"{one.tokens_a_pass:.2f}", share])
    return table(rows)


def settings(arguments: Sequence[str] | None) -> Any:
    parser = seeded_runs.described("draft_acceptance", __doc__)
    add = parser.add_argument
    add("run", type=Path, help="the directory of a run or of a corpus")
    add("--draft", type=seeded_runs.whole, nargs="+", default=[3, 5, 10], metavar="TOKENS", help="default: 3 5 10")
    add("--shortest", type=seeded_runs.whole, default=2, help="run of tokens that is looked up (default: %(default)s)")
    add("--longest", type=seeded_runs.whole, default=4, help="the same at most (default: %(default)s)")
    add("--rows", type=seeded_runs.whole, default=2000, help="refinements at most (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the counts here too")
    given = parser.parse_args(arguments)
    if given.shortest > given.longest:
        raise UserError(f"--shortest {given.shortest} is above --longest {given.longest}: swap them")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given = settings(arguments)
        run = given.run.expanduser().absolute()
        found, rows = measured(run, given.draft, (given.shortest, given.longest), given.rows)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    print(f"{rows:,} refinements of {run.name}, runs of {given.shortest} to {given.longest} tokens looked up\n")
    print(shown(found))
    if given.json:
        counts = [{"draft": draft, "rollouts": group, **asdict(one)} for (draft, group), one in found.items()]
        write_atomically(given.json, json.dumps(counts, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
