"""The learner's state on disk, and back. Torch only, no Ray.

    Checkpointer(learner).begin(folder) -> copies in host memory -> threads -> folder/learner/  shards of all ranks
                         .done(wait_s)                                      -> folder/model/    Hugging Face export
                                                       read back, compared  -> folder/checksums.json

What is in a checkpoint: the trained weights (with LoRA only the adapters), the optimizer, the place in the schedule,
the moving average, the random states, and which rows made the weights (trd_ray.lineage). The frozen weights are read
from the base again.

- The learner waits for the copying only. The threads write while it trains, over a process group of their own.
- What a rank wrote, the next rank reads back before the save is done. So a disk that lost it, or a folder that not all
  nodes share, is noticed while older checkpoints are still there.
- A state with a number that is not finite is neither saved nor loaded.
- The caller makes the folder, and gives it its name once every rank is done. A checkpoint that a crash left half
  written therefore never has its name.
- Every rank must call every method.
- At exit, a thread that is still writing is waited for.
"""

import copy
import json
import os
import pickle
import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import async_save

from trd_ray.distill import checksums
from trd_ray.distill.finite import not_finite
from trd_ray.errors import UserError

if TYPE_CHECKING:  # `flaw` is called before anything starts, and must not wait for these libraries
    from transformers import PreTrainedModel

    from trd_ray.distill.learner import Learner

STATE, SHARDS, EXPORT = "state.json", "learner", "model"  # in a checkpoint's folder
ROWS = "rows_sha256"  # in state.json and among the shards: see trd_ray.lineage


class Checkpointer:
    def __init__(self, learner: "Learner", timeout_s: float):
        """`timeout_s` is how long the ranks wait for each other in the background."""
        self.learner = learner
        self.rank = dist.get_rank()
        # The default group is busy with the steps meanwhile, and NCCL takes no CPU tensors.
        self.group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.shell = _shell(learner.student.model, learner.dtype)
        self.exporting = ThreadPoolExecutor(1, thread_name_prefix="export")
        self.reading = ThreadPoolExecutor(1, thread_name_prefix="read-back")
        mask = os.umask(0o077)  # the umask can only be read by setting it
        os.umask(mask)
        self.mode = 0o666 & ~mask
        self.writing: list[Future] = []

    def begin(self, folder: Path, rows_sha256: str | None = None) -> str | None:
        """Copy the state as it is now, and begin to write it into an empty folder. `done` tells when it is there.

        Returns what of the state is wrong, and then writes nothing; None if nothing is: every number is finite, and the
        rows that made the weights are those of the ledger, `rows_sha256`. Only one save is written at a time: an
        earlier one is waited for, and its failure is raised here if `done` has not told it.
        """
        try:
            self._outcome()
        except (Exception, CheckpointException):
            # It fails on every rank. Rank 0 may have told it a moment before this one could.
            if self.rank == 0:
                raise
        made_by = self.learner.rows_sha256
        if rows_sha256 not in (None, made_by):
            return f"other rows made the weights ({made_by[:12]}) than rows/ holds ({rows_sha256[:12]})"
        if broken := self._not_finite():
            return broken
        export = self._gather()
        state = _tensors(self.learner) | {
            "updates": self.learner.schedule.last_epoch,
            "random": {str(self.rank): pickle.dumps(_random_state())},
            ROWS: self.learner.rows_sha256,
        }
        saving: Any = async_save(state, checkpoint_id=folder / SHARDS, process_group=self.group)
        self.writing = [saving]
        if self.rank == 0:
            self.writing.append(self.exporting.submit(self._export, export, folder / EXPORT))
        self.writing.append(self.reading.submit(self._read_back, folder, list(self.writing)))
        return None

    def done(self, wait_s: float) -> tuple[bool, str | None]:
        """(whether the writing has ended, what went wrong if something did), after `wait_s` at most."""
        _, unfinished = wait(self.writing, wait_s)
        if unfinished:
            return False, None
        try:
            self._outcome()
        except (Exception, CheckpointException) as e:  # the latter is a BaseException
            return True, reason(e)
        return True, None

    def _outcome(self) -> None:
        writing, self.writing = self.writing, []
        wait(writing)  # all must have ended, since they share the group
        for future in writing:
            future.result()

    def _gather(self) -> dict[str, Any]:
        """The content of the export, on rank 0: files of adapters as bytes, or whole tensors of the student."""
        if self.learner.recipe.checkpoint.export == "adapter":
            return self.learner.adapter_files()
        # In a group of one rank the tensors are the parameters themselves, so they are copied in any case.
        whole = self.learner.weights("student", self.learner.dtype)
        return {name: p.to("cpu", copy=True) for name, p in whole if self.rank == 0}

    def _export(self, export: dict[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self.learner.recipe.checkpoint.export == "adapter":
            for name, content in export.items():
                (folder / name).write_bytes(content)
        else:
            self.shell.save_pretrained(folder, state_dict=export)
        self.learner.tokenizer.save_pretrained(folder)
        for file in folder.iterdir():
            file.chmod(self.mode)  # safetensors writes files that only their owner can read
            with open(file, "rb") as written:
                os.fsync(written.fileno())

    def _read_back(self, folder: Path, writing: list[Future]) -> None:
        """Compare what is on the disk with what was written. Fails on every rank if it fails on one."""

        def written() -> dict[str, str]:
            for future in writing:
                future.result()
            mine = [*(folder / SHARDS).glob(f"__{self.rank}_*")]
            if self.rank == 0:
                mine += [folder / SHARDS / ".metadata", *(folder / EXPORT).iterdir()]
            return checksums.of(folder, mine)

        sums = self._shared(written)
        next_rank = (self.rank + 1) % len(sums)
        flaws = self._shared(lambda: checksums.flaw(folder, sums[next_rank], from_disk=True))
        if found := [f"as rank {rank} reads it, {flaw}" for rank, flaw in enumerate(flaws) if flaw]:
            raise OSError("; ".join([*found, "all nodes must see run_dir on the same storage"]))
        if self.rank == 0:
            checksums.write(folder, {name: digest for each in sums for name, digest in each.items()})

    def _shared(self, call: Callable[[], Any]) -> list[Any]:
        """What `call` returns on each rank. Collective. Raises OSError on every rank if it fails on one."""
        try:
            mine: tuple[Any, str | None] = (call(), None)
        except (Exception, CheckpointException) as e:
            mine = (None, reason(e))
        everywhere: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everywhere, mine, group=self.group)
        if failed := [f"rank {rank}: {problem}" for rank, (_, problem) in enumerate(everywhere) if problem]:
            raise OSError("; ".join(failed))
        return [value for value, _ in everywhere]

    def _not_finite(self) -> str | None:
        """What of the state is not finite, the same answer on every rank. Collective."""
        state = _tensors(self.learner)
        kinds = {
            "weights": state["model"].values(),
            "optimizer's state": [v for each in state.get("optimizer", {}).values() for v in each.values()],
            "moving average": state.get("average", {}).values(),
        }
        counts = torch.tensor([not_finite(tensors) for tensors in kinds.values()])
        dist.all_reduce(counts, group=self.group)
        found = [f"{n} numbers of the {kind}" for kind, n in zip(kinds, counts.tolist(), strict=True) if n]
        return f"{' and '.join(found)} are not finite" if found else None

    def _require_what_was_written(self, folder: Path) -> None:
        """Refuse files that changed since. The ranks share the reading. A checkpoint without checksums is accepted."""

        def flaw_of_mine() -> str | None:
            sums = checksums.read(folder) or {}
            names = sorted(name for name in sums if name.startswith(f"{SHARDS}/"))
            return checksums.flaw(folder, {name: sums[name] for name in names[self.rank :: ranks]})

        ranks = dist.get_world_size()
        if found := [flaw for flaw in self._shared(flaw_of_mine) if flaw]:
            raise _unusable(folder, "; ".join(found))

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint that any number of ranks wrote.

        Raises UserError where its files cannot be read, are not what was written, or hold a number that is not finite.
        """
        learner = self.learner
        ranks = dist.get_world_size()
        self._require_what_was_written(folder)
        saved = FileSystemReader(folder / SHARDS).read_metadata().state_dict_metadata
        if any(name.startswith("optimizer.") for name in saved):
            get_optimizer_state_dict(learner.student, learner.optimizer)  # makes the tensors to load into
        state: dict[str, Any] = _tensors(learner) | {"updates": 0}
        same_ranks = sum(name.startswith("random.") for name in saved) == ranks
        if same_ranks:
            state["random"] = {str(self.rank): b""}
        if ROWS in saved:  # the checkpoints of earlier versions do not have it
            state[ROWS] = ""
        try:
            load_shards(state, checkpoint_id=folder / SHARDS, process_group=self.group)
        except CheckpointException as e:
            raise _unusable(folder, reason(e)) from None
        if broken := self._not_finite():
            raise _unusable(folder, broken)
        learner.rows_sha256 = state.get(ROWS, learner.rows_sha256)
        for _ in range(state["updates"]):
            learner.schedule.step()
        if same_ranks:
            _set_random_state(pickle.loads(state["random"][str(self.rank)]))
        else:  # no saved state is this rank's own; a seed for each rank makes the run at least reproducible
            steps = json.loads((folder / STATE).read_text())["steps"]
            seed = random.Random(f"{learner.recipe.seed} {steps} {self.rank}").getrandbits(63)
            torch.manual_seed(seed)
            random.seed(seed)


def flaw(folder: Path) -> str | None:
    """What is missing from a checkpoint, found without reading its tensors. None if a run can resume from it."""
    try:
        int(json.loads((folder / STATE).read_text())["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{STATE} is missing or damaged"
    try:
        stored = FileSystemReader(folder / SHARDS).read_metadata().storage_data
    except Exception:  # whatever a damaged pickle raises
        return f"{SHARDS}/.metadata is missing or damaged"
    sizes: dict[str, int] = {}
    for part in stored.values():
        sizes[part.relative_path] = max(sizes.get(part.relative_path, 0), part.offset + part.length)
    for name, size in sorted(sizes.items()):
        file = folder / SHARDS / name
        if not file.is_file():
            return f"{SHARDS}/{name} is missing"
        if file.stat().st_size < size:
            return f"{SHARDS}/{name} has {file.stat().st_size} of {size} bytes"
    try:
        checksums.read(folder)
    except (OSError, ValueError):
        return f"{checksums.FILE} is damaged"
    return None


def without(folder: Path) -> str:
    """What --resume does once this checkpoint, the newest, is deleted."""
    others = [int(p.name.removeprefix("step-")) for p in folder.parent.glob("step-*") if p != folder]
    return f"go on from step {max(others)}" if others else "begin again from the first step"


def _unusable(folder: Path, problem: str) -> UserError:
    return UserError(f"checkpoint {folder} cannot be read ({problem}): delete it to {without(folder)}")


def reason(e: BaseException) -> str:
    """A failure in one line, with the ranks on which it happened."""
    if isinstance(e, CheckpointException):
        return "; ".join(f"rank {rank}: {reason(cause)}" for rank, (cause, _) in sorted(e.failures.items()))
    return " ".join(f"{type(e).__name__}: {e}".split())[:300]


def _tensors(learner: "Learner") -> dict[str, Any]:
    """The learner's own tensors by name. Saving reads them, and loading writes them in place."""
    tensors: dict[str, Any] = {"model": {name: p.detach() for name, p in learner.trained.items()}}
    if learner.optimizer.state:  # it is empty before the first update
        tensors["optimizer"] = {name: dict(learner.optimizer.state[p]) for name, p in learner.trained.items()}
    if learner.average:
        tensors["average"] = learner.average.average
    return tensors


def _shell(model: "PreTrainedModel", dtype: torch.dtype) -> Any:
    """The same model without weights, adapters or shards. It writes an export while the real one trains."""
    with torch.device("meta"):
        shell: Any = type(model)._from_config(copy.deepcopy(model.config), dtype=dtype, attn_implementation="eager")
    shell.generation_config = copy.deepcopy(model.generation_config)
    # These say how names and shapes differ from the files that the model was loaded from.
    shell._weight_conversions = getattr(model, "_weight_conversions", None)
    return shell


def _random_state() -> dict[str, Any]:
    state = {"torch": torch.get_rng_state(), "python": random.getstate()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
