"""Which trajectory of a row trains, which rollouts are not refined for it, and what a corpus must hold."""

import pyarrow.parquet as pq
import pytest

from trd_ray.config import Recipe, dump, from_tree
from trd_ray.errors import UserError
from trd_ray.rows import to_table
from trd_ray.stream.held import lacks, require_held
from trd_ray.stream.trajectories import needs_refinement, wanted

REPAIR = {"trajectory": "repair"}


def recipe(train: dict, **tree) -> Recipe:
    return from_tree({"train": train} | tree)


@pytest.mark.parametrize(
    ("train", "passed", "failed"),
    [
        ({}, ("y_r", True), ("y_r", True)),
        ({"subset": "failed"}, ("y_r", True), ("y_r", True)),  # as it has always been
        ({"trajectory": "y_o"}, ("y_o", False), ("y_o", False)),
        ({"trajectory": "y_o", "subset": "repaired"}, ("y_o", True), ("y_o", True)),
        (REPAIR, ("y_o", False), ("y_r", True)),
        (REPAIR | {"subset": "repaired"}, ("y_o", False), ("y_r", True)),
    ],
)
def test_a_rollout_is_refined_only_where_something_asks_for_it(train, passed, failed):
    r = recipe(train)
    for verdict, expected in ((True, passed), (False, failed)):
        assert (wanted(r, 0, verdict), needs_refinement(r, 0, verdict)) == expected


def test_a_mixture_draws_its_share_of_the_rows_alike_each_time_and_a_larger_share_adds_rows():
    drawn = {}
    for share in (0.1, 0.5, 0.9):
        r = recipe({"trajectory": "mixture", "mixture_share": share})
        drawn[share] = {row for row in range(4000) if wanted(r, row, row % 2 == 0) == "y_o"}
        assert len(drawn[share]) / 4000 == pytest.approx(share, abs=0.03)
        assert all(needs_refinement(r, row, True) == (row not in drawn[share]) for row in range(100))
    assert drawn[0.1] < drawn[0.5] < drawn[0.9]
    other = recipe({"trajectory": "mixture"}, seed=1)
    both = sum(wanted(other, row, False) == "y_o" for row in drawn[0.5])
    assert both / len(drawn[0.5]) == pytest.approx(0.5, abs=0.05)
    judged = recipe({"trajectory": "mixture", "subset": "repaired"})
    assert all(needs_refinement(judged, row, False) for row in range(100))


def test_the_share_that_is_refined_at_most_and_what_may_train():
    mixture = {"trajectory": "mixture", "mixture_share": 0.75}
    assert [recipe(t).refined_share for t in ({}, {"trajectory": "y_o"}, REPAIR, mixture)] == [1, 0, 1, 0.25]
    assert recipe(mixture | {"subset": "repaired"}).refined_share == 1
    trains_on = [recipe(t).trains_on for t in ({}, {"trajectory": "y_o"}, REPAIR, mixture)]
    assert trains_on == [("y_r",), ("y_o",), ("y_r", "y_o"), ("y_r", "y_o")]
    assert recipe({"when_refinement_fails": "raw_if_passed"}).trains_on == ("y_r", "y_o")
    assert recipe({"trajectory": "y_o", "when_refinement_fails": "raw_if_passed"}).trains_on == ("y_o",)


# On a corpus


def stored(refined, passed) -> list[dict]:
    """Rows whose attempts passed or not, and were refined or not."""
    return [
        {"row": i, "fault": None, "y_o.passed": has, "y_r.passed": True if made else None}
        for i, (made, has) in enumerate(zip(refined, passed, strict=True))
    ]


def test_what_a_corpus_of_repair_lacks_is_counted_for_each_choice():
    rows = stored(refined=[False, True, True, False], passed=[True, False, False, True])
    lacking = {
        y: [lacks(recipe({"trajectory": y} | more), rows) for more in ({}, {"subset": "failed"})]
        for y in ("y_r", "y_o")
    }
    assert lacking == {"y_r": [2, 0], "y_o": [0, 0]}
    assert lacks(recipe(REPAIR), rows) == 0
    assert lacks(recipe({"subset": "passed"}), rows) == 2 and lacks(recipe({"subset": "repaired"}), rows) == 0
    rows[0]["fault"], rows[3]["y_o.passed"] = "y_o: refused", None  # neither trains, whatever is chosen
    assert lacks(recipe({}), rows) == 0


def corpus(folder, made_with: dict, refined: list[bool]):
    (folder / "rows").mkdir(parents=True)
    plain = {"problem_id": "p", "problem": "?", "answer": "1", "reference": "", "epoch": 0, "sample_index": 0}
    rows = [
        plain | {"row": i, "step": 0, "seed": i, "y_o": {"ids": [1], "passed": not has}}
        | {"y_r": {"ids": [2], "passed": True} if has else None}
        for i, has in enumerate(refined)
    ]  # fmt: skip
    pq.write_table(to_table(rows), folder / "rows" / "step-000001.parquet")
    (folder / "recipe.yaml").write_text(dump(from_tree(made_with)))


def on(folder, **tree) -> Recipe:
    return from_tree({"data": {"source": "corpus", "path": str(folder)}} | tree)


def test_a_corpus_that_lacks_refinements_is_refused_with_what_can_be_trained(tmp_path):
    corpus(tmp_path, {"train": REPAIR}, [True, False, True, False])
    said = (
        r"no refinement of 2 of its first 4 rollouts, which train.trajectory=y_r with train.subset=all needs: set "
        r"train.trajectory=repair or y_o, or make it again with trd refine and train.trajectory=y_r"
    )
    with pytest.raises(UserError, match=said):
        require_held(on(tmp_path), 4)
    require_held(on(tmp_path), 1)  # a shorter run does not meet the others
    for trajectory in ("repair", "y_o"):
        require_held(on(tmp_path, train={"trajectory": trajectory}), 4)


def test_a_corpus_of_y_r_serves_every_choice_of_a_trajectory(tmp_path):
    corpus(tmp_path, {}, [True] * 4)
    for trajectory in ("y_r", "y_o", "repair", "mixture"):
        require_held(on(tmp_path, train={"trajectory": trajectory}), 4)
    require_held(on(tmp_path, refiner={"max_edited_share": 0.5}), 4)


def test_a_rule_that_chose_among_candidates_cannot_be_changed_on_a_corpus(tmp_path):
    corpus(tmp_path, {"refiner": {"n": 4, "select": "best_score"}}, [True])
    require_held(on(tmp_path, refiner={"n": 4, "select": "best_score"}), 1)
    with pytest.raises(
        UserError, match=r"made with refiner.select=best_score and keeps one .* set refiner.select=best"
    ):
        require_held(on(tmp_path, refiner={"n": 4, "select": "nearest"}), 1)
    (tmp_path / "recipe.yaml").unlink()
    require_held(on(tmp_path, refiner={"n": 4, "select": "nearest"}), 1)  # nobody knows


def test_what_refinements_are_made_from_cannot_be_changed_on_a_corpus(tmp_path):
    corpus(tmp_path, {"refiner": {"from": "problem"}}, [True])
    require_held(on(tmp_path, refiner={"from": "problem"}), 1)
    require_held(on(tmp_path, train={"trajectory": "y_o"}), 1)  # which uses none of them
    with pytest.raises(UserError, match=r"were made with refiner.from=problem: set refiner.from=problem, or make it"):
        require_held(on(tmp_path), 1)
