"""`trd check RECIPE`: one page on the verifier, the data and the views of a recipe, before anything expensive starts.

    recipe  ->  gather()  ->  problems, tokenizers, views  ->  examine()  ->  the page; 0, or UserError
    recipe, --row K                                        ->  the views of one row, whole

Neither an engine nor Ray is started, and no GPU is used. So the verdicts of a judge are not tried: rows that it alone
judges are left out of what is asked, and of several verifiers the others are asked.
"""

import time
from functools import partial

from trd_ray.check import page, shown_views
from trd_ray.check.data_facts import copies, without_form
from trd_ray.check.examined import LONGEST_S, Examined, Lines, examine
from trd_ray.check.material import Material, gather
from trd_ray.check.repeated import Make
from trd_ray.config import JUDGE, Recipe
from trd_ray.errors import Faults, UserError
from trd_ray.preflight.held_out import key_of
from trd_ray.preflight.known_texts import Reply, Row, Verify, asked, form_of, right_texts, spread_rows
from trd_ray.preflight.soundness import TOLERATED, Soundness
from trd_ray.preflight.tokenised import verifier_with_ids
from trd_ray.problems.load import held_out_task, held_out_verify
from trd_ray.record.markdown import visible
from trd_ray.verify import needs_engines, verifier
from trd_ray.verify.chosen import person_judges
from trd_ray.verify.gym.gym_verifier import entry_of
from trd_ray.views import setting_of

ROWS = 64


def run(recipe: Recipe, rows: int = ROWS, row: str | None = None, make: Make | None = None) -> int:
    """Look, print, and return 0. Raises UserError with a sentence for each thing that is wrong.

    `row` is a problem's place in the data, from 1, or its problem_id. `make` is what makes the verifier, by default the
    recipe's.
    """
    asked_here = recipe.verify.without_judge() if recipe.verify.names_judge else recipe.verify
    make = make or partial(verifier_with_ids, asked_here, recipe.student)
    faults = Faults()
    found = gather(recipe, faults)
    if found.problems is None:
        faults.require_none()
    verify = make()
    try:
        if row is not None:
            return _one_row(found, row, verify, faults)
        return _page(found, rows, make, verify, faults)
    finally:
        close = getattr(verify, "close", None)
        if close:
            close()


def _page(found: Material, many: int, make: Make, verify: Verify, faults: Faults) -> int:
    assert found.problems is not None
    rows = spread_rows(found.problems, many)
    by_program = [row for row in rows if not person_judges(found.recipe.verify, row)]
    tried = _without_judge(found.recipe, by_program)
    examined = Examined(tried, [])
    with faults:
        if tried:
            examined = examine(found.recipe, tried, make, verify)
        faults.add(*examined.faults)
    if found.judge:
        untried = len(by_program) - len(tried)
        left_out = f"{untried} of {len(rows)} rows" if untried else "the judge's part"
        examined.lines += [("judge", found.judge), ("", f"not tried here, since a judge needs engines: {left_out}")]
    few = f", {len(examined.rows)} looked at" if len(examined.rows) < len(by_program) else ""
    print(f"{found.recipe.name}: {len(rows)} of {found.problems.num_rows} problems{few}\n")
    if lines := _by_a_person(found.recipe, len(rows) - len(by_program), len(rows)) + examined.lines:
        _print(page.section("verifier", lines))
    is_sound = not examined.faults and (examined.replies or not tried)
    held_out = _held_out(found, many, verify, faults) if is_sound else []
    _print(page.section("data", _data(found, rows, verify, faults) + held_out))
    if found.views:
        _print(_views(found, (tried or rows)[0], examined.replies))
    faults.require_none()
    print("nothing is wrong")
    return 0


def _by_a_person(recipe: Recipe, rows: int, of: int) -> Lines:
    """What a person will do, of which nothing can be checked before."""
    if not rows:
        return []
    attempts = 1 + recipe.most_refinements * recipe.refines
    return [
        ("a person judges", f"{rows} of {of} problems (verify.function=review), up to {attempts} responses a rollout"),
        ("", "trd refine queues them, trd review shows them; nothing of that can be checked now"),
    ]


def _data(found: Material, rows: list[Row], verify: Verify, faults: Faults) -> Lines:
    """What the data is, line by line; what is wrong with it goes to `faults`."""
    assert found.problems is not None
    twice = copies(found.problems)
    lines: Lines = [("copies", str(twice))]
    if twice.copies > TOLERATED * twice.problems:
        faults.add(
            f"{twice}, such as {twice.example}: a run would meet them twice as often as the others; keep one of each, "
            "with the right answer"
        )
    if _judged_as_maths(found.recipe):
        odd = without_form([row for row in rows if not entry_of(row)], verify)
        lines.append(("answers", f"{len(odd) or 'none'} of {len(rows)} can be compared only letter by letter"))
        if len(odd) > TOLERATED * len(rows):
            solution = " (what follows its ####, where it is a whole solution)" if "####" in odd[0]["answer"] else ""
            faults.add(
                f"{len(odd)} of {len(rows)} answers have no form that the math verifier reads, such as "
                f"{odd[0]['answer'][:60]!r} of problem {odd[0]['problem_id']!r}: right responses would not pass; set "
                f"data.columns.answer to a column with the final answer alone{solution}, or leave such rows out"
            )
    return lines + _against_limits(found) + _in_views(found, rows, faults)


def _held_out(found: Material, many: int, verify: Verify, faults: Faults) -> Lines:
    """Whether the right answers of the problems to evaluate on pass, which no score could exceed."""
    r = found.recipe
    lines: Lines = []
    for name, table in found.held_out.items():
        title = f"answers of {name}" if name else "held-out answers"
        judges = held_out_verify(r.evaluation.of(name), r.verify)
        if judges.asks_a_person:
            lines.append((title, "not asked: a person judges, which no evaluation waits for"))
            continue
        by_own_rules = judges != r.verify
        rows = spread_rows(table, many) if by_own_rules else _without_judge(r, spread_rows(table, many))
        if not rows:
            lines.append((title, "not asked: a judge needs engines"))
            continue
        its = verifier(r.verify.built_in()) if by_own_rules else None
        first = rows[0]
        form = form_of(r, task=held_out_task(r.evaluation.of(name), r.verify, first["problem"], bool(first["tests"])))
        until = time.monotonic() + LONGEST_S / 2 / len(found.held_out)
        try:
            right = asked(its or verify, rows, right_texts(rows, form), until)
        finally:
            if its:
                its.close()
        sound = Soundness(rows, right, form, group=key_of(name))
        faults.add(*(f"of {key_of(name)}.path: {fault}" for fault in sound.faults()) if sound.right else ())
        passed = f"{sum(sound.right.values())} of {len(sound.right)} pass"
        lines.append((title, passed if sound.right else "not asked: no row has one"))
    return lines


def _without_judge(recipe: Recipe, rows: list[Row]) -> list[Row]:
    """The rows about which something can be asked without engines."""
    return [row for row in rows if not needs_engines(recipe.verify, row)]


def _judged_as_maths(recipe: Recipe) -> bool:
    """Whether rows without tests go to the math verifier."""
    named = {one.function for one in recipe.verify.chosen.values()} - {JUDGE} or {recipe.verify.function or "math"}
    return named == {"math"} and not recipe.verify.by_source


def _against_limits(found: Material) -> Lines:
    """Lengths and overlap, as `trd_ray.preflight` found them."""
    if not found.findings:
        return [("lengths, held out", "not known: see what is wrong")]
    f, r = found.findings, found.recipe
    lines = [("held out", str(f.overlap) if f.overlap else "nothing to compare with")]
    if f.student_prompt:
        lines.append(("student's prompt", f"{f.student_prompt} tokens, {r.sampler.response_tokens} for its response"))
    if f.teacher_prompt:
        lines.append(
            ("teacher's prompt", f"{f.teacher_prompt} of {r.refiner.prompt_tokens} tokens, without an attempt")
        )
    if f.too_long:
        lines.append(("too long", f"{f.dropped_too_long} left out (data.too_long=drop)"))
    return lines


def _in_views(found: Material, rows: list[Row], faults: Faults) -> Lines:
    """What of the data does not arrive in the views."""
    if not found.views:
        return []
    lines = []
    dropped, example = shown_views.left_out(found, rows)
    if dropped:
        faults.add(
            f"the student's chat template drops the system text or an earlier turn in {dropped} of {len(rows)} rows, "
            f"such as {example[:60]!r}: use a tokenizer whose chat_template shows them, or put that text into "
            "prompts.solve"
        )
    unwritable = shown_views.unwritable(found, rows)
    if unwritable:
        lines.append(("characters", f"{len(unwritable)} of {len(rows)} problems have some that the tokenizer lacks"))
    if len(unwritable) > TOLERATED * len(rows):
        faults.add(
            f"the student's tokenizer lacks characters of {len(unwritable)} of {len(rows)} problems, such as "
            f"{unwritable[0]['problem'][:60]!r}, and the model would not see them: choose a model for such text"
        )
    if found.findings and any(one.shows_attempts for one in found.recipe.by_teacher.values()):
        cut = sum(_cuts_long_attempts(found, row) for row in rows)
        lines.append(("long attempts", f"an attempt of full length is cut in {cut or 'none'} of {len(rows)} rows"))
    return lines


def _cuts_long_attempts(found: Material, row: Row) -> bool:
    r, views, _ = found.of_teacher(row)
    tokens = views.tokens(row["problem"], row["reference"], **setting_of(row)).refine
    return tokens > r.refiner.prompt_tokens - r.sampler.response_tokens


def _views(found: Material, row: Row, replies: list[Reply]) -> str:
    wrong = next((r for r in replies if r.asked.row == 0 and r.asked.kind == "another"), None)
    if wrong:  # a stand-in for y_o, with what the refiner would be told of it
        stand_in, attempt, verdict = "another problem's answer", wrong.asked.text, wrong.verdict
        shown = shown_views.shown(found, row, attempt, verdict.passed, verdict.feedback)
    else:
        stand_in = "its own reference"
        shown = shown_views.shown(found, row, row["reference"] or row["answer"], None, "")
    title = f"views of problem {row['problem_id']!r}, special tokens in « », with {stand_in} as the attempt"
    return "\n".join([title, *map(page.excerpt, shown)])


def _one_row(found: Material, asked_row: str, verify: Verify, faults: Faults) -> int:
    """The views of one row, whole, and what the verifier says of its reference and its answer."""
    row = _found_row(found, asked_row)
    if not found.views:
        faults.require_none()
    print(f"problem {row['problem_id']!r}, special tokens in « », with its own reference as the attempt\n")
    for view in shown_views.shown(found, row, row["reference"] or row["answer"], None, ""):
        _print(page.whole(view))
    if not _without_judge(found.recipe, [row]):
        print("what its verifier says is not tried here: a judge needs engines")
        return 0
    for reply in asked(verify, [row], right_texts([row], form_of(found.recipe)), until=0.0):
        verdict = reply.verdict
        said = "passes" if verdict.passed else "does not pass" + (f" ({verdict.detail})" if verdict.detail else "")
        said = "waits for a person" if verdict.awaited else said
        print(visible(f"its {reply.asked.kind} {said}: {reply.asked.text[-60:]!r}"))
    return 0


def _found_row(found: Material, asked_row: str) -> Row:
    assert found.problems is not None
    ids = found.problems["problem_id"].to_pylist()
    if asked_row in ids:
        place = ids.index(asked_row)
    elif asked_row.isdecimal() and 1 <= int(asked_row) <= len(ids):
        place = int(asked_row) - 1
    else:
        raise UserError(
            f"there is no row {asked_row!r}: --row takes a number from 1 to {len(ids)}, or a problem_id such as "
            f"{ids[0]!r}"
        )
    return found.problems.slice(place, 1).to_pylist()[0]


def _print(text: str) -> None:
    """Data cannot control the terminal."""
    print(visible(text), end="\n\n")
