"""One rank of the learner: teacher forward, student forward, chunked KL, optimizer step. Torch only, no Ray.

    micro-batch -> teacher hidden states (no gradient) ┐
                -> student hidden states               ┴-> chunked forward KL -> backward -> AdamW

Both models are sharded with FSDP2 (`fully_shard`, a group per layer). The student's parameters are kept in float32,
which makes them their own master weights; computation runs in `learner.dtype`. The root group holds embeddings, final
norm and lm_head and stays gathered through a micro-batch, so that the head is not gathered once a chunk. Every rank
must call every method.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    get_cosine_with_min_lr_schedule_with_warmup,
)

from trd_ray.config import Model, Recipe
from trd_ray.distill.batches import Example, MicroBatch, Side, collate
from trd_ray.distill.head import STATISTICS, forward_kl, token_logprobs
from trd_ray.errors import UserError


class HiddenStates(nn.Module):
    """A causal language model whose forward stops before the vocabulary: everything inside one FSDP root.

    With a teacher's hidden states, the forward goes on to the loss, so that lm_head is used while the root is gathered.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    @property
    def head_VH(self) -> torch.Tensor:
        head: Any = self.model.get_output_embeddings()
        return head.weight

    def forward(self, side: Side, loss: Any = None) -> Any:
        hidden_BTH = self.model.base_model(input_ids=side.input_ids_BT, use_cache=False).last_hidden_state
        hidden_NH = hidden_BTH.flatten(0, 1)[side.predicts_N]
        return hidden_NH if loss is None else loss(hidden_NH, self.head_VH)


def load_model(model: Model, path: str, dtype: torch.dtype) -> Any:
    loaded = AutoModelForCausalLM.from_pretrained(
        path, revision=model.revision, trust_remote_code=model.trust_remote_code, dtype=dtype
    )
    _require_plain_logits(loaded, path)
    return loaded


@torch.no_grad()
def _require_plain_logits(model: PreTrainedModel, path: str) -> None:
    """Code that came with a model may do what no config entry that preflight knows of tells: see what it does."""
    ids_BT = torch.arange(2).unsqueeze(0)
    plain = nn.functional.linear(model.base_model(input_ids=ids_BT).last_hidden_state, HiddenStates(model).head_VH)
    if not torch.allclose(model(input_ids=ids_BT).logits.float(), plain.float(), rtol=1e-3, atol=1e-5):
        raise UserError(
            f"the logits of {path} ({type(model).__name__}) are not the product of its last hidden states and lm_head, "
            "which is all that the chunked KL computes: choose a model without scaling, capping or bias of its logits"
        )


def shard(model: PreTrainedModel, mesh: DeviceMesh, dtype: torch.dtype) -> HiddenStates:
    """FSDP2 over every decoder layer and the root; parameters keep their type, computation runs in `dtype`.

    Decoder layers are what transformers itself keeps on one device when it splits a model.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    wrapped = HiddenStates(model)
    for layer in [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(wrapped, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    # The loss is a sum over the global token count already: gradients are summed over ranks, not averaged.
    for module in wrapped.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
    return wrapped


class Learner:
    def __init__(
        self,
        recipe: Recipe,
        *,
        student_path: str,
        teacher_path: str,
        tokenizer_path: str,
        total_steps: int,
        device: torch.device,
    ):
        """`student_path` is a checkpoint's export on resume; `teacher_path` the weights that teach (OPSD: initial)."""
        r = self.recipe = recipe
        self.device = device
        self.dtype = getattr(torch, r.learner.dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(
            tokenizer_path, revision=r.student.revision, trust_remote_code=r.student.trust_remote_code
        )
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        student = load_model(r.student, student_path, torch.float32).to(device).train()
        if r.learner.activation_checkpointing:
            student.gradient_checkpointing_enable()
        self.student = shard(student, mesh, self.dtype)
        if r.teacher.follow == "live":
            self.teacher = self.student
        else:
            dtype = getattr(torch, r.teacher.dtype or r.learner.dtype)
            teacher = load_model(r.teacher if r.teacher.path else r.student, teacher_path, dtype).to(device).eval()
            self.teacher = shard(teacher.requires_grad_(False), mesh, dtype)
        opt = r.learner
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=opt.lr, betas=opt.betas, weight_decay=opt.weight_decay
        )
        updates = total_steps * opt.updates_per_step
        self.schedule = get_cosine_with_min_lr_schedule_with_warmup(
            self.optimizer, round(opt.warmup_ratio * updates), updates, min_lr_rate=opt.min_lr_ratio
        )

    def step(self, updates: list[list[list[Example]]]) -> dict[str, float]:
        """This rank's share of one step: [update][micro-batch] -> examples. Returns metrics, equal on all ranks."""
        totals = torch.zeros(len(STATISTICS) + 2, dtype=torch.float64)  # sums over tokens, tokens, loss
        kl_rows: list[torch.Tensor] = []
        kl_max, norms, lr = torch.zeros(()), [], self.schedule.get_last_lr()[0]
        for micro in updates:
            tokens = torch.tensor(float(sum(len(e.response_ids) for m in micro for e in m)), device=self.device)
            dist.all_reduce(tokens)
            for examples in micro:
                batch = collate(examples, self.pad_id).to(self.device)
                loss, statistics_SN = self._loss(batch, 1.0 / tokens.clamp(min=1))
                loss.backward()
                totals[: len(STATISTICS)] += statistics_SN.sum(1).double().cpu()
                totals[-2] += statistics_SN.shape[1]
                totals[-1] += loss.item() / len(updates)
                if examples:
                    lengths = [len(e.response_ids) for e in examples]
                    kl_rows += [k.mean() for k in statistics_SN[0].cpu().split(lengths)]
                    kl_max = torch.maximum(kl_max, statistics_SN[0].max().cpu())
            norms.append(self._update())
        for _ in range(self.recipe.learner.updates_per_step - len(updates)):
            self.schedule.step()  # too few rows were left for an update; the schedule counts steps
        return self._reduce(totals, kl_rows, kl_max) | {"grad_norm": sum(norms) / max(1, len(norms)), "lr": lr}

    def _loss(self, batch: MicroBatch, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            teacher_hidden_NG = self.teacher(batch.teacher)
            # The teacher's root stays gathered after its forward, so its head is a plain tensor here.
            teacher_head_VG = self.teacher.head_VH

        def loss(hidden_NH: torch.Tensor, head_VH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if not len(hidden_NH):  # an empty micro-batch keeps this rank in the collectives
                zero = hidden_NH.sum() + 0.0 * head_VH.sum()
                return zero.float(), hidden_NH.new_zeros((len(STATISTICS), 0), dtype=torch.float32)
            return forward_kl(
                hidden_NH,
                head_VH,
                teacher_hidden_NG,
                teacher_head_VG,
                batch.targets_N,
                weight.expand(len(hidden_NH)),
                temperature=self.recipe.learner.temperature,
                chunk_tokens=self.recipe.learner.chunk_tokens,
            )

        return self.student(batch.student, loss)

    def _update(self) -> float:
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.recipe.learner.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _reduce(self, totals: torch.Tensor, kl_rows: list[torch.Tensor], kl_max: torch.Tensor) -> dict[str, float]:
        rows = (
            torch.stack([torch.stack(kl_rows).sum(), torch.tensor(float(len(kl_rows)))]) if kl_rows else torch.zeros(2)
        )
        sums = torch.cat([totals, rows.double()]).to(self.device)
        dist.all_reduce(sums)
        top = kl_max.to(self.device)
        dist.all_reduce(top, op=dist.ReduceOp.MAX)
        tokens = max(1.0, float(sums[len(STATISTICS)]))
        means = {name: float(sums[i]) / tokens for i, name in enumerate(STATISTICS)}
        return {
            "loss": float(sums[len(STATISTICS) + 1]),
            "kl/mean": means["kl"],
            "kl/row_mean": float(sums[-2]) / max(1.0, float(sums[-1])),
            "kl/max": float(top),
            "student/nll": means["student_nll"],
            "teacher/nll": means["teacher_nll"],
            "student/entropy": means["student_entropy"],
            "teacher/entropy": means["teacher_entropy"],
            "trained_tokens": float(sums[len(STATISTICS)]),
        }

    @torch.no_grad()
    def logprobs(self, sequences: list[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Log-probability of each response token after its prompt, under the current student; same input everywhere."""
        answers = []
        for prompt_ids, response_ids in sequences:
            example = Example(0, prompt_ids, prompt_ids, response_ids)
            batch = collate([example], self.pad_id).to(self.device)
            out_N = self.student(
                batch.student,
                lambda hidden_NH, head_VH, targets_N=batch.targets_N: token_logprobs(
                    hidden_NH, head_VH, targets_N, self.recipe.learner.chunk_tokens
                ),
            )
            answers.append(out_N.tolist())
        # Without a backward pass the root would stay gathered in `dtype`, and a sync would send that copy.
        assert isinstance(self.student, FSDPModule)
        self.student.reshard()
        return answers

    # Checkpoints

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Write optimizer shards, schedule, `state` and a Hugging Face export of the student into an empty folder."""
        model_state, optimizer_state = get_state_dict(self.student, self.optimizer)
        dcp_save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=str(folder / "learner"))
        self._forget_empty_update()
        full = {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().to(self.dtype).cpu()
            for name, p in self.student.model.named_parameters()
        }
        if dist.get_rank() == 0:
            self.student.model.save_pretrained(folder / "model", state_dict=full)
            self.tokenizer.save_pretrained(folder / "model")
            (folder / "state.json").write_text(json.dumps(state | {"schedule": self.schedule.state_dict()}))
        dist.barrier()

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint: weights in float32, optimizer and schedule."""
        model_state, optimizer_state = get_state_dict(self.student, self.optimizer)
        state = {"model": model_state, "optimizer": optimizer_state}
        dcp_load(state, checkpoint_id=str(folder / "learner"))
        set_state_dict(
            self.student,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(strict=True),
        )
        self.schedule.load_state_dict(json.loads((folder / "state.json").read_text())["schedule"])
        self._forget_empty_update()

    def _forget_empty_update(self) -> None:
        """Before the first update, get_state_dict makes one without gradients, which AdamW would count as its first."""
        if not self.schedule.last_epoch:
            self.optimizer.state.clear()
