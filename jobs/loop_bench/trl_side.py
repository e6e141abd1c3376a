"""`python -m loop_bench.trl_side ASKED.json`: TRL's DistillationTrainer on our recipe, in a process of its own.

    ASKED.json: recipe, folder, every, vllm  ->  trainer.train()  ->  folder/checkpoint-*, folder/measured.json

DistillationTrainer is TRL's on-policy distillation: the student samples each batch, the teacher scores it, and the loss
is the generalised JSD over the whole vocabulary. Its experimental GKDTrainer with lmbda = 1 is the same algorithm in a
slower trainer, and says so itself. With `vllm` it samples in an engine in its own process (vllm_mode colocate), else
with transformers.

Seconds of a step are between TRL's own callbacks, so checkpoints and the data loader are not in them.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from loop_bench.parity import prompts, trl_arguments
from trd_ray.config import Recipe, load
from trd_ray.files import write_atomically


def lora(recipe: Recipe) -> Any:
    """The adapters of the recipe, as the learner makes them; None where all weights train."""
    if (asked := recipe.learner.lora) is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=asked.rank,
        lora_alpha=asked.alpha,  # type: ignore[arg-type]
        lora_dropout=asked.dropout,
        target_modules=asked.targets or "all-linear",
        task_type="CAUSAL_LM",
    )


def main(place: Path) -> None:
    asked = json.loads(place.read_text())
    recipe, folder = load(asked["recipe"]), Path(asked["folder"])
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    from trd_ray import models

    class Counting(DistillationTrainer):
        tokens = samples = 0

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            completions = super()._generate_single_turn(*args, **kwargs)
            self.tokens += sum(map(len, completions))
            self.samples += len(completions)
            return completions

    class Clock(TrainerCallback):
        began, seconds = 0.0, []  # noqa: RUF012 (one trainer a process)
        first = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.first = self.first or time.time()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.began)

    student = models.resolve(recipe.student.path)
    clock = Clock()
    trainer = Counting(
        model=student,
        teacher_model=models.resolve(str(recipe.teacher.path)),
        processing_class=AutoTokenizer.from_pretrained(student, padding_side="left"),
        args=DistillationConfig(**trl_arguments(recipe, folder, asked["every"], asked["vllm"])),
        train_dataset=Dataset.from_dict({"prompt": prompts(recipe)}),
        callbacks=[clock],
        peft_config=lora(recipe),
    )
    trainer.train()
    updates = recipe.learner.updates_per_step
    steps = [sum(clock.seconds[i : i + updates]) for i in range(0, len(clock.seconds), updates)]
    found = {"first": clock.first, "steps_s": steps, "tokens": trainer.tokens, "samples": trainer.samples}
    write_atomically(folder / "measured.json", json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
