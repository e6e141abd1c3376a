"""One rank of the learner: teacher forward, student forward, divergence in chunks, optimizer step. Torch only, no Ray.

    micro-batch -> teacher hidden states (no gradient) ┐
                -> student hidden states               ┴-> fused divergence -> backward -> AdamW -> moving average

A teacher is one of four, and several may be told apart by name:

- another sharded model: OPD, and OPSD with a frozen teacher and full fine-tuning
- the student with its adapters off: OPSD with a frozen teacher and LoRA
- the student's moving average
- the student itself

With loss.divergence=cross_entropy there is no teacher: none is loaded, none runs, and nothing of one is measured.

An update whose gradient is not finite is skipped: the weights, the optimizer's state and the moving average stay as
they were, the schedule goes on, and `skipped_updates` counts it.

A micro-batch has the rows of one teacher, the same one on every rank (trd_ray.distill.shared_out), so all ranks gather
the same weights in the same order. Of several teachers with weights of their own only one is gathered at a time.

Every rank must call every method.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoTokenizer

from trd_ray import lineage
from trd_ray.config import ONLY, Each, Recipe, of_each
from trd_ray.distill.batches import Example, MicroBatch, collate
from trd_ray.distill.divergences import Divergence
from trd_ray.distill.finite import not_finite
from trd_ray.distill.head import STATISTICS, fused_cross_entropy, fused_divergence, token_logprobs
from trd_ray.distill.learned_metrics import learned_metrics
from trd_ray.distill.loss_tokens import has_loss, token_weights
from trd_ray.distill.model import (
    MovingAverage,
    adapter_tensors,
    adapters_off,
    add_adapters,
    load,
    merged_shapes,
    merged_weights,
    packed_adapter,
    shard,
)
from trd_ray.distill.onset import onset_ids
from trd_ray.distill.schedule import share_of_lr
from trd_ray.token_values import LARGEST, NONE, TokenValues, together

KL = STATISTICS.index("kl")
# The statistics that are kept for each token, in the order of token_values.FIELDS.
KEPT = [STATISTICS.index(name) for name in ("kl", "student_nll", "teacher_nll", "teacher_mass")]


class Learner:
    def __init__(
        self,
        recipe: Recipe,
        *,
        student_path: str,
        teacher_path: Each[str],
        tokenizer_path: str,
        total_steps: int,
        device: torch.device,
    ):
        """`student_path` holds the initial weights, `teacher_path` those that teach (in OPSD the same)."""
        r = recipe
        opt = recipe.learner
        self.recipe = recipe
        self.rows_sha256 = lineage.START  # of the rows that made the weights; who calls `step` keeps it
        self.tokens = NONE  # what the last step found at each token of this rank's examples, if that is kept
        self.device = device
        self.dtype: torch.dtype = getattr(torch, opt.dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(
            tokenizer_path, revision=r.student.revision, trust_remote_code=r.student.trust_remote_code
        )
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        self.onset_ids = torch.tensor(onset_ids(self.tokenizer), dtype=torch.long, device=device)
        self.has_teacher = r.loss.has_teacher
        self.divergence = Divergence.from_config(r.loss) if self.has_teacher else None
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        student = load(r.student, student_path, self.dtype if opt.lora else torch.float32, opt)
        if opt.lora:
            torch.manual_seed(r.seed)  # the same adapters on every rank
            add_adapters(student, opt.lora)
        torch.manual_seed(r.seed + 1 + dist.get_rank())  # dropout differs from rank to rank
        student.train()
        if opt.activation_checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})
        # On a GPU the loss's elementwise part, with a kernel for each operation, would take longer than its products.
        self.compiles_loss = device.type == "cuda" if opt.compile is None else opt.compile
        switches: Any = {"cpu_offload": opt.cpu_offload, "compiled": bool(opt.compile)}
        self.student: Any = shard(student, mesh, self.dtype, **switches)
        self.trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
        self.taught = r.by_teacher
        averaged = [name for name, one in self.taught.items() if one.teacher.follow == "ema"]
        self.averaged = averaged[0] if averaged else None  # the one teacher that may be a moving average
        self.average: MovingAverage | None = None
        if averaged:
            self.average = MovingAverage(self.trained, self.taught[averaged[0]].teacher.ema_decay)
        paths = of_each(teacher_path)
        self.teachers = {name: self._teacher(one, paths[name], mesh, switches) for name, one in self.taught.items()}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=opt.lr, betas=opt.betas, weight_decay=opt.weight_decay
        )
        updates = total_steps * opt.updates_per_step
        warmup = round(opt.warmup_ratio * updates)
        self.schedule = LambdaLR(self.optimizer, lambda update: share_of_lr(update, warmup, updates, opt.min_lr_ratio))

    def _teacher(self, one: Recipe, path: str, mesh: Any, switches: dict[str, Any]) -> Any:
        """The weights of a teacher: the student's, a sharded model, or None where the loss has none of its own.

        `one` is the recipe in which it is the only teacher.
        """
        opt, t = one.learner, one.teacher
        if t.follow != "frozen" or (opt.lora and t.mode == "opsd"):
            return self.student
        if not self.has_teacher:
            return None
        dtype = getattr(torch, t.dtype or opt.dtype)
        teacher = load(t if t.path else one.student, path, dtype, opt)
        return shard(teacher.requires_grad_(False).eval(), mesh, dtype, **switches)

    def step(self, updates: list[list[list[Example]]], teachers: list[list[str]] | None = None) -> dict[str, float]:
        """This rank's share of one step: [update][micro-batch] -> examples. Returns metrics, equal on all ranks.

        `teachers` says whose each micro-batch is, on every rank alike; by default the only one's.
        """
        totals = torch.zeros(len(STATISTICS) + 2, dtype=torch.float64)  # sums over tokens, tokens, loss
        kl_rows: list[torch.Tensor] = []
        kl_max = torch.zeros(())
        norms: list[float] = []
        kl_of_each = {name: torch.zeros(2, dtype=torch.float64) for name in self.teachers}  # sum, tokens
        kept: list[TokenValues] = []
        lr = self.schedule.get_last_lr()[0]
        for micro, whose in zip(updates, teachers or [[ONLY] * len(micro) for micro in updates], strict=True):
            share = self._share_of_each(micro)
            for i, examples in enumerate(micro):
                # Embeddings and lm_head stay gathered from the first micro-batch to the update, except where a moving
                # average takes their place in between.
                self.student.set_reshard_after_backward(i == len(micro) - 1, recurse=False)
                batch = collate(examples, self.pad_id, packed=self.recipe.learner.packing).to(self.device)
                loss, statistics_SN = self._loss(batch, share(examples), whose[i])
                loss.backward()
                if whose[i] not in whose[i + 1 :]:
                    self._give_room(whose[i])
                scored_SN = statistics_SN.cpu()
                statistics_SN = scored_SN[:, has_loss(examples)]
                kl_of_each[whose[i]] += torch.tensor([float(statistics_SN[KL].double().sum()), statistics_SN.shape[1]])
                totals[: len(STATISTICS)] += statistics_SN.sum(1).double()
                totals[-2] += statistics_SN.shape[1]
                totals[-1] += loss.item() / len(updates)
                if examples:
                    lengths = [e.loss_tokens for e in examples]
                    kl_rows += [kl.mean() for kl in statistics_SN[KL].split(lengths)]
                    kl_max = torch.maximum(kl_max, statistics_SN[KL].max())
                if self.recipe.diagnostics.tokens and self.has_teacher:
                    kept.append(_token_values(examples, scored_SN))
            norms.append(self._update())
        for _ in range(self.recipe.learner.updates_per_step - len(updates)):
            self.schedule.step()  # too few rows were left for an update; the schedule counts steps
        self.tokens = together(kept)
        skipped = sum(not math.isfinite(norm) for norm in norms)
        metrics = self._reduce(totals, kl_rows, kl_max) | {"grad_norm": sum(norms) / max(1, len(norms)), "lr": lr}
        metrics |= {"updates": float(len(norms) - skipped), "skipped_updates": float(skipped)}
        metrics |= self._of_each_teacher(kl_of_each)
        if skipped:
            metrics["weights_not_finite"] = self._weights_not_finite()
        return metrics

    def _share_of_each(self, micro: list[list[Example]]) -> Any:
        """A function that weighs a micro-batch's tokens: summed over all ranks, their loss is the update's mean."""
        examples = [e for m in micro for e in m]
        counts = torch.tensor([sum(e.loss_tokens for e in examples), len(examples)], device=self.device)
        dist.all_reduce(counts)
        tokens, trajectories = counts.clamp(min=1).tolist()
        mean = self.recipe.loss.mean
        return lambda micro_batch: token_weights(micro_batch, mean, tokens, trajectories).to(self.device)

    def _loss(self, batch: MicroBatch, weight_N: torch.Tensor, whose: str) -> tuple[torch.Tensor, torch.Tensor]:
        divergence = self.divergence
        if divergence is None:
            return self.student(batch.student, lambda *of_student: self._cross_entropy(batch, weight_N, *of_student))
        with torch.no_grad(), self.teaching(whose) as teacher:
            teacher_hidden_NG = teacher(batch.teacher)
            # The teacher's root stays gathered after its forward, so its head is a plain tensor here.
            teacher_head_VG = teacher.head_VH
            if whose == self.averaged:  # the average leaves the student's place after this block
                teacher_head_VG = teacher_head_VG.clone()

        def loss(hidden_NH: torch.Tensor, head_VH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return fused_divergence(
                hidden_NH,
                # A parameter requires a gradient also where none is wanted, and the head's would be made.
                head_VH if torch.is_grad_enabled() else head_VH.detach(),
                teacher_hidden_NG,
                teacher_head_VG,
                batch.targets_N,
                weight_N,
                divergence=divergence,
                student_logits=self.student.logits,
                teacher_logits=teacher.logits,
                watch_ids=self.onset_ids,
                # One head may be padded further than the other. Preflight has seen that both hold every token.
                vocabulary=min(len(head_VH), len(teacher_head_VG)),
                chunk_tokens=self.recipe.learner.chunk_tokens,
                compile=self.compiles_loss,
            )

        return self.student(batch.student, loss)

    def _cross_entropy(
        self, batch: MicroBatch, weight_N: torch.Tensor, hidden_NH: torch.Tensor, head_VH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return fused_cross_entropy(
            hidden_NH,
            head_VH,
            batch.targets_N,
            weight_N,
            student_logits=self.student.logits,
            chunk_tokens=self.recipe.learner.chunk_tokens,
            compile=self.compiles_loss,
        )

    @contextlib.contextmanager
    def teaching(self, whose: str = ONLY) -> Iterator[Any]:
        """Within the block, the model that it gives has the weights of this teacher, and no dropout."""
        teacher = self.teachers[whose]
        with contextlib.ExitStack() as after:
            if teacher is self.student:
                after.callback(self.student.train, self.student.training)
                self.student.eval()
            after.enter_context(self._weights_that_teach(whose))
            yield teacher

    @contextlib.contextmanager
    def _weights_that_teach(self, whose: str) -> Iterator[None]:
        if self.average and whose == self.averaged:
            with self.average.in_place(self.student):
                yield
        elif self.teachers[whose] is self.student and self.taught[whose].teacher.follow == "frozen":
            with adapters_off(self.student):
                yield
        else:
            yield

    def _give_room(self, whose: str) -> None:
        """Free what a teacher has gathered, before the next one of several gathers its own."""
        teacher = self.teachers[whose]
        if teacher is not None and teacher is not self.student and len(self.teachers) > 1:
            teacher.reshard()

    def _of_each_teacher(self, kl_of_each: dict[str, torch.Tensor]) -> dict[str, float]:
        """The mean divergence from each of several teachers, over the tokens that it taught in this step."""
        if not (self.recipe.teachers and self.has_teacher):
            return {}
        sums = torch.stack(list(kl_of_each.values())).to(self.device)
        dist.all_reduce(sums)
        taught = {name: (float(kl), float(tokens)) for name, (kl, tokens) in zip(kl_of_each, sums, strict=True)}
        return {f"teachers/{name}/kl": kl / tokens for name, (kl, tokens) in taught.items() if tokens}

    def _update(self) -> float:
        """Make the update, or skip it on all ranks where the gradient is not finite. Returns the norm over ranks."""
        total = nn.utils.clip_grad_norm_(self.trained.values(), self.recipe.learner.grad_clip)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if math.isfinite(norm):
            self.optimizer.step()
            if self.average:
                self.average.update()
        self.schedule.step()
        self.optimizer.zero_grad()
        return norm

    def _weights_not_finite(self) -> float:
        count = torch.tensor(float(not_finite(self.trained.values())), device=self.device)
        dist.all_reduce(count)
        return float(count)

    def _reduce(self, totals: torch.Tensor, kl_rows: list[torch.Tensor], kl_max: torch.Tensor) -> dict[str, float]:
        rows = (
            torch.stack([torch.stack(kl_rows).sum(), torch.tensor(float(len(kl_rows)))]) if kl_rows else torch.zeros(2)
        )
        sums = torch.cat([totals, rows.double()]).to(self.device)
        dist.all_reduce(sums)
        top = kl_max.to(self.device)
        dist.all_reduce(top, op=dist.ReduceOp.MAX)
        n = len(STATISTICS)
        totals_of: dict[str, float] = dict(zip(STATISTICS, sums[:n].tolist(), strict=True))
        return learned_metrics(
            totals_of,
            tokens=float(sums[n]),
            loss=float(sums[n + 1]),
            row_kl=float(sums[-2]) / max(1.0, float(sums[-1])),
            kl_max=float(top),
            has_teacher=self.has_teacher,
        )

    @torch.no_grad()
    def score(self, batches: list[list[Example]], teachers: list[str] | None = None) -> TokenValues:
        """What student and teacher find at each token of this rank's examples, without dropout and without a trace.

        Nothing that an update needs or makes is touched. [micro-batch] -> examples, as many on every rank; `teachers`
        says whose each micro-batch is, as for `step`.
        """
        found = []
        teachers = teachers or [ONLY] * len(batches)
        self.student.eval()
        for i, (examples, whose) in enumerate(zip(batches, teachers, strict=True)):
            batch = collate(examples, self.pad_id, packed=self.recipe.learner.packing).to(self.device)
            _, statistics_SN = self._loss(batch, torch.zeros(len(batch.targets_N), device=self.device), whose)
            if whose not in teachers[i + 1 :]:
                self._give_room(whose)
            found.append(_token_values(examples, statistics_SN.cpu()))
        self.student.train()
        self.student.reshard()  # as after `logprobs`
        return together(found)

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[tuple[ArrayLike, ArrayLike]]) -> list[list[float]]:
        """Log-probability of each response token after its prompt, under the current student; the same on every rank.

        Every rank must be given the same sequences. Each scores its share of them.
        """
        ranks, rank = dist.get_world_size(), dist.get_rank()
        # The ranks meet in each forward, so those of one round should be equally long.
        longest_first = sorted(range(len(sequences)), key=lambda i: -sum(map(np.size, sequences[i])))
        mine: list[tuple[int, list[float]]] = []
        self.student.eval()
        for begin in range(0, len(sequences), ranks):
            number = next(iter(longest_first[begin + rank : begin + rank + 1]), None)
            # A rank that has nothing left to score still joins the others in gathering the weights.
            examples = [] if number is None else [Example(0, sequences[number][0], *sequences[number])]
            batch = collate(examples, self.pad_id, packed=self.recipe.learner.packing).to(self.device)
            out_N = self.student(
                batch.student,
                lambda hidden_NH, head_VH, targets_N=batch.targets_N: token_logprobs(
                    hidden_NH, head_VH, targets_N, self.recipe.learner.chunk_tokens, logits=self.student.logits
                ),
            )
            if number is not None:
                mine.append((number, out_N.tolist()))
        self.student.train()
        # Without a backward pass the root would stay gathered in `dtype`, and that copy would be read as the weights.
        self.student.reshard()
        everywhere: list[Any] = [None] * ranks
        dist.all_gather_object(everywhere, mine)
        return [answer for _, answer in sorted(one for share in everywhere for one in share)]

    # What engines and exports get

    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of `weights`, in their order."""
        return merged_shapes(self.student.model)

    def weights(self, who: str, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Full tensors of the "student" or, if it moves, of the "teacher", with adapters merged in. Collective.

        On a single rank they may be the parameters themselves, so a tensor is valid only until the next is asked for.
        """
        moves = next(iter(self.teachers)) if self.averaged is None else self.averaged
        with self.teaching(moves) if who == "teacher" else contextlib.nullcontext():
            yield from merged_weights(self.student.model, dtype, self.device)

    def adapter_files(self) -> dict[str, bytes]:
        """The files of a PEFT folder with the student's adapters. Collective."""
        return self.packed_adapter({name: tensor.cpu().contiguous() for name, tensor in self.adapter_tensors()})

    def adapter_tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """The student's adapters, in float32 or in `dtype`. Collective."""
        return adapter_tensors(self.student.model, self.device, dtype)

    def packed_adapter(self, tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
        """The files of a PEFT folder with these adapters."""
        return packed_adapter(self.student.model, self.recipe.student.path, tensors)


def _token_values(examples: list[Example], statistics_SN: torch.Tensor) -> TokenValues:
    return TokenValues(
        np.array([e.row for e in examples], np.int64),
        np.array([len(e.response_ids) for e in examples], np.int64),
        statistics_SN[KEPT].clamp(-LARGEST, LARGEST).half().numpy(),
    )
