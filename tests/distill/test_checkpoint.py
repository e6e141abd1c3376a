"""A checkpoint holds the learner's state of the moment it was asked for, on any number of ranks, or it is not there.

Ranks are real processes over gloo; the models are a few thousand random parameters. What a learner that was never
stopped goes on to do is the oracle throughout.
"""

import json
import math
import multiprocessing as mp
import os
import random
import shutil
import signal
import time
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import AutoPeftModelForCausalLM
from tokenizers import Tokenizer, models
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from trd_ray import config
from trd_ray.distill.batches import Example
from trd_ray.distill.checkpoint import Checkpointer, flaw
from trd_ray.distill.learner import Learner
from trd_ray.errors import RunFailed, UserError
from trd_ray.record.directory import RunDirectory
from trd_ray.train.checkpoints import Checkpoints

VOCAB = 40
LORA = {"rank": 2, "alpha": 4}
CASES: dict[str, dict] = {
    "full": {"learner": {"warmup_ratio": 0.5}},
    "moving average": {"teacher": {"follow": "ema", "ema_decay": 0.5}},
    "bfloat16": {"learner": {"dtype": "bfloat16"}},
    "lora with dropout": {"learner": {"lora": LORA | {"dropout": 0.3}}},
    "adapter": {"learner": {"lora": LORA}, "checkpoint": {"export": "adapter"}},
}
# A fork of a process that has the libraries but no threads or groups yet starts in an instant.
PROCESSES = mp.get_context("forkserver")
PROCESSES.set_forkserver_preload(["trd_ray.distill.checkpoint", "trd_ray.distill.learner", "trd_ray.record.directory"])


def step_rows(seed: int) -> list[Example]:
    rng = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [rng.randrange(2, VOCAB) for _ in range(rng.randint(2, most))]

    return [Example(row, ids(5), ids(9), ids(12)) for row in range(4)]


STEPS = [step_rows(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "base"
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *map(str, range(VOCAB - 2))])}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, initializer_range=0.3, eos_token_id=1,
            pad_token_id=0, bos_token_id=None,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def alone():
    """This process as the only rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make_learner(base: Path, case: str, total_steps: int = len(STEPS)) -> Learner:
    given = CASES[case]
    settings = {"dtype": "float32", "lr": 1e-2, "warmup_ratio": 0.0, "chunk_tokens": 7} | given.get("learner", {})
    recipe = config.from_tree(given | {"student": {"path": str(base)}, "learner": settings})
    path = str(base)
    return Learner(
        recipe, student_path=path, teacher_path=path, tokenizer_path=path, total_steps=total_steps,
        device=torch.device("cpu"),
    )  # fmt: skip


def train(learner: Learner, steps: list[list[Example]]) -> list[dict[str, float]]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return [learner.step([[rows[rank::ranks]]]) for rows in steps]


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: _whole(p) for name, p in learner.trained.items()}


def _whole(p: torch.Tensor) -> torch.Tensor:
    return (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()


def empty(folder: Path, steps: int = 2) -> Path:
    """What the run directory hands to the learner."""
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"steps": steps, "metrics": {}}))
    return folder


def save(learner: Learner, folder: Path, steps: int = 2) -> Path:
    checkpointer = Checkpointer(learner, 60)
    checkpointer.begin(empty(folder, steps))
    assert checkpointer.done(60) == (True, None)
    return folder


def resumed(base: Path, case: str, folder: Path, total_steps: int = len(STEPS)) -> Learner:
    learner = make_learner(base, case, total_steps)
    torch.manual_seed(99)
    Checkpointer(learner, 60).load(folder)
    return learner


# On one rank


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("saved_after", [0, 2])
def test_a_resumed_learner_goes_on_as_if_it_had_not_stopped(base, alone, tmp_path, case, saved_after):
    learner = make_learner(base, case)
    train(learner, STEPS[:saved_after])
    checkpointer = Checkpointer(learner, 60)
    checkpointer.begin(empty(tmp_path / "c", saved_after))
    whole = train(learner, STEPS[saved_after:])  # while it is being written
    assert checkpointer.done(60) == (True, None)
    again = resumed(base, case, tmp_path / "c")
    assert train(again, STEPS[saved_after:]) == whole
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(learner).items())


def test_saving_disturbs_no_step(base, alone, tmp_path):
    plain, saving = make_learner(base, "lora with dropout"), make_learner(base, "lora with dropout")
    torch.manual_seed(1)
    whole = train(plain, STEPS)
    torch.manual_seed(1)
    curve = train(saving, STEPS[:1])
    save(saving, tmp_path / "c")
    assert curve + train(saving, STEPS[1:]) == whole


@pytest.mark.parametrize("case", ["full", "moving average"])
def test_a_checkpoint_is_of_the_moment_it_was_asked_for(base, alone, tmp_path, case):
    learner = make_learner(base, case)
    train(learner, STEPS[:2])
    before = weights(learner)
    after_one = train(resumed(base, case, save(learner, tmp_path / "reference")), STEPS[2:])
    checkpointer = Checkpointer(learner, 60)
    checkpointer.begin(empty(tmp_path / "c"))
    with torch.no_grad():  # before a thread can have come far
        for p in [*learner.trained.values(), *(learner.average.average.values() if learner.average else ())]:
            p.zero_()
        for state in learner.optimizer.state.values():
            for value in state.values():
                value.zero_()
    assert checkpointer.done(60) == (True, None)
    again = resumed(base, case, tmp_path / "c")
    assert all(torch.equal(weight, before[name]) for name, weight in weights(again).items())
    assert train(again, STEPS[2:]) == after_one
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "c" / "model")
    assert all(torch.equal(p, before[name]) for name, p in exported.named_parameters())


def test_random_numbers_go_on_where_they_were(base, alone, tmp_path):
    learner = make_learner(base, "full")
    random.seed(7)
    save(learner, tmp_path / "c")
    expected = torch.rand(3).tolist(), random.random()
    random.seed(8)
    resumed(base, "full", tmp_path / "c")
    assert (torch.rand(3).tolist(), random.random()) == expected


def test_a_longer_run_goes_on_at_its_own_learning_rate(base, alone, tmp_path):
    """lr * cosine of the place in the run, as if it had been as long from the start."""
    learner = make_learner(base, "full")
    train(learner, STEPS[:2])
    save(learner, tmp_path / "c")
    longer = resumed(base, "full", tmp_path / "c", total_steps=8)
    never_stopped = make_learner(base, "full", total_steps=8)
    assert train(longer, STEPS)[0]["lr"] == train(never_stopped, STEPS)[2]["lr"]


def test_with_lora_only_adapters_are_saved(base, alone, tmp_path):
    learner = make_learner(base, "adapter")
    train(learner, STEPS[:2])
    folder = save(learner, tmp_path / "c")
    numbers = sum(p.numel() for p in learner.trained.values())
    frozen = sum(p.numel() for p in learner.student.parameters()) - numbers
    keys = FileSystemReader(folder / "learner").read_metadata().state_dict_metadata
    tensors = [entry for entry in keys.values() if hasattr(entry, "size")]
    assert frozen > 0
    assert sum(entry.size.numel() for entry in tensors) == 3 * numbers + len(learner.trained)  # AdamW's two, its counts


@pytest.mark.parametrize("case", ["lora with dropout", "adapter", "bfloat16"])
def test_the_export_loads_elsewhere_and_says_what_the_learner_says(base, alone, tmp_path, case):
    learner = make_learner(base, case)
    train(learner, STEPS)
    learner.student.eval()
    sequences = [(e.student_ids, e.response_ids) for e in STEPS[0]]
    model = save(learner, tmp_path / "c") / "model"
    loader: Any = AutoPeftModelForCausalLM if case == "adapter" else AutoModelForCausalLM
    exported, untrained = loader.from_pretrained(model), AutoModelForCausalLM.from_pretrained(base)
    assert AutoTokenizer.from_pretrained(model).get_vocab()["<eos>"] == 1
    if case == "bfloat16":
        assert {p.dtype for p in exported.parameters()} == {torch.bfloat16}
        exported.float()
    tolerance = 0.05 if case == "bfloat16" else 1e-4
    for ours, (prompt, response) in zip(learner.logprobs(sequences), sequences, strict=True):
        theirs, before = (
            m(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            for m in (exported, untrained)
        )
        at = torch.arange(len(response)), torch.tensor(response).long()
        assert ours == pytest.approx(theirs[at].tolist(), abs=tolerance)
        assert ours != pytest.approx(before[at].tolist(), abs=2 * tolerance)


# Failures


@pytest.mark.parametrize("file", ["learner/__0_0.distcp", "model/config.json"])
def test_a_full_disk_is_told_and_the_next_save_may_succeed(base, alone, tmp_path, file):
    learner = make_learner(base, "full")
    checkpointer = Checkpointer(learner, 60)
    full = empty(tmp_path / "full") / file
    full.parent.mkdir()
    full.symlink_to("/dev/full")
    checkpointer.begin(tmp_path / "full")
    done, problem = checkpointer.done(60)
    assert done and "No space left on device" in str(problem) and "\n" not in str(problem)
    checkpointer.begin(empty(tmp_path / "c"))
    assert checkpointer.done(60) == (True, None) and flaw(tmp_path / "c") is None


@pytest.fixture(scope="module")
def whole(base, alone, tmp_path_factory) -> Path:
    learner = make_learner(base, "full")
    train(learner, STEPS[:2])
    return save(learner, tmp_path_factory.mktemp("whole") / "step-000002")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda c: (c / "state.json").unlink(), "state.json is missing or damaged"),
        (lambda c: (c / "state.json").write_text('{"steps": 2'), "state.json is missing or damaged"),
        (lambda c: shutil.rmtree(c / "learner"), "learner/.metadata is missing or damaged"),
        (lambda c: cut(c / "learner" / ".metadata"), "learner/.metadata is missing or damaged"),
        (lambda c: (c / "learner" / "__0_0.distcp").unlink(), "learner/__0_0.distcp is missing"),
        (lambda c: cut(c / "learner" / "__0_0.distcp"), "learner/__0_0.distcp has [0-9]+ of [0-9]+ bytes"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_remedy(whole, tmp_path, damage, told):
    directory = RunDirectory.create(tmp_path / "run", config.from_tree({"name": "r"}))
    folder = directory.path / "checkpoints" / "step-000002"
    shutil.copytree(whole, folder)
    assert directory.resume_point() == (2, folder)
    damage(folder)
    with pytest.raises(UserError, match=f"{folder} cannot be resumed from \\({told}\\): delete it to begin again"):
        directory.resume_point()
    shutil.copytree(whole, directory.path / "checkpoints" / "step-000001")
    with pytest.raises(UserError, match="delete it to go on from step 1$"):
        directory.resume_point()
    directory.release()


def test_bytes_that_are_no_tensors_are_refused_when_they_are_read(base, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "c")
    shards = folder / "learner" / "__0_0.distcp"
    shards.write_bytes(bytes(shards.stat().st_size))
    assert flaw(folder) is None
    with pytest.raises(UserError, match=f"checkpoint {folder} cannot be read .*delete it"):
        resumed(base, "full", folder)


def change_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def test_a_shard_of_the_right_size_with_other_content_is_refused_with_the_remedy(base, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "step-000002")
    change_a_byte(folder / "learner" / "__0_0.distcp")
    told = r"checkpoint {} cannot be read \(learner/__0_0.distcp is not what was written\): delete it to {}$"
    with pytest.raises(UserError, match=told.format(folder, "begin again from the first step")):
        resumed(base, "full", folder)
    shutil.copytree(whole, tmp_path / "step-000001")
    with pytest.raises(UserError, match=told.format(folder, "go on from step 1")):
        resumed(base, "full", folder)


def test_a_damaged_list_of_checksums_is_refused(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "step-000002")
    (folder / "checksums.json").write_text('{"learner')
    assert flaw(folder) == "checksums.json is damaged"


def test_every_file_has_a_checksum_and_the_mode_that_the_umask_says(base, alone, tmp_path):
    before = os.umask(0o027)
    try:
        folder = save(make_learner(base, "full"), tmp_path / "c")
    finally:
        os.umask(before)
    files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
    sums = json.loads((folder / "checksums.json").read_text())
    assert sums.keys() == files.keys() - {"state.json", "checksums.json"}
    assert {"learner/__0_0.distcp", "learner/.metadata", "model/model.safetensors"} <= sums.keys()
    assert {name: oct(f.stat().st_mode & 0o777) for name, f in files.items()} == dict.fromkeys(files, "0o640")


def break_weights(learner: Learner) -> None:
    _local(next(iter(learner.trained.values())))[0, :3] = math.nan


def break_optimizer(learner: Learner) -> None:
    _local(learner.optimizer.state[next(iter(learner.trained.values()))]["exp_avg_sq"])[0, 0] = math.inf


def break_average(learner: Learner) -> None:
    _local(next(iter(learner.average.average.values())))[0, 0] = -math.inf


BROKEN = {
    break_weights: "3 numbers of the weights are not finite",
    break_optimizer: "1 numbers of the optimizer's state are not finite",
    break_average: "1 numbers of the moving average are not finite",
}


def _local(p: torch.Tensor) -> torch.Tensor:
    return (p.to_local() if isinstance(p, DTensor) else p).detach()


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_a_state_that_is_not_finite_is_not_saved(base, alone, tmp_path, damage):
    learner = make_learner(base, "moving average")
    train(learner, STEPS[:1])
    checkpointer = Checkpointer(learner, 60)
    damage(learner)
    assert checkpointer.begin(empty(tmp_path / "c")) == BROKEN[damage]
    assert checkpointer.done(0) == (True, None) and os.listdir(tmp_path / "c") == ["state.json"]


def test_a_checkpoint_without_checksums_is_loaded_unless_its_weights_are_not_finite(base, alone, tmp_path, monkeypatch):
    learner = make_learner(base, "full")
    train(learner, STEPS[:2])
    folder = save(learner, tmp_path / "step-000002")
    (folder / "checksums.json").unlink()
    assert train(resumed(base, "full", folder), STEPS[2:]) == train(learner, STEPS[2:])
    break_weights(learner)
    monkeypatch.setattr(Checkpointer, "_not_finite", lambda self: None)  # as it was saved before
    folder = save(learner, tmp_path / "step-000004")
    (folder / "checksums.json").unlink()
    monkeypatch.undo()
    with pytest.raises(UserError, match="step-000004 .*numbers of the weights are not finite.*go on from step 2"):
        resumed(base, "full", folder)


# What the run keeps


class Local:
    """The trainer, with its one rank in this process."""

    def __init__(self, learner: Learner):
        self.checkpointer = Checkpointer(learner, 60)

    def call(self, name: str, timeout_s: float, **arguments: Any) -> Any:
        if name == "begin_checkpoint":
            return self.checkpointer.begin(Path(arguments["folder"]))
        return self.checkpointer.done(arguments["wait_s"])


@pytest.fixture
def kept(base, alone, tmp_path) -> tuple[Learner, Checkpoints, RunDirectory]:
    """A run of which checkpoint 2 is written and nothing older may stay."""
    recipe = config.from_tree({"name": "r", "checkpoint": {"every_steps": 2, "keep_last": 1}})
    learner, directory = make_learner(base, "full"), RunDirectory.create(tmp_path / "run", recipe)
    train(learner, STEPS[:2])
    checkpoints: Any = Checkpoints(recipe, directory, Local(learner), saved=0)
    checkpoints.begin(2, 2, {"loss": 1.0, "grad_norm": 1.0})
    checkpoints.finish(wait=True)
    yield learner, checkpoints, directory
    directory.release()


def numbers(directory: RunDirectory) -> list[int]:
    return [steps for steps, _ in directory.checkpoints()]


def test_weights_that_are_not_finite_end_the_run_and_take_no_checkpoints_place(kept):
    learner, checkpoints, directory = kept
    break_weights(learner)
    told = "checkpoint 4 is not written: 3 numbers of the weights are not finite. Checkpoint 2 is kept, and --resume"
    with pytest.raises(RunFailed, match=told):
        checkpoints.begin(4, 4, {"loss": 1.0})
    assert numbers(directory) == [2] and os.listdir(directory.path / "checkpoints") == ["step-000002"]


@pytest.mark.parametrize("broken", ["loss", "grad_norm"])
def test_the_checkpoint_of_a_step_that_is_not_finite_is_put_off_to_the_next_that_is(kept, broken):
    _, checkpoints, directory = kept
    checkpoints.begin(4, 4, {"loss": 1.0, "grad_norm": 1.0} | {broken: math.nan})
    checkpoints.finish(wait=False)
    assert numbers(directory) == [2] and checkpoints.due(5, 8)
    checkpoints.begin(5, 5, {"loss": 1.0, "grad_norm": 1.0})
    checkpoints.finish(wait=True)
    assert numbers(directory) == [5] and not checkpoints.due(7, 8)


def test_a_run_whose_last_step_is_not_finite_does_not_end_as_if_all_were_well(kept):
    _, checkpoints, directory = kept
    checkpoints.begin(4, 4, {"loss": math.inf, "grad_norm": math.nan})
    told = "checkpoint 4 is not written: not finite in that step are the loss and the gradient's norm. Checkpoint 2 is"
    with pytest.raises(RunFailed, match=told):
        checkpoints.finish(wait=True)
    assert numbers(directory) == [2]


def test_a_part_that_the_driver_does_not_see_is_told_when_the_checkpoint_would_count(kept):
    _, checkpoints, directory = kept
    checkpoints.begin(4, 4, {"loss": 1.0})
    _, folder = checkpoints.writing
    assert checkpoints.trainer.checkpointer.done(60) == (True, None)
    (folder / "learner" / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match="checkpoint 4 .*__0_0.distcp is missing; all nodes must see run_dir"):
        checkpoints.finish(wait=True)
    assert numbers(directory) == [2]


SKIPPED = {"loss": math.nan, "grad_norm": math.nan, "updates": 0.0, "skipped_updates": 1.0, "weights_not_finite": 0.0}
MADE = {"loss": 1.0, "grad_norm": 1.0, "updates": 1.0, "skipped_updates": 0.0}


def test_three_steps_in_a_row_without_an_update_end_the_run(kept):
    _, checkpoints, _ = kept
    for step, metrics in enumerate([SKIPPED, SKIPPED, MADE, SKIPPED, SKIPPED | {"updates": 1.0}, {"lr": 1.0}], start=3):
        checkpoints.require_updates(step, metrics)
    for step in (9, 10):
        checkpoints.require_updates(step, SKIPPED)
    told = "no update could be made in steps 9 to 11: not finite are the loss and the gradient's norm. Checkpoint 2 is"
    with pytest.raises(RunFailed, match=f"{told} kept, and --resume goes on from it.*lower learner.lr"):
        checkpoints.require_updates(11, SKIPPED)


def test_a_weight_that_is_not_finite_ends_the_run_at_once(kept):
    _, checkpoints, _ = kept
    with pytest.raises(RunFailed, match="step 3: .*7 numbers of the weights. Checkpoint 2 is kept"):
        checkpoints.require_updates(3, SKIPPED | {"weights_not_finite": 7.0})


# Several processes


def in_ranks(ranks: int, place: Path, work: Any, *arguments: Any) -> None:
    """`work(*arguments)` in as many processes, which are one group."""
    place.mkdir()
    started = [PROCESSES.Process(target=_rank, args=(r, ranks, place, work, arguments)) for r in range(ranks)]
    for process in started:
        process.start()
    for process in started:
        process.join(100)
    assert [process.exitcode for process in started] == [0] * ranks


def _rank(rank: int, ranks: int, place: Path, work: Any, arguments: tuple) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(place / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    work(*arguments)
    dist.destroy_process_group()


def two_ranks(base: Path, folder: Path) -> None:
    """Each case: train, save while training goes on, resume. Rank 0 writes {case: (curve, resumed curve, weights)}."""
    results = {}
    for case in CASES:
        learner = make_learner(base, case)
        train(learner, STEPS[:2])
        checkpointer = Checkpointer(learner, 60)
        if dist.get_rank() == 0:
            empty(folder / case)
        dist.barrier()
        checkpointer.begin(folder / case)
        whole = train(learner, STEPS[2:])
        assert checkpointer.done(60) == (True, None)
        dist.barrier()
        again = train(resumed(base, case, folder / case), STEPS[2:])
        results[case] = (whole, again, weights(learner))
    random_numbers: list = [None, None]
    dist.all_gather_object(random_numbers, torch.rand(3).tolist())
    assert random_numbers[0] != random_numbers[1]
    one_fails(learner, folder / "full disk")
    if dist.get_rank() == 0:
        torch.save(results, folder / "results.pt")


def one_fails(learner: Learner, folder: Path) -> None:
    """The disk of rank 1 is full: both ranks are told, and the group still works."""
    checkpointer = Checkpointer(learner, 60)
    if dist.get_rank() == 0:
        (empty(folder) / "learner").mkdir()
        (folder / "learner" / "__1_0.distcp").symlink_to("/dev/full")
    dist.barrier()
    checkpointer.begin(folder)
    done, problem = checkpointer.done(60)
    assert done and "rank 1: OSError: [Errno 28] No space left on device" in str(problem), problem
    train(learner, STEPS[:1])


@pytest.fixture(scope="module")
def saved_by_two(base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    in_ranks(2, folder / "ranks", two_ranks, base, folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_resume_exactly(saved_by_two, case):
    whole, again, _ = torch.load(saved_by_two / "results.pt")[case]
    assert len(whole) == 2 and again == whole


@pytest.mark.parametrize("case", [case for case in CASES if "dropout" not in case])
def test_what_two_ranks_saved_one_may_resume(base, alone, saved_by_two, case):
    curve, _, trained = torch.load(saved_by_two / "results.pt")[case]
    learner = resumed(base, case, saved_by_two / case)
    tolerance = 0.05 if case == "bfloat16" else 1e-5
    for ours, theirs in zip(train(learner, STEPS[2:]), curve, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=1e-6)
    if case != "bfloat16":
        for name, weight in weights(learner).items():
            torch.testing.assert_close(weight, trained[name], rtol=0, atol=1e-5)


def test_what_one_rank_saved_two_may_resume(base, whole, tmp_path):
    in_ranks(2, tmp_path / "ranks", _resume_in_two, base, whole, tmp_path / "curve.json")
    never_stopped = resumed(base, "full", whole)
    for ours, theirs in zip(
        json.loads((tmp_path / "curve.json").read_text()), train(never_stopped, STEPS[2:]), strict=True
    ):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def _resume_in_two(base: Path, folder: Path, answer: Path) -> None:
    learner = resumed(base, "full", folder)
    torch_numbers: list = [None, None]
    dist.all_gather_object(torch_numbers, (torch.rand(3).tolist(), random.random()))
    assert torch_numbers[0] != torch_numbers[1]
    curve = train(learner, STEPS[2:])
    if dist.get_rank() == 0:
        answer.write_text(json.dumps(curve))


def _two_find_flaws(base: Path, whole: Path, place: Path) -> None:
    """On each of two ranks: a folder of its own to save in; a byte changed in a shard that rank 1 reads; a NaN."""
    rank = dist.get_rank()
    learner = make_learner(base, "full")
    train(learner, STEPS[:1])
    checkpointer = Checkpointer(learner, 60)
    assert checkpointer.begin(empty(place / f"disk-{rank}")) is None
    done, problem = checkpointer.done(60)
    assert done and "as rank 0 reads it, learner/__1_0.distcp is missing" in problem, problem
    assert "as rank 1 reads it, learner/.metadata is missing" in problem and "all nodes must see run_dir" in problem
    with pytest.raises(UserError, match="__0_0.distcp is not what was written"):
        Checkpointer(learner, 60).load(whole)
    if rank == 1:
        break_weights(learner)
    assert "3 numbers of the weights" in checkpointer.begin(place / "never")
    curve = learner.step([[STEPS[1]]])
    assert (curve["updates"], curve["skipped_updates"], curve["weights_not_finite"]) == (0, 1, 3)


def test_what_one_of_two_ranks_finds_both_are_told(base, whole, tmp_path):
    damaged = shutil.copytree(whole, tmp_path / "step-000002")
    change_a_byte(damaged / "learner" / "__0_0.distcp")  # which is second by name
    in_ranks(2, tmp_path / "ranks", _two_find_flaws, base, damaged, tmp_path)


def train_and_save(base: Path, run: Path) -> None:
    """A run reduced to its checkpoints: goes on from the newest one, for ever."""
    directory = RunDirectory.create(run, config.from_tree({"name": "r"}), resume=run.exists())
    done, folder = directory.resume_point() or (0, None)
    directory.rewind(done)
    learner = resumed(base, "full", folder, 1000) if folder else make_learner(base, "full", 1000)
    checkpointer = Checkpointer(learner, 60)
    while True:
        train(learner, [STEPS[done % len(STEPS)]])
        done += 1
        folder = directory.begin_checkpoint(done, {"metrics": {}})
        checkpointer.begin(folder)
        assert checkpointer.done(60) == (True, None)
        directory.commit_checkpoint(folder)
        directory.keep_checkpoints(last=1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_that_rank_0_has_told_ends_no_rank_that_had_not_heard_of_it_yet(rank, tmp_path):
    """A full disk is waited for, and the checkpoint begun again, as soon as rank 0 says so."""
    failed: Future = Future()
    failed.set_exception(OSError("No space left on device"))
    made: Any = Checkpointer.__new__(Checkpointer)
    made.rank, made.writing, made.learner = rank, [failed], SimpleNamespace(rows_sha256="a" * 64)
    if rank == 0:  # nobody was told
        with pytest.raises(OSError, match="No space"):
            made.begin(tmp_path, "b" * 64)
    else:
        assert "other rows made the weights" in made.begin(tmp_path, "b" * 64)


def test_killed_in_the_middle_of_a_save_the_previous_checkpoint_is_whole(base, alone, tmp_path):
    """Again and again, at other moments of a save; each start goes on from what the one before left."""
    run, reached, left = tmp_path / "run", [0], 0
    for delay_s in (0.0, 0.002, 0.005, 0.01, 0.02, 0.04):
        place = tmp_path / f"ranks-{delay_s}"
        place.mkdir()
        process = PROCESSES.Process(target=_rank, args=(0, 1, place, train_and_save, (base, run)))
        process.start()
        wait_for(lambda: any((run / "checkpoints").glob(f"step-{reached[-1] + 2:06d}")), process)
        wait_for(lambda: any((run / "checkpoints").glob(".step-*.tmp")), process)
        time.sleep(delay_s)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        left += any((run / "checkpoints").glob(".step-*.tmp"))
        steps, folder = RunDirectory.open(run).resume_point()
        assert steps > reached[-1]
        reached.append(steps)
    assert left  # at least one was killed in a save
    never_stopped = make_learner(base, "full", 1000)
    train(never_stopped, [STEPS[step % len(STEPS)] for step in range(steps)])
    expected = weights(never_stopped)
    assert all(torch.equal(weight, expected[n]) for n, weight in weights(resumed(base, "full", folder, 1000)).items())


def wait_for(happened: Any, process: Any) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.exitcode is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.0005)
