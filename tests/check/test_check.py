"""`trd check`: each of many prepared faults of verifiers, data and templates is named with its remedy; exit code 2."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import verifiers
import yaml

from trd_ray import cli, config
from trd_ray.check import command
from trd_ray.check.material import Material
from trd_ray.errors import Faults, UserError
from trd_ray.miniature import model_path
from trd_ray.preflight.known_texts import asked
from trd_ray.problems.load import load_problems

MANY = 50


def rows(many: int = MANY) -> list[dict[str, Any]]:
    """Chains of the miniature world, so that its tokenizer has their characters."""
    found = []
    for i in range(many):
        a, b, c = i // 10 % 10, i % 10, (7 * i + i // 10) % 10
        first, last = (a + b) % 10, (a + b + c) % 10
        found.append(
            {
                "problem_id": f"p{i:03}",
                "problem": f"{a}+{b}+{c}",
                "answer": str(last),
                "reference": f"{a}+{b}={first}; {first}+{c}={last}; \\boxed{{{last}}}",
            }
        )
    return found


def written(place: Path, found: list[dict[str, Any]]) -> Path:
    place.write_text("".join(json.dumps(row) + "\n" for row in found))
    return place


@pytest.fixture
def data(tmp_path) -> Path:
    return written(tmp_path / "data.jsonl", rows())


def check(
    capsys, *arguments: str, verify: Any = None, base: str = "miniature_opsd", **options: Any
) -> tuple[int, str, str]:
    """Exit code, the page and what is wrong. `verify` stands for the recipe's verifier."""
    recipe = config.load(base, ["evaluation.path=null", "verify.max_tasks=1", *arguments])
    make = partial(verifiers.given, verify) if verify else None
    code = cli._run(lambda: command.run(recipe, make=make, **options))
    out, err = capsys.readouterr()
    assert len(out.splitlines()) <= 60
    return code, out, err


def refused(capsys, *arguments: str, verify: Any = None, many: int = 8, **options: Any) -> str:
    code, _, wrong = check(capsys, *arguments, verify=verify, rows=many, **options)
    assert code == 2 and wrong.startswith("trd: ")
    return wrong


# A sound recipe


def test_a_sound_recipe_gets_one_page_and_exit_code_0(capsys, data):
    code, page, wrong = check(capsys, f"data.path={data}", f"evaluation.path={data}", "evaluation.allow_overlap=true")
    assert (code, wrong) == (0, "")
    assert page.startswith(f"miniature-opsd: {MANY} of {MANY} problems\n")
    assert f"the reference or the answer  {MANY} of {MANY} pass" in page
    assert page.count(f" 0 of {MANY} pass") == 3  # empty text, the problem, another's answer
    assert page.count("none of 250 verdicts differ") == 2
    assert "a second a core" in page and "the 128 verdicts of a step take" in page
    assert f"{MANY} of {MANY} held-out problems are trained on" in page
    assert f"held-out answers  {MANY} of {MANY} pass" in page
    assert "«<|user|>»0+0+0«<|end|>»«<|assistant|>»" in page
    assert page.endswith("nothing is wrong\n")


# Faults of verifiers


@pytest.mark.parametrize(
    ("verify", "words"),
    [
        (verifiers.everything, ["the verifier passes everything: all 40 texts"]),
        (verifiers.nothing, ["the verifier passes nothing: none of 8 right answers", "data.columns.answer"]),
        (verifiers.reads_another_form, ["passes nothing", "stated as '#### ANSWER' it passes", "prompts.solve"]),
        (verifiers.passes_empty_text, ["passes empty text in 8 of 8 rows"]),
        (verifiers.passes_the_problem, ["passes the problem itself in 8 of 8 rows"]),
        (verifiers.passes_any_box, ["passes another problem's answer in 8 of 8 rows", "compare the whole answer"]),
        (verifiers.depends_on_order, ["verdicts depend on the order", "passes with 1 at first and then does not"]),
        (verifiers.raises, ["have no verdict", "the verifier raised ValueError: could not convert"]),
    ],
)
def test_a_verifier_with_a_fault_is_refused_by_name(capsys, data, verify, words):
    verifiers.ASKED.clear()
    wrong = refused(capsys, f"data.path={data}", verify=verify)
    assert all(word in wrong for word in words), wrong
    assert "things are in the way" not in wrong, "one fault is told once"


def test_texts_without_a_verdict_are_counted_apart(capsys, data):
    _, page, _ = check(capsys, f"data.path={data}", verify=verifiers.raises, rows=8)
    assert "empty text                   0 of 0 pass, 8 without a verdict" in page


def test_verdicts_that_another_process_does_not_give_are_refused(capsys, data, monkeypatch):
    import os

    monkeypatch.setattr(verifiers, "HERE", [os.getpid()])
    wrong = refused(capsys, f"data.path={data}", verify=verifiers.depends_on_process)
    assert "verdicts depend on the process that it runs in: those on 8 of 8 rows differ" in wrong


def test_a_verifier_that_a_step_would_wait_for_is_refused(capsys, data):
    wrong = refused(capsys, f"data.path={data}", "rollouts_per_step=4096", verify=verifiers.slow, many=3)
    assert "the verifier is slow" in wrong and "verify.max_tasks" in wrong


def test_a_verifier_that_is_wrong_on_at_most_two_percent_of_the_rows_is_shown_and_not_refused(capsys, data):
    code, page, wrong = check(capsys, f"data.path={data}", verify=verifiers.half_blind)
    assert (code, wrong) == (0, "")
    assert f"{MANY - 1} of {MANY} pass" in page
    assert "fails 1 of 25 right answers" in refused(
        capsys, f"data.path={data}", "data.limit=25", verify=verifiers.half_blind, many=25
    )


@pytest.mark.parametrize("raises", [False, True])
def test_the_verifier_of_held_out_items_is_ended_also_where_it_cannot_judge(monkeypatch, raises):
    own_rules = ["evaluation.path=reasoning_gym:gcd", "verify.function=math", "verify.timeout_s=30"]
    recipe = config.load("miniature_opsd", own_rules)
    try:
        items = load_problems(recipe.evaluation, also_arguments={"size": 4, "test": 2}).table
    except UserError as e:
        pytest.skip(str(e))
    mine = psutil.Process()
    before = set(mine.children(recursive=True))
    running = []

    def ask(*arguments):
        found = asked(*arguments)
        running.extend(set(mine.children(recursive=True)) - before)
        if raises:
            raise UserError("nothing can judge here")
        return found

    monkeypatch.setattr(command, "asked", ask)
    held_out = Material(recipe, held_out={"": items})
    try:
        lines = command._held_out(held_out, 2, verifiers.sound, Faults())
        assert not raises and lines == [("held-out answers", "2 of 2 pass")]
    except UserError:
        assert raises
    assert running and psutil.wait_procs(running, timeout=5)[1] == []


# Faults of data


def test_held_out_problems_that_are_trained_on_are_refused(capsys, data, tmp_path):
    held_out = written(tmp_path / "held_out.jsonl", rows()[:3])
    wrong = refused(capsys, f"data.path={data}", f"evaluation.path={held_out}")
    assert "3 of 3 held-out problems are trained on" in wrong


def test_held_out_answers_that_do_not_pass_are_refused(capsys, data, tmp_path):
    held_out = written(tmp_path / "held_out.jsonl", [row | {"problem": f"{row['problem']}+1"} for row in rows()[6:9]])
    wrong = refused(capsys, f"data.path={data}", f"evaluation.path={held_out}", verify=verifiers.half_blind, many=4)
    assert "of evaluation.path: the verifier fails 1 of 3 right answers" in wrong and "evaluation.columns" in wrong


def test_problems_that_stand_twice_are_refused(capsys, tmp_path):
    copies = [row | {"problem_id": f"copy-{row['problem_id']}"} for row in rows()[:5]]
    copies[0] |= {"answer": "9", "reference": "\\boxed{9}"}
    wrong = refused(capsys, f"data.path={written(tmp_path / 'twice.jsonl', rows() + copies)}")
    assert "5 of 55 problems stand a second time, 1 of them with another answer" in wrong
    assert "'p000' and 'copy-p000'" in wrong


def test_problems_that_are_too_long_for_the_views_are_refused(capsys, tmp_path):
    long = rows()[3] | {"problem": "1" + "+1" * 150}
    wrong = refused(capsys, f"data.path={written(tmp_path / 'long.jsonl', [*rows()[:3], long])}")
    assert "p003" in wrong and "sampler.max_model_len" in wrong


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("{answer: result}", ["names the column 'result'"]),
        ("{answer: level}", ["references state another answer than their row", "data.columns.answer"]),
        ("{answer: same}", ["all 8 rows have the answer '3'"]),
        ("{answer: reference}", ["answers have no form that the math verifier reads", "data.columns.answer"]),
    ],
)
def test_a_wrong_column_of_answers_is_refused(capsys, tmp_path, columns, words):
    found = [row | {"level": str(10 + i % 3), "same": "3"} for i, row in enumerate(rows())]
    for row in found:
        row["reference"] = f"First {row['problem']} is worked out, step by step, and it is \\boxed{{{row['answer']}}}"
    path = written(tmp_path / "columns.jsonl", found)
    wrong = refused(capsys, f"data.path={path}", f"data.columns={columns}")
    assert all(word in wrong for word in words), wrong


def test_references_that_are_wrong_are_refused_where_the_teacher_is_shown_them(capsys, tmp_path):
    found = [row | {"reference": f"1+1=2; \\boxed{{{int(row['answer']) + 1}}}"} for row in rows()]
    path = f"data.path={written(tmp_path / 'wrong.jsonl', found)}"
    wrong = refused(capsys, path)
    assert (
        "8 of 8 references state another answer than their row" in wrong
        and "ends in '1' where the answer is '0'" in wrong
    )
    code, page, _ = check(capsys, path, "teacher.mode=opd", "teacher.path=miniature:teacher", rows=8)
    assert code == 0 and "8 state another answer than their row" in page


def test_answers_without_a_form_are_refused(capsys, tmp_path):
    found = [row | {"answer": "It follows from the lemma that there are 4", "reference": "1+1=2"} for row in rows()]
    found[0]["answer"] = "4"
    wrong = refused(capsys, f"data.path={written(tmp_path / 'prose.jsonl', found)}")
    assert "7 of 8 answers have no form" in wrong and "'It follows from the lemma that there are 4'" in wrong


def test_whole_solutions_in_the_column_of_answers_are_refused(capsys, tmp_path):
    found = [row | {"answer": f"{row['reference']}\n#### {row['answer']}"} for row in rows()]
    wrong = refused(capsys, f"data.path={written(tmp_path / 'solutions.jsonl', found)}", verify=verifiers.boxed_alone)
    assert "8 of 8 answers have no form" in wrong and "what follows its ####" in wrong


def test_characters_that_the_tokenizer_lacks_are_refused(capsys, tmp_path):
    found = [row | {"problem": f"Zoë: {row['problem']}"} for row in rows()]
    assert "tokenizer lacks characters of 8 of 8 problems" in refused(
        capsys, f"data.path={written(tmp_path / 'words.jsonl', found)}"
    )


def without_system_turns(model: Path) -> Path:
    shutil.copytree(model_path("student"), model)
    template = (model / "chat_template.jinja").read_text()
    silent = (
        "{%- for message in messages -%}{%- if message.role != 'system' -%}" + template.partition("{%- endif -%}")[2]
    )
    (model / "chat_template.jinja").write_text(silent.replace("{%- endfor -%}", "{%- endif -%}{%- endfor -%}"))
    return model


def test_a_chat_template_that_drops_the_system_turn_is_refused(capsys, data, tmp_path):
    model = without_system_turns(tmp_path / "model")
    wrong = refused(capsys, f"data.path={data}", f"student.path={model}", "prompts.system=1+2;")
    assert "chat template drops the system text or an earlier turn in 8 of 8 rows, such as '1+2;'" in wrong


def test_it_is_refused_too_where_the_system_text_is_a_source_s_or_rows_have_earlier_turns(capsys, tmp_path):
    model = without_system_turns(tmp_path / "model")
    earlier = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    talks = [row | {"problem": [*earlier, {"role": "user", "content": row["problem"]}]} for row in rows()]
    place = written(tmp_path / "talks.jsonl", talks)
    told = "chat template drops the system text or an earlier turn in 8 of 8 rows, such as '1+2;'"
    assert told in refused(capsys, f"data.path={place}", f"student.path={model}", "prompts.system=1+2;")
    source = f"{{name: a, path: {written(tmp_path / 'data.jsonl', rows())}, prompts: {{system: 1+2;}}}}"
    assert told in refused(capsys, f"data={{sources: [{source}]}}", f"student.path={model}")


def test_a_source_that_asks_for_another_form_of_answer_is_judged_by_it(capsys, tmp_path):
    place = written(tmp_path / "data.jsonl", [row | {"reference": ""} for row in rows()])
    source = f'{{name: a, path: {place}, prompts: {{solve: "{{problem}} ####"}}}}'
    opd = ["teacher.mode=opd", "teacher.path=miniature:teacher"]
    _, page, _ = check(capsys, f"data={{sources: [{source}]}}", *opd, verify=verifiers.reads_another_form, rows=8)
    assert "the reference or the answer  8 of 8 pass" in page


def test_all_that_is_wrong_is_told_at_once(capsys, tmp_path):
    found = written(tmp_path / "bad.jsonl", [*rows(), rows()[0] | {"problem_id": "a"}, rows()[1] | {"problem_id": "b"}])
    wrong = refused(capsys, f"data.path={found}", f"evaluation.path={found}", verify=verifiers.everything)
    for word in ("3 things", "trained on", "a second time", "passes everything"):
        assert word in wrong


def test_rows_of_two_teachers_are_examined_each_in_the_views_of_its_own(capsys, tmp_path):
    """One of them is shown the references, so a reference that states another answer is a fault."""
    found = [row | {"whose": ("own", "strong")[i % 2]} for i, row in enumerate(rows())]
    tree = config.recipe_tree("miniature_opsd")
    del tree["teacher"]
    tree["teachers"] = {"own": {"mode": "opsd"}, "strong": {"mode": "opd", "path": "miniature:teacher"}}
    tree["data"] = {"teacher_column": "whose"}
    base = tmp_path / "two.yaml"
    base.write_text(yaml.safe_dump(tree))
    two = {"base": str(base)}
    path = f"data.path={written(tmp_path / 'two.jsonl', found)}"
    code, page, wrong = check(capsys, path, **two, rows=8)
    assert (code, wrong) == (0, "")
    assert "8 of 8 pass" in page and "views of problem 'p000'" in page and "«<|reference|>»" in page
    for row, shows in (("1", True), ("2", False)):
        code, page, _ = check(capsys, path, **two, row=row)
        assert code == 0 and ("<|reference|>" in page) == shows and "its answer passes" in page
    found = [row | {"reference": f"1+1=2; \\boxed{{{int(row['answer']) + 1}}}"} for row in found]
    wrong = refused(capsys, f"data.path={written(tmp_path / 'wrong.jsonl', found)}", **two)
    assert "8 of 8 references state another answer than their row" in wrong and "the teacher is shown them" in wrong
    unknown = [row | {"whose": "nobody"} for row in rows()]
    wrong = refused(capsys, f"data.path={written(tmp_path / 'unknown.jsonl', unknown)}", **two)
    assert "nobody" in wrong and "own" in wrong and "strong" in wrong


# One row


@pytest.mark.parametrize("row", ["7", "p006"])
def test_the_views_of_any_row_are_shown_whole(capsys, data, row):
    code, page, wrong = check(capsys, f"data.path={data}", row=row)
    assert (code, wrong) == (0, "")
    assert (
        "«<|user|>»0+6+2«<|reference|>»0+6=6; 6+2=8; \\boxed{8}«<|attempt|>»0+6=6; 6+2=8; \\boxed{8}«<|end|>»" in page
    )
    assert "its answer passes: '\\\\boxed{8}'" in page


def test_a_row_that_is_not_there_is_refused(capsys, data):
    code, _, wrong = check(capsys, f"data.path={data}", row="51")
    assert (
        code == 2 and "there is no row '51': --row takes a number from 1 to 50, or a problem_id such as 'p000'" in wrong
    )


def test_the_command_line_says_which_rows(capsys, data):
    assert cli.main(["check", "miniature_opsd", f"data.path={data}", "evaluation.path=null", "--row", "2"]) == 0
    assert "problem 'p001'" in capsys.readouterr().out


def test_of_what_a_person_judges_the_rest_is_checked_and_nothing_is_wrong(capsys, data):
    code, page, _ = check(capsys, f"data.path={data}", "verify.function=review", "refiner.n=2", rows=8)
    assert code == 0 and "8 of 8 problems (verify.function=review), up to 3 responses a rollout" in page
    assert "trd review" in page and "views of problem" in page and "nothing is wrong" in page
    assert "not judged" not in page and "reference" in page


def test_only_the_rows_of_other_verifiers_are_examined_where_a_person_judges_some(capsys, tmp_path):
    some = [row | {"kind": "taste" if i % 2 else "maths"} for i, row in enumerate(rows())]
    place = written(tmp_path / "some.jsonl", some)
    by = [
        "verify.functions={maths: {function: math}, taste: {function: review}}",
        "verify.by=kind",
        "prompts.task=math",
    ]
    code, page, _ = check(capsys, f"data.path={place}", *by, rows=8)
    judged = sum(some[i * MANY // 8]["kind"] == "taste" for i in range(8))
    assert code == 0 and f"{judged} of 8 problems (verify.function=review)" in page and 0 < judged < 8
    assert "a verdict takes" in page
    wrong = refused(capsys, f"data.path={written(tmp_path / 'wrong.jsonl', [r | {'answer': '77'} for r in some])}", *by)
    assert "4 of 4 references state another answer" in wrong  # of those that a program judges


def test_the_views_of_a_row_that_a_person_judges_are_printed(capsys, data):
    code, page, _ = check(capsys, f"data.path={data}", "verify.function=review", row="3")
    assert code == 0 and "waits for a person" in page
