"""A worker group that is lost at any command: the one that takes its place has the same weights, bit for bit.

The learner, its checkpoints, the rows and what decides are real. Only the group is a stand-in: one rank in this
process, which "dies" when it is told to, before or after it has done what it was asked.
"""

import errno
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from trd_ray import config, lineage
from trd_ray.distill.batches import Example
from trd_ray.distill.checkpoint import Checkpointer
from trd_ray.distill.learner import Learner
from trd_ray.distill.trainer import Learned, LearnerLost
from trd_ray.errors import RunFailed, UserError
from trd_ray.record.directory import RunDirectory
from trd_ray.record.room import Room
from trd_ray.rows import to_table
from trd_ray.stream.examples import examples_of
from trd_ray.token_values import TokenValues
from trd_ray.train.checkpoints import Checkpoints
from trd_ray.train.living import Circumstances, LivingLearner

VOCAB, STEPS = 24, 5


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("living") / "base"
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *map(str, range(VOCAB - 2))])}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, initializer_range=0.3, eos_token_id=1,
            pad_token_id=0, bos_token_id=None,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module", autouse=True)
def alone():
    """This process as the only rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def recipe_of(base: Path, **checkpoint: Any) -> config.Recipe:
    learner = {"dtype": "float32", "lr": 1e-2, "chunk_tokens": 7, "lora": {"rank": 2, "alpha": 4, "dropout": 0.3}}
    return config.from_tree(
        {"name": "r", "student": {"path": str(base)}, "learner": learner, "checkpoint": {"every_steps": 2} | checkpoint}
    )


def table_of(step: int) -> Any:
    """The rows of a step; every third one does not train."""
    rng = random.Random(step)

    def ids() -> list[int]:
        return [rng.randrange(2, VOCAB) for _ in range(rng.randint(2, 6))]

    fixed = {
        "problem_id": "p",
        "problem": "?",
        "answer": "5",
        "reference": "",
        "epoch": 0,
        "sample_index": 0,
        "seed": 0,
    }
    numbers = range(4 * step - 4, 4 * step)
    return to_table(
        [
            fixed | {"row": n, "step": step, "train": n % 3 != 2, "trajectory": "y_o", "dropped_because": ""}
            | {"student_ids": ids(), "teacher_ids": ids(), "response_ids": ids()}
            for n in numbers
        ]
    )  # fmt: skip


class OneRank:
    """A worker group of one rank. It dies in the commands whose numbers are in `dies`."""

    def __init__(self, recipe: config.Recipe, dies: set[int] = frozenset()):  # type: ignore[assignment]
        self.recipe, self.dies, self.commands, self.lost, self.ranks = recipe, dies, 0, False, 1
        self.starts: list[str | None] = []
        self._start(None, lineage.START)

    def _start(self, resume_from: str | None, rows_sha256: str) -> None:
        path = str(self.recipe.student.path)
        self.learner = Learner(
            self.recipe, student_path=path, teacher_path=path, tokenizer_path=path, total_steps=STEPS,
            device=torch.device("cpu"),
        )  # fmt: skip
        self.learner.rows_sha256 = rows_sha256
        self.checkpointer = Checkpointer(self.learner, 60)
        if resume_from:
            self.checkpointer.load(Path(resume_from))
        self.starts.append(resume_from and Path(resume_from).name)

    def restart(self, *, seats: Any, resume_from: str | None, rows_sha256: str) -> None:
        assert self.lost, "a group that lives was replaced"
        self.checkpointer.done(60)  # the thread of one that is killed would not go on
        self._start(resume_from, rows_sha256)
        self.lost = False

    def _do(self, work: Any) -> Any:
        assert not self.lost, "a group that is lost was asked"
        self.commands += 1
        dies = self.commands in self.dies
        if dies and self.commands % 2:
            self._die()
        value = work()
        if dies:
            self._die()
        return value

    def _die(self) -> None:
        self.lost = True
        raise LearnerLost("the learner ended")

    def wait_until_started(self, look: Any) -> None:
        self._do(look)

    def step(self, examples: list[Example], number: int) -> Learned:
        def work() -> Learned:
            learned = self.learner.step([[examples]])
            rows = [example.row for example in examples]
            self.learner.rows_sha256 = lineage.advance(self.learner.rows_sha256, number, rows)
            return Learned(learned, self.learner.tokens)

        return self._do(work)

    def score(self, examples: list[Example]) -> TokenValues:
        return self._do(lambda: self.learner.score([examples]))

    def sync(self, version: int) -> str | None:
        return self._do(lambda: None)

    def logprobs(self, sequences: Any) -> list[list[float]]:
        return self._do(lambda: self.learner.logprobs(sequences))

    def call(self, name: str, timeout_s: float, **arguments: Any) -> Any:
        if name == "begin_checkpoint":
            return self._do(lambda: self.checkpointer.begin(Path(arguments["folder"]), arguments["rows_sha256"]))
        return self._do(lambda: self.checkpointer.done(arguments["wait_s"]))


def around(**parts: Any) -> Circumstances:
    nothing: Any = lambda *_: None  # noqa: E731
    given = dict.fromkeys(("look", "release", "say", "phase"), nothing) | {"seats": lambda _: (1, []), "spec": dict}
    return Circumstances(**{"max_restarts": 3, **given, **parts})


def play(place: Path, group: Any, **parts: Any) -> tuple[RunDirectory, LivingLearner]:
    """The loop, as far as it commands the learner and keeps its state."""
    recipe = group.recipe
    directory = RunDirectory.create(place, recipe)
    living = LivingLearner(group, directory, 0, around(**parts))
    sha256 = lineage.START
    checkpoints = Checkpoints(recipe, directory, group, saved=0, outlive=living.outlive, rows_sha256=lambda: sha256)
    living.on_restart.append(checkpoints.forget)
    living.outlive(lambda: group.wait_until_started(lambda: None))
    for step in range(1, STEPS + 1):
        table = table_of(step)
        examples = examples_of(table)
        living.logprobs([([2, 3], [4, 5])])
        metrics = living.step(examples).metrics
        assert living.sync(step) is None
        directory.write_rows(step, table)
        sha256 = lineage.advance(sha256, step, lineage.rows_that_train(table))
        living.record(step)
        checkpoints.if_due(step, STEPS, step, metrics)
    checkpoints.finish(wait=True)
    directory.release()
    return directory, living


def weights(group: OneRank) -> list[torch.Tensor]:
    return [p.full_tensor().detach().clone() for p in group.learner.trained.values()]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory) -> OneRank:
    group = OneRank(recipe_of(base))
    play(tmp_path_factory.mktemp("whole") / "run", group)
    return group


def deaths() -> list[set[int]]:
    """Each command of a run once, then several of them; a run without deaths gives about 22."""
    rng = random.Random(0)
    return [{n} for n in range(1, 24)] + [set(rng.sample(range(1, 40), 4)) for _ in range(5)]


def test_a_group_that_is_lost_at_any_command_is_replaced_by_one_with_the_same_weights(undisturbed, base, tmp_path):
    whole, restarts = undisturbed, 0
    for number, dies in enumerate(deaths()):
        group = OneRank(recipe_of(base), dies)
        directory, living = play(tmp_path / str(number), group, max_restarts=4)
        assert all(map(torch.equal, weights(whole), weights(group))), dies
        newest = directory.checkpoints()[-1]
        assert newest[0] == STEPS and directory.state_of(newest[1])["rows_sha256"] == group.learner.rows_sha256
        assert group.learner.rows_sha256 == whole.learner.rows_sha256
        assert group.learner.rows_sha256 == lineage.of_ledger((directory.path / "rows").glob("*.parquet"))
        left = [file.name for file in (directory.path / "checkpoints").iterdir()]
        assert len(left) in (1, 2) and all(name.startswith("step-") for name in left), dies
        assert living.restarts == len(group.starts) - 1 <= len(dies)
        restarts += living.restarts
    assert restarts > 30


def test_a_restart_begins_with_the_newest_checkpoint(base, tmp_path):
    group = OneRank(recipe_of(base), {18})  # in step 5, when checkpoint 4 may be written, and 2 is
    directory, _ = play(tmp_path / "run", group)
    assert group.starts in ([None, "step-000002"], [None, "step-000004"])
    events = (directory.path / "events.jsonl").read_text()
    assert "the learner starts again from checkpoint" in events and "trained again" in events


def test_a_group_that_ends_while_nothing_is_asked_of_it_is_replaced_at_the_next_look(base, tmp_path):
    group: Any = OneRank(recipe_of(base))
    directory = RunDirectory.create(tmp_path / "run", group.recipe)
    living = LivingLearner(group, directory, 0, around())
    living.outlive(lambda: group.wait_until_started(lambda: None))
    group.has_ended = lambda: False
    living.watch()
    assert (group.commands, living.restarts) == (1, 0)
    group.has_ended, group.dies = lambda: True, {2}  # a group that has ended says so when it is asked
    living.watch()
    assert living.restarts == 1 and not living.lost
    directory.release()


def test_a_group_on_a_node_that_turns_out_to_be_dead_is_given_other_seats(base, tmp_path):
    """Its ranks were missed before Ray knew that the node is dead, and Ray Train would wait for the node."""

    class OnNodes(OneRank):
        def wait_until_started(self, look: Any) -> None:
            try:
                super().wait_until_started(look)
            except LearnerLost:
                self.lost = True
                raise

    dead = [False, True, False]
    group = OnNodes(recipe_of(base), {2})
    directory = RunDirectory.create(tmp_path / "run", group.recipe)
    living = LivingLearner(group, directory, 0, around(has_lost_a_node=lambda: dead.pop(0)))
    living.outlive(lambda: living.wait_until_started(lambda: None))
    assert living.sync(1) is None and living.restarts == 2 and not dead
    assert "a node of the learner's ranks has died" in (directory.path / "events.jsonl").read_text()
    directory.release()


def test_what_a_step_finds_at_each_token_is_told_once_and_the_same_whenever_the_group_is_lost(base, tmp_path):
    """The commands of a step are score, step and sync, after the start."""

    def found(number: int, dies: set[int]) -> list[TokenValues]:
        group: Any = OneRank(recipe_of(base), dies)
        directory = RunDirectory.create(tmp_path / str(number), group.recipe)
        living = LivingLearner(group, directory, 0, around(max_restarts=4))
        living.outlive(lambda: group.wait_until_started(lambda: None))
        told = []
        for step in (1, 2, 3):
            examples = examples_of(table_of(step))
            told += [living.score(examples), living.step(examples).tokens]
            assert living.sync(step) is None
            directory.write_rows(step, table_of(step))
            living.record(step)
        directory.release()
        assert bool(living.restarts) == bool(dies)
        return told

    whole = found(0, set())
    assert [sorted(one.by_key()) for one in whole[:2]] == [[0, 1, 3]] * 2  # every third row does not train
    for number, dies in enumerate([{5}, {6}, {7}, {8}, {9, 12}], 1):
        for one, other in zip(whole, found(number, dies), strict=True):
            for ours, theirs in zip(one, other, strict=True):
                assert (ours == theirs).all(), dies


def test_what_was_being_done_is_shown_again_after_a_restart(base, tmp_path):
    shown = ["training"]
    play(tmp_path / "run", OneRank(recipe_of(base), {18}), phase=shown.append, shown=lambda: shown[-1])
    assert any(text.startswith("training step") for text in shown) and shown[-1] == "training"


def test_a_group_can_be_replaced_by_another_with_the_weights_of_the_newest_checkpoint(undisturbed, base, tmp_path):
    class Resized(OneRank):
        def restart(self, **arguments: Any) -> None:
            self.lost = True
            super().restart(**arguments)

    group = Resized(recipe_of(base))
    directory = RunDirectory.create(tmp_path / "run", group.recipe)
    living = LivingLearner(group, directory, 0, around())
    checkpoints = Checkpoints(group.recipe, directory, group, saved=0, rows_sha256=lambda: lineage.START)
    group.call = lambda name, s, **a: OneRank.call(group, name, s, **({"rows_sha256": None} | a))  # type: ignore[method-assign]
    checkpoints.rows_sha256 = lambda: None
    for step in range(1, STEPS + 1):
        table = table_of(step)
        metrics = living.step(examples_of(table)).metrics
        directory.write_rows(step, table)
        living.record(step)
        if step == 3:
            checkpoints.save(step, step, metrics)
            checkpoints.finish(wait=True)
            group.dies = {group.commands + 1}  # while the next group starts
            living.resize()
            assert group.starts[1:] == ["step-000003", "step-000003"] and living.restarts == 1
    assert not living.lost and all(map(torch.equal, weights(undisturbed), weights(group)))
    directory.release()


def test_a_larger_group_that_does_not_start_in_time_gives_way_to_one_of_the_size_before(base, tmp_path):
    class Growing(OneRank):
        late = {3}  # starts with so many ranks never come to an end

        def restart(self, *, seats: Any, **arguments: Any) -> None:
            self.lost = True
            super().restart(seats=seats, **arguments)
            self.ranks, _ = seats()

        def wait_until_started(self, look: Any) -> None:
            super().wait_until_started(look)
            if self.ranks in self.late:
                self.lost = True
                raise TimeoutError("waited 1800 s (learner.start_timeout_s) for the learner to start")

    asked: list[int | None] = []

    def seats(most: int | None) -> tuple[int, list[str]]:
        asked.append(most)
        return (3 if most is None else min(3, most)), []

    group: Any = Growing(recipe_of(base))
    directory = RunDirectory.create(tmp_path / "run", group.recipe)
    living = LivingLearner(group, directory, 0, around(seats=seats))
    assert living.resize() is False
    assert (asked, group.ranks, living.lost, living.restarts) == ([None, 1], 1, False, 0)
    events = (directory.path / "events.jsonl").read_text()
    assert "start_timeout_s) for the learner to start with 3 ranks, so there are no more than 1 again" in events
    group.late = set()
    assert living.resize() is True and group.ranks == 3
    group.late = {3}
    with pytest.raises(TimeoutError):  # the same number as before: there is nothing to go back to
        living.resize()
    directory.release()


def test_a_loss_that_comes_again_ends_the_run_and_says_how_often(base, tmp_path):
    with pytest.raises(RunFailed, match=r"the learner ended, and did so 3 times .*learner.max_restarts=2"):
        play(tmp_path / "run", OneRank(recipe_of(base), set(range(5, 99))), max_restarts=2)


def test_progress_gives_the_restarts_back(base, tmp_path):
    group = OneRank(recipe_of(base), {3, 9, 16, 24})
    _, living = play(tmp_path / "run", group, max_restarts=1)
    assert living.restarts == 4


@pytest.mark.parametrize("parts", [{"max_restarts": 0}, {}])
def test_without_restarts_and_at_the_end_a_loss_is_what_it_was(base, tmp_path, parts):
    group = OneRank(recipe_of(base), {1})
    living = LivingLearner(group, SimpleNamespace(), 0, around(**parts))  # type: ignore[arg-type]
    living.mortal = not parts
    with pytest.raises(LearnerLost, match="^the learner ended$"):
        living.outlive(lambda: group.wait_until_started(lambda: None))


def test_a_run_that_is_asked_to_stop_while_the_learner_restarts_has_no_learner_to_save(base, tmp_path):
    class Asked(Exception):
        pass

    def stop() -> None:
        raise Asked

    group = OneRank(recipe_of(base), {2})
    directory = RunDirectory.create(tmp_path / "run", group.recipe)
    living = LivingLearner(group, directory, 0, around(look=stop))
    living.outlive(lambda: group.wait_until_started(lambda: None))
    with pytest.raises(Asked):
        living.sync(1)
    assert living.lost
    directory.release()


def test_weights_that_other_rows_made_take_no_checkpoint_s_place(base, tmp_path):
    group = OneRank(recipe_of(base))
    directory = RunDirectory.create(tmp_path / "run", group.recipe)
    checkpoints: Any = Checkpoints(group.recipe, directory, group, saved=0, rows_sha256=lambda: "0" * 64)
    with pytest.raises(RunFailed, match=r"other rows made the weights \(e3b0c44298fc\) than rows/ holds \(00000"):
        checkpoints.begin(2, 2, {})
    assert not list((directory.path / "checkpoints").iterdir())
    directory.release()


# A disk that is full


class Full:
    """A disk that has no room until it was waited for so often."""

    def __init__(self, times: int):
        self.times = times
        self.told: list[str] = []

    def write(self) -> str:
        if self.times:
            raise OSError(errno.ENOSPC, "No space left on device", "/runs/a")
        return "written"

    def room(self, **parts: Any) -> Room:
        return Room(Path("/runs/a"), **{"look": lambda: None, "tell": self.told.append, "sleep": self._sleep, **parts})

    def _sleep(self, _: float) -> None:
        self.times = max(0, self.times - 1)


def test_a_full_disk_is_waited_for_and_told_once():
    disk = Full(times=70)
    assert disk.room().having("the rows of step 3", disk.write) == "written"
    assert [text.partition(":")[0] for text in disk.told] == [
        "the disk of /runs/a is full",
        "there is room again for the rows of step 3 after 75 s",
    ]


def test_a_wait_for_room_can_be_given_up_and_other_errors_are_raised():
    class Asked(Exception):
        pass

    def stop() -> None:
        raise Asked

    disk = Full(times=3)
    with pytest.raises(Asked):
        disk.room(look=stop).having("rows", disk.write)

    def forbidden() -> None:
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        disk.room().having("rows", forbidden)


def test_a_checkpoint_that_finds_the_disk_full_pauses_the_run_until_it_is_written(base, tmp_path):
    class OnFullDisk(OneRank):
        def call(self, name: str, timeout_s: float, **arguments: Any) -> Any:
            answer = super().call(name, timeout_s, **arguments)
            full = name == "finish_checkpoint" and answer[0] and disk.times
            return (True, "rank 0: OSError: [Errno 28] No space left on device") if full else answer

    disk = Full(times=12)
    group = OnFullDisk(recipe_of(base))
    directory = RunDirectory.create(tmp_path / "run", group.recipe)
    checkpoints: Any = Checkpoints(group.recipe, directory, group, saved=0, rows_sha256=lambda: None, room=disk.room())
    group.call = lambda name, s, **a: OnFullDisk.call(group, name, s, **({"rows_sha256": None} | a))  # type: ignore[method-assign]
    checkpoints.begin(2, 2, {"loss": 1.0})
    checkpoints.now = (3, 3, {"loss": 0.5})  # the run was a step further when it heard of it
    checkpoints.finish(wait=True)
    assert [steps for steps, _ in directory.checkpoints()] == [3] and checkpoints.saved == 3
    assert [folder.name for folder in (directory.path / "checkpoints").iterdir()] == ["step-000003"]
    assert len(disk.told) == 2 and "pauses before it writes checkpoint 3" in disk.told[0]
    disk.times, checkpoints.room = 1, None
    checkpoints.begin(5, 5, {})
    with pytest.raises(UserError, match="checkpoint 5 could not be written .*No space left"):
        checkpoints.finish(wait=True)
    directory.release()


def test_a_group_is_not_resized_from_a_checkpoint_that_had_to_be_put_off(base):
    made: Any = Checkpoints(recipe_of(base), None, None, saved=0)  # type: ignore[arg-type]
    assert not made.holds(3, 3, {"loss": math.nan, "updates": 0.0, "skipped_updates": 1.0})
    assert made.put_off and made.due(4, 99)


def test_a_checkpoint_is_due_by_time_as_well(base, tmp_path):
    now = [0.0]
    recipe = recipe_of(base, every_steps=50, every_s=60)
    made: Any = Checkpoints(recipe, None, None, saved=0, monotonic=lambda: now[0])  # type: ignore[arg-type]
    assert not made.due(1, 99)
    now[0] = 61.0
    assert made.due(2, 99)
    made.began = 61.0
    assert not made.due(3, 99) and made.due(50, 99)
    now[0] = 999.0
    made.writing = (3, Path("slow"))
    assert not made.due(4, 99) and made.due(50, 99)
