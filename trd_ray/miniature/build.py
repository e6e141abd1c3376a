"""Makes the student and the teacher of a miniature world on the CPU, from a seed, as Hugging Face folders.

    World (plan, texts, tokens) -> train -> <folder>/{student,teacher}/  Qwen3 in float16, tokenizer, chat template
                                            <folder>/build.json          the plan and the scores

The folder is written next to its final place and renamed when whole, so an interrupted build leaves nothing under its
name. The student ties its embeddings and the teacher does not, so that both kinds are exercised.

    trd miniature build [--world arithmetic|code] [--out DIR] [--seed N] [--force]
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from trd_ray import cache
from trd_ray.errors import UserError
from trd_ray.miniature import pretrain, tokenizer
from trd_ray.miniature.code_world import code_pretrain as code
from trd_ray.miniature.measure import prompt_text, scores
from trd_ray.miniature.world import NAMES, Lesson, Name, Spec, World

IGNORED = -100  # the label of a token that is not trained on
# Fixed, because the order of float sums depends on it. The matrices are too small to gain much from more.
THREADS = 1

WORLDS = {world.name: world for world in (pretrain.WORLD, code.WORLD)}


def world_of(name: str, table: int = 0) -> World:
    """A world by its name, with one of its secret tables."""
    if not table:
        return WORLDS[name]
    return {"arithmetic": pretrain.with_table, "code": code.with_table}[name](table)


def cache_folder(world: World) -> Path:
    return cache.root() / "miniature" / world.digest


def build(out: Path, world: World, console: Console, force: bool = False) -> dict:
    """Makes both models in folder `out` and returns what build.json holds.

    A folder that this plan already made is kept. Raises UserError if `out` holds anything else, unless `force` replaces
    it.
    """
    if out.exists() and not force:
        done = out / "build.json"
        if done.is_file() and (record := json.loads(done.read_text()))["digest"] == world.digest:
            return record
        raise UserError(f"{out} exists and was not built by this plan: give another --out, or replace it with --force")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as building:
        record = _make(Path(building) / out.name, world, console)
        if out.exists():
            out.rename(Path(building) / "replaced")
        (Path(building) / out.name).rename(out)
    return record


def build_one(out: Path, world: World, name: Name, console: Console) -> Path:
    """Makes one model of a world as the folder `out`, unless it is there, and returns that."""
    if not out.is_dir():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as building, _threads(THREADS):
            torch.manual_seed(world.plan.seed)
            _save(_trained(world, name, console), world.words(), Path(building) / out.name)
            (Path(building) / out.name).rename(out)
    return out


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make(folder: Path, world: World, console: Console) -> dict:
    plan = world.plan
    with _threads(THREADS):
        for name in NAMES:
            torch.manual_seed(plan.seed)
            _save(_trained(world, name, console), world.words(), folder / name)
        # The models are scored as they are stored, rounded to float16.
        student, teacher = (Qwen3ForCausalLM.from_pretrained(folder / name) for name in NAMES)
        scored = scores(world, student, teacher, plan.score_chains, plan.seed)
    record = {"digest": world.digest, "plan": asdict(plan), "scores": scored}
    (folder / "build.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _trained(world: World, name: Name, console: Console) -> Qwen3ForCausalLM:
    spec: Spec = getattr(world.plan, name)
    words = world.words()
    batches = world.batches(name)
    model = Qwen3ForCausalLM(_config(spec, words))
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers." in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "layers." not in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=spec.muon_lr, weight_decay=0.0, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=spec.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _lr_factor(spec, step)) for o in optimizers]
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
    )
    model.train()
    with bar:
        shown = bar.add_task(f"miniature {world.name} {name}", total=spec.steps, loss="")
        for _ in range(spec.steps):
            loss = _backward(model, words, next(batches))
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec.grad_clip)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            bar.update(shown, advance=1, loss=f"loss {loss:.3f}")
    return model


def _lr_factor(spec: Spec, step: int) -> float:
    """The learning rate as a share of its peak: linear warm-up, then linear decay."""
    left = (spec.steps - step) / spec.steps
    return min((step + 1) / spec.warmup_steps, 1.0) * max(left, spec.min_lr_ratio)


def _backward(model: Qwen3ForCausalLM, words: PreTrainedTokenizerFast, batch: list[list[Lesson]]) -> float:
    """Accumulates the gradient of the mean loss over the batch's answer tokens, and returns that loss."""
    parts = [_tensors(words, examples) for examples in batch]
    total = sum(int((labels_BT != IGNORED).sum()) for _, labels_BT in parts)
    loss_sum = 0.0
    for ids_BT, labels_BT in parts:
        # Padding stands on the right, where a causal model's answers cannot see it: no attention mask is needed.
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(
            logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        (loss / total).backward()
        loss_sum += loss.item()
    return loss_sum / total


def _tensors(words: PreTrainedTokenizerFast, examples: list[Lesson]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels [B, T]: the view's prompt, the answer, the end token. Only the last two are trained on."""
    prompts = words([prompt_text(words, e.view, e.values) for e in examples], add_special_tokens=False)["input_ids"]
    answers = words([e.answer + tokenizer.END for e in examples], add_special_tokens=False)["input_ids"]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids_BT = torch.full((len(examples), longest), words.get_vocab()[tokenizer.PAD])
    labels_BT = torch.full((len(examples), longest), IGNORED)
    for b, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids_BT[b, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels_BT[b, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids_BT, labels_BT


def _config(spec: Spec, words: PreTrainedTokenizerFast) -> Qwen3Config:
    vocabulary = words.get_vocab()
    return Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=spec.width,
        intermediate_size=spec.feed_forward,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        head_dim=spec.width // spec.heads,
        max_position_embeddings=words.model_max_length,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=spec.tied,
        eos_token_id=vocabulary[tokenizer.END],
        pad_token_id=vocabulary[tokenizer.PAD],
        bos_token_id=None,
        dtype="float32",
    )


def _save(model: Qwen3ForCausalLM, words: PreTrainedTokenizerFast, folder: Path) -> None:
    vocabulary = words.get_vocab()
    model.generation_config = GenerationConfig(
        eos_token_id=vocabulary[tokenizer.END],
        pad_token_id=vocabulary[tokenizer.PAD],
        do_sample=True,
        temperature=1.0,
    )
    model.half().save_pretrained(folder)
    words.save_pretrained(folder)
    # The weights are stored in half the bytes and computed in full: dtype "auto" loads them as float32.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")


def main(argv: list[str]) -> int:
    """`trd miniature ...`. Returns the exit code. Raises UserError, which the command line prints."""
    parser = argparse.ArgumentParser(prog="trd miniature", description="Make a miniature world's student and teacher.")
    parser.add_argument("command", choices=["build"])
    parser.add_argument("--world", choices=WORLDS, default="arithmetic")
    parser.add_argument("--out", type=Path, help="folder to write; default: the cache, named by a hash of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace what stands in the folder")
    options = parser.parse_args(argv)
    transformers.utils.logging.disable_progress_bar()  # writing and reading a megabyte needs none
    console = Console()
    world = WORLDS[options.world]
    world = replace(world, plan=replace(world.plan, seed=options.seed))
    out = options.out or cache_folder(world)
    record = build(out, world, console, options.force)
    for name, score in record["scores"].items():
        console.print(
            f"{name}: solves {score['solves']:.3f} in {score['solution_tokens']} tokens, "
            f"rewrites the student's attempts to {score['rewrites']:.3f} in {score['rewrite_tokens']} tokens",
            soft_wrap=True,
        )
    console.print(f"the models are in {out}", soft_wrap=True)
    return 0
