"""What a row trains, by its verdicts and by what the recipe asks for; and which refinement becomes y_r."""

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trd_ray import config
from trd_ray.engine.actor import Generation
from trd_ray.errors import BadRow
from trd_ray.record.ledger import row_metrics
from trd_ray.rows import EXAMPLE, ROW, light, to_table
from trd_ray.stream.choosing import RefineCandidate, choose
from trd_ray.stream.examples import build, examples_of, rebuilt
from trd_ray.stream.stages import min_version, record_refined, require_judged, require_taken
from trd_ray.stream.trajectories import wanted
from trd_ray.verify import Verdict
from trd_ray.views import Views

PROMPTS = {
    "solve": "{problem}",
    "solve_with_reference": "{problem} known {reference}",
    "refine": "{problem} tried {attempt} {feedback}",
    "refine_with_reference": "{problem} known {reference} tried {attempt} {feedback}",
}
TEXT = "x y_star known tried raw refined A checker found the attempt's final answer wrong."
VERDICTS = [(True, True), (True, False), (False, True), (False, False)]  # of y_o and y_r


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["<unk>", "<end>", *TEXT.split()])}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<end>",
        chat_template="{% for m in messages %}{{ m.content }} {% endfor %}",
    )


@pytest.fixture(params=[list, lambda ids: np.array(ids, np.int32)], ids=["lists", "arrays"])
def made(tokenizer, request):
    """(row, example) that `build` makes of the verdicts under a recipe, with ids as lists and as a stage has them."""

    def make(
        y_o_passed=False, y_r_passed=True, over: dict | None = None, vocabulary: int | None = None,
        y_o: dict | None = None, y_r: dict | None = None, **tree,
    ):  # fmt: skip
        recipe = config.from_tree({"prompts": PROMPTS} | tree)
        views = Views(recipe, tokenizer, tokenizer)
        ids = {word: tokenizer(word, add_special_tokens=False).input_ids for word in ("raw", "refined")}
        row = {
            "problem_id": "p", "problem": "x", "answer": "1", "reference": "y_star",
            "row": 7, "step": 0, "epoch": 0, "sample_index": 0, "seed": 1,
            "student_prompt_ids": views.student("x"),
            "y_o": {"ids": ids["raw"], "passed": y_o_passed, "feedback": None} | (y_o or {}),
        }  # fmt: skip
        if recipe.refines:
            view = views.refine("x", "y_star", ids["raw"], y_o_passed)
            row |= {"refine_prompt_ids": view.ids, "refine_cut_tokens": view.cut_tokens}
            row["y_r"] = {"ids": ids["refined"], "passed": y_r_passed} | (y_r or {})
        row |= over or {}
        for holder, name in ((row, "student_prompt_ids"), (row, "refine_prompt_ids"), (row["y_o"], "ids")):
            if holder.get(name) is not None:
                holder[name] = request.param(holder[name])
        if row.get("y_r"):
            row["y_r"]["ids"] = request.param(row["y_r"]["ids"])
        return row, build(row, recipe, views, vocabulary)

    return make


RAW, REFINED, FAILED = ("y_o", ""), ("y_r", ""), ("y_r", "refinement failed")


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("train", [REFINED, REFINED, REFINED, REFINED]),
        ("raw_if_passed", [REFINED, RAW, REFINED, FAILED]),
        ("drop", [REFINED, FAILED, REFINED, FAILED]),
    ],
)
def test_what_trains_when_the_refinement_fails(made, when, expected):
    for verdicts, (trajectory, reason) in zip(VERDICTS, expected, strict=True):
        row, example = made(*verdicts, train={"when_refinement_fails": when})
        assert (row["trajectory"], row["dropped_because"], row["train"]) == (trajectory, reason, not reason)
        assert (example is None) == bool(reason)
        if example:
            assert list(example.response_ids) == list(row["response_ids"]) == list(row[trajectory]["ids"])
            assert list(example.student_ids) == list(row["student_ids"]) == list(row["student_prompt_ids"])
            assert (list(example.teacher_ids), example.row) == (list(row["teacher_ids"]), 7)


@pytest.mark.parametrize("trajectory", ["y_r", "y_o"])
@pytest.mark.parametrize(
    ("subset", "kept"),
    [
        ("all", [True, True, True, True]),
        ("failed", [False, False, True, True]),
        ("passed", [True, True, False, False]),
        ("repaired", [False, False, True, False]),
    ],
)
def test_a_subset_is_chosen_by_the_verdicts_whatever_trains(made, trajectory, subset, kept):
    for verdicts, keeps in zip(VERDICTS, kept, strict=True):
        row, example = made(*verdicts, train={"subset": subset, "trajectory": trajectory})
        assert (example is not None) == row["train"] == keeps
        assert row["dropped_because"] == ("" if keeps else f"not in subset {subset}")


@pytest.mark.parametrize(
    ("mode", "view", "trajectory", "expected"),
    [
        ("opsd", "refine", "y_r", "x known y_star tried raw"),
        ("opsd", "vanilla", "y_r", "x known y_star"),
        ("opsd", "vanilla", "y_o", "x known y_star"),
        ("opd", "refine", "y_r", "x tried raw"),
        ("opd", "vanilla", "y_r", "x"),
        ("opd", "vanilla", "y_o", "x"),
    ],
)
def test_the_student_sees_the_problem_alone_and_the_teacher_its_view(made, tokenizer, mode, view, trajectory, expected):
    teacher = {"mode": mode, "view": view} | ({"path": "another"} if mode == "opd" else {})
    row, example = made(teacher=teacher, train={"trajectory": trajectory})
    assert tokenizer.decode(example.student_ids) == "x"
    assert tokenizer.decode(example.teacher_ids) == expected
    assert tokenizer.decode(example.response_ids) == {"y_r": "refined", "y_o": "raw"}[trajectory]
    assert row["teacher_cut_tokens"] == 0


def test_the_teacher_scores_under_the_very_prompt_that_it_refined_from(made, tokenizer):
    row, example = made(refiner={"feedback": "verdict"})
    assert list(example.teacher_ids) == list(row["refine_prompt_ids"])
    assert tokenizer.decode(example.teacher_ids).endswith("tried raw A checker found the attempt's final answer wrong.")


def test_what_failed_is_told_when_asked_for(made, tokenizer):
    _, example = made(
        refiner={"feedback": "details"}, y_o={"feedback": "x tried"}, over={"refine_prompt_ids": None},
        verify={"task": "code"},
    )  # fmt: skip
    assert tokenizer.decode(example.teacher_ids).endswith("x tried")


def test_a_solution_that_ignores_the_attempt_is_scored_under_the_prompt_that_it_was_sampled_from(made, tokenizer):
    _, example = made(refiner={"from": "problem"})
    assert tokenizer.decode(example.response_ids) == "refined"
    assert tokenizer.decode(example.teacher_ids) == "x known y_star"


def test_only_the_first_share_of_a_trajectory_has_loss_rounded_up(made):
    ids = [6, 5, 4, 6, 5, 4, 1]
    for share, kept in ((1.0, 7), (0.5, 4), (1 / 3, 3), (0.01, 1)):
        row, example = made(y_r={"ids": ids}, loss={"first_share": share})
        assert example.response_ids.tolist() == ids[:kept] and example.loss_at is None
        assert list(row["y_r"]["ids"]) == ids


@pytest.mark.parametrize(
    ("y_r", "share", "response", "places"),
    [
        ([6, 9, 4, 5, 1], 1.0, [6, 9], [1]),  # what comes after the last edit has no loss
        ([6, 5, 8, 9, 1], 1.0, [6, 5, 8, 9], [2, 3]),
        ([6, 5, 8, 9, 1], 0.6, [6, 5, 8], [2]),
        ([6, 5, 4, 5, 1], 1.0, None, "nothing edited"),
        ([6, 5, 4, 5, 9], 0.5, None, "nothing edited"),
    ],
)
def test_only_what_a_refinement_edits_has_loss(made, y_r, share, response, places):
    row, example = made(y_o={"ids": [6, 5, 4, 5, 1]}, y_r={"ids": y_r}, loss={"span": "edited", "first_share": share})
    if response is None:
        assert example is None and row["dropped_because"] == places
        return
    assert example.response_ids.tolist() == response and example.loss_at.tolist() == places
    assert example.loss_tokens == len(places)
    [again] = examples_of(to_table([row]))
    assert again.loss_at.tolist() == places and again.response_ids.tolist() == response


def test_an_attempt_that_trains_among_refinements_has_loss_at_each_token(made):
    _, example = made(y_o_passed=True, train={"trajectory": "repair"}, loss={"span": "edited"})
    assert example.loss_at is None and example.loss_tokens == len(example.response_ids)


ENDS = "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}<end> {% endif %}{% endfor %}"


@pytest.mark.parametrize("subset", ["all", "failed"])
def test_a_reference_trains_with_the_end_of_its_turn_and_the_teacher_scores_it_without_the_attempt(
    made, tokenizer, monkeypatch, subset
):
    monkeypatch.setattr(tokenizer, "chat_template", ENDS)
    train = {"trajectory": "reference", "subset": subset}
    row, example = made(train=train)
    assert row["trajectory"] == "reference" and "y_r" not in row
    assert tokenizer.decode(example.response_ids) == "y_star <end>"
    assert tokenizer.decode(example.teacher_ids) == "x known y_star"
    assert tokenizer.decode(example.student_ids) == "x"
    assert made(y_o_passed=True, train=train)[1] is None or subset == "all"
    row, example = made(over={"reference": " "}, train=train)
    assert example is None and row["dropped_because"] == "no reference"
    row, example = made(train=train, loss={"divergence": "cross_entropy"})
    assert row["teacher_ids"] is None and not len(example.teacher_ids) and len(example.response_ids) == 2
    [again] = examples_of(to_table([row]))
    assert again.sides == (3, 2)


def test_a_raw_rollout_that_trains_in_place_of_a_refinement_is_not_shown_to_the_teacher(made, tokenizer):
    row, example = made(True, False, train={"when_refinement_fails": "raw_if_passed"}, teacher={"view": "refine"})
    assert row["trajectory"] == "y_o"
    assert tokenizer.decode(row["teacher_ids"]) == "x known y_star"


@pytest.mark.parametrize("view", ["refine", "vanilla"])
def test_repair_trains_what_passed_under_the_vanilla_view_and_refines_the_rest(made, tokenizer, view):
    tree = {"train": {"trajectory": "repair"}, "teacher": {"view": view}}
    unrefined = {"y_r": None, "refine_prompt_ids": None, "refine_cut_tokens": None}
    passed, example = made(True, over=unrefined, **tree)
    assert (passed["trajectory"], passed["dropped_because"]) == ("y_o", "")
    assert tokenizer.decode(example.response_ids) == "raw"
    assert tokenizer.decode(example.teacher_ids) == "x known y_star"
    for y_r_passed in (True, False):  # the paper keeps refinements that fail
        failed, example = made(False, y_r_passed, **tree)
        assert failed["trajectory"] == "y_r" and tokenizer.decode(example.response_ids) == "refined"
        assert ("tried" in tokenizer.decode(example.teacher_ids)) == (view == "refine")
    tree["train"] |= {"when_refinement_fails": "drop"}
    assert made(False, False, **tree)[0]["dropped_because"] == "refinement failed"
    assert made(True, over=unrefined, **tree)[0]["train"]


def test_a_mixture_trains_each_row_on_what_was_drawn_for_it_whatever_the_verdicts(made, tokenizer):
    tree = {"train": {"trajectory": "mixture", "mixture_share": 0.5}}
    recipe = config.from_tree(tree)
    drawn = {number: wanted(recipe, number, False) for number in range(8)}
    assert set(drawn.values()) == {"y_o", "y_r"}
    for number, trajectory in drawn.items():
        for verdicts in VERDICTS:
            row, example = made(*verdicts, over={"row": number}, **tree)
            assert row["trajectory"] == trajectory and list(example.response_ids) == list(row[trajectory]["ids"])
            assert ("tried" in tokenizer.decode(example.teacher_ids)) == (trajectory == "y_r")


def test_a_refinement_that_strays_from_the_attempt_does_not_train_also_of_a_corpus_that_never_measured_it(
    made, tokenizer
):
    [raw] = tokenizer("raw", add_special_tokens=False).input_ids
    near, far = {"ids": [raw, 3]}, {"ids": [2, 3, 4, 5]}  # half of it is edited, and all
    limit = {"refiner": {"max_edited_share": 0.5}}
    assert made(y_r=near, **limit)[0]["train"] and made(y_r=far)[0]["train"]
    for known in ({}, {"refine_edited_share": 1.0}):
        row, example = made(y_r=far, over=known, **limit)
        assert example is None and row["dropped_because"] == "edited too much"
    assert made(y_r=near, over={"refine_edited_share": 0.75}, **limit)[1] is None  # what the stage measured counts
    replaced = {"train": {"when_refinement_fails": "raw_if_passed"}}
    assert made(True, False, y_r=far, **limit, **replaced)[0]["trajectory"] == "y_o"  # it trains, and is not edited
    assert made(True, over={"y_r": None}, train={"trajectory": "repair"}, **limit)[0]["train"]


@pytest.mark.parametrize(("view", "shown"), [("refine", "tried"), ("vanilla", "known")])
def test_tokens_cut_from_the_teachers_view_are_recorded(made, tokenizer, view, shown):
    long = {"reference": " ".join(["y_star"] * 40)}
    row, _ = made(teacher={"view": view}, refiner={"max_prompt_tokens": 16}, over=long | {"refine_prompt_ids": None})
    assert len(row["teacher_ids"]) == 16 and shown in tokenizer.decode(row["teacher_ids"])
    whole = {"refine": 1 + 1 + 40 + 1 + 1, "vanilla": 1 + 1 + 40}[view]
    assert row["teacher_cut_tokens"] == whole - 16


def test_empty_responses_are_dropped_and_counted(made):
    empty_y_r = made(y_r={"ids": []})
    failed_and_empty = made(False, False, y_r={"ids": []})
    empty_y_o = made(y_o={"ids": []}, train={"trajectory": "y_o"})
    assert [example for _, example in (empty_y_r, failed_and_empty, empty_y_o)] == [None] * 3
    rows = [row for row, _ in (empty_y_r, failed_and_empty, empty_y_o, made())]
    counted = row_metrics(light(to_table(rows)))
    assert (counted["dropped/empty"], counted["trained_rows"], counted["rollouts"]) == (3, 1, 4)
    assert all(not {"response_ids", "teacher_ids"} & row.keys() for row in rows[:3])


# From a step's table


def test_a_table_gives_the_examples_that_were_built_as_slices_of_its_buffers(made):
    built = [made(*verdicts, over={"row": i}) for i, verdicts in enumerate(VERDICTS)]
    dropped, _ = made(over={"row": 4}, y_r={"ids": []})
    whole = to_table([row for row, _ in built] + [dropped])
    parcels = pa.concat_tables([whole[:1], whole[1:3], whole[3:]])  # as they come from the stream
    for table in (whole, parcels):
        found = examples_of(table)
        assert [e.row for e in found] == [0, 1, 2, 3]
        buffers = [
            chunk.values.to_numpy() for name in ("student_ids", "teacher_ids", "response_ids")
            for chunk in table[name].chunks
        ]  # fmt: skip
        for example, (_, expected) in zip(found, built, strict=True):
            for name in ("student_ids", "teacher_ids", "response_ids"):
                ids = getattr(example, name)
                assert ids.dtype == np.int32 and ids.tolist() == getattr(expected, name).tolist()
                assert any(np.shares_memory(ids, buffer) for buffer in buffers)


def test_example_columns_are_made_again_by_the_recipe_at_hand(made, tokenizer):
    rows = [made(*verdicts, over={"row": i})[0] for i, verdicts in enumerate(VERDICTS)]
    other = config.from_tree({"prompts": PROMPTS, "train": {"trajectory": "y_o", "subset": "passed"}})
    table = rebuilt(to_table(rows), other, Views(other, tokenizer, tokenizer))
    assert table.schema.equals(ROW, check_metadata=True)
    assert table["trajectory"].to_pylist() == ["y_o"] * 4
    assert table["dropped_because"].to_pylist() == ["", "", *["not in subset passed"] * 2]
    raw, nothing = list(rows[0]["y_o"]["ids"]), None
    assert table["response_ids"].to_pylist() == [raw, raw, nothing, nothing]
    kept = [name for name in ROW.names if name not in [field.name for field in EXAMPLE]]
    assert table.select(kept) == to_table(rows).select(kept)


def test_rows_of_several_teachers_are_made_again_each_in_the_view_of_its_own(made, tokenizer):
    rows = [made(over={"row": i, "teacher": name})[0] for i, name in enumerate(["far", "own"])]
    teachers = {"far": {"mode": "opd", "path": "m", "view": "vanilla"}, "own": {"mode": "opsd", "view": "vanilla"}}
    recipe = config.from_tree({"prompts": PROMPTS, "teachers": teachers})
    views = {name: Views(one, tokenizer, tokenizer) for name, one in recipe.by_teacher.items()}
    table = rebuilt(to_table(rows), recipe, views)
    assert [tokenizer.decode(ids) for ids in table["teacher_ids"].to_pylist()] == ["x", "x known y_star"]
    assert [example.teacher for example in examples_of(table)] == ["far", "own"]


def test_with_one_teacher_no_example_has_a_name_whoever_refined_its_row(made, tokenizer):
    rows = [made(over={"row": i, "teacher": name})[0] for i, name in enumerate(["far", None])]
    recipe = config.from_tree({"prompts": PROMPTS})
    table = rebuilt(to_table(rows), recipe, Views(recipe, tokenizer, tokenizer))
    assert table["teacher"].to_pylist() == [None, None]
    assert [example.teacher for example in examples_of(table)] == [config.ONLY] * 2


def test_the_metrics_tell_what_became_of_the_rows_of_each_teacher(made):
    rows = [made(*passed, over={"teacher": name})[0] for passed, name in zip(VERDICTS, "aabb", strict=True)]
    found = row_metrics(light(to_table(rows)))
    assert (found["teachers/a/rollouts"], found["teachers/a/y_o_passed"], found["teachers/a/y_r_passed"]) == (2, 1, 0.5)
    assert found["teachers/b/y_o_passed"] == 0
    assert not [name for name in row_metrics(light(to_table([made()[0]]))) if name.startswith("teachers/")]


# Which refinement becomes y_r, and which weights may sample y_o


def generation(text: str, tokens: int) -> Generation:
    return Generation(list(range(tokens)), text, "stop", [-0.5] * tokens, 3, "refiner-0", 1.0, 2.0)


def test_y_r_is_the_selected_candidate_with_its_own_verdict(made):
    row, _ = made()
    texts = [("so \\boxed{2}", 3, False), ("so then \\boxed{1}", 5, True), ("\\boxed{1}", 4, True), ("none", 2, False)]
    candidates = [generation(text, tokens) for text, tokens, _ in texts]
    judged = [(7.0 + i, Verdict(passed, float(passed), text, "", 0.5)) for i, (text, _, passed) in enumerate(texts)]
    weighed = [RefineCandidate(len(c.ids), v.passed, v.score) for c, (_, v) in zip(candidates, judged, strict=True)]
    record_refined(row, candidates, judged, weighed, choose(weighed, "shortest_passed"))
    [out] = to_table([row]).to_pylist()
    y_r = out["y_r"]
    assert (y_r["text"], y_r["ids"], y_r["passed"]) == ("\\boxed{1}", [0, 1, 2, 3], True)
    assert (y_r["version"], y_r["engine"], y_r["logprobs"]) == (3, "refiner-0", [-0.5] * 4)
    assert (y_r["extracted"], y_r["verify_start_s"], y_r["verify_seconds"]) == ("\\boxed{1}", 7.0, 2.0)
    assert (out["refine_candidates"], out["refine_candidates_passed"], out["refine_tokens"]) == (4, 2, 14)
    assert (out["refine_scored_tokens"], out["refine_student_logprob"], out["refine_edited_share"]) == (None,) * 3
    assert out["y_o"]["ids"] == list(row["y_o"]["ids"])


@pytest.mark.parametrize(
    ("step", "staleness", "first_version", "oldest"),
    [(5, 0, 0, 5), (5, 1, 0, 4), (5, 9, 0, 0), (5, 2, 4, 4), (9, 2, 4, 7), (5, "never", 0, 0), (9, "never", 4, 4)],
)
def test_the_oldest_version_that_may_sample_a_step(step, staleness, first_version, oldest):
    """With n, at most n updates behind; `never` is the version that the run started with."""
    assert min_version(step, staleness, first_version) == oldest


@pytest.mark.parametrize("trajectory", ["y_o", "y_r"])
def test_a_trajectory_with_a_token_that_only_one_model_has_is_dropped_with_the_reason(made, trajectory):
    other = {"y_o": "y_r", "y_r": "y_o"}[trajectory]
    beyond, tree = {"ids": [3, 20]}, {"train": {"trajectory": trajectory}}
    row, example = made(vocabulary=20, **{trajectory: beyond}, **tree)
    assert example is None and row["dropped_because"] == "token outside the shared vocabulary"
    assert row_metrics(light(to_table([row])))["dropped/token outside the shared vocabulary"] == 1
    assert made(vocabulary=21, **{trajectory: beyond}, **tree)[1].response_ids.tolist() == [3, 20]
    assert made(vocabulary=20, **{other: beyond}, **tree)[1] is not None


def test_a_row_that_could_not_be_made_or_judged_never_trains_also_from_a_corpus(tokenizer):
    recipe = config.from_tree({"prompts": PROMPTS, "train": {"when_refinement_fails": "train"}})
    order = {"problem_id": "p", "problem": "x", "answer": "1", "reference": "", "step": 0, "epoch": 0}
    rows = [order | {"row": i, "sample_index": 0, "seed": i, "fault": "y_o: not judged (x)"} for i in range(2)]
    rows[1]["y_o"] = {"ids": [1, 2], "passed": False, "detail": "not judged (x)"}
    table = rebuilt(to_table(rows), recipe, Views(recipe, tokenizer, tokenizer))
    assert table["train"].to_pylist() == [False, False] and examples_of(table) == []
    assert table["dropped_because"].to_pylist() == ["bad row", "bad row"]
    assert row_metrics(light(table))["dropped/bad row"] == 2


def test_what_nobody_judged_and_what_an_engine_refused_are_bad_rows():
    require_judged({"y_o": {"detail": "not equal"}}, "y_o")
    with pytest.raises(BadRow, match=r"^y_o: not judged \(it died twice\)$"):
        require_judged({"y_o": {"detail": "not judged (it died twice)"}}, "y_o")
    taken = Generation(np.array([5]), "a", "stop", np.array([-0.1]), 0, "e", 0.0, 0.0)
    require_taken([taken, taken], "y_r")
    with pytest.raises(BadRow, match="^y_r: the engine refused the request .*too long"):
        require_taken([taken, Generation.refusal("ValueError: too long", 0, "e", 0.0)], "y_r")


def test_a_teacher_s_view_that_is_made_again_holds_what_was_said_before_and_the_wording_of_the_source(made, tokenizer):
    turns = '[{"role": "user", "content": "tried"}, {"role": "assistant", "content": "refined"}]'
    sources = [{"name": "own", "path": "own.jsonl", "prompts": {"solve_with_reference": "raw {problem} {reference}"}}]
    rows = [
        made(over={"row": 0, "turns": turns})[0],
        made(over={"row": 1, "source": "own"})[0],
        made(over={"row": 2})[0],
    ]
    recipe = config.from_tree({"prompts": PROMPTS, "teacher": {"view": "vanilla"}, "data": {"sources": sources}})
    table = rebuilt(to_table(rows), recipe, Views(recipe, tokenizer, tokenizer))
    texts = [tokenizer.decode(ids) for ids in table["teacher_ids"].to_pylist()]
    assert texts == ["tried refined x known y_star", "raw x y_star", "x known y_star"]
