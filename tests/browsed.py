"""A run whose samples are looked at: rows of every kind, hostile ones too, with numbers for their tokens."""

from pathlib import Path
from typing import Any

import numpy as np

from trd_ray import config
from trd_ray.record.directory import RunDirectory
from trd_ray.rows import to_table
from trd_ray.score.stats import Answer, score

HOSTILE = (
    '</script><script>hacked = 1</script> &lt;b&gt; <img src=x onerror="hacked = 2">\n\u202eevil\u202c \x1b[2J\0\0\0 '
    "zero\u200bwidth \u2028 end <|end|> ]]> --> ${hacked}"
)
TEXTS = [
    (
        "What is 2+3?",
        "Let me think. 2+3 is 6.\n\nWait, no. So the answer is 6",
        "We add the two: 2+3=5. So the answer is 5",
    ),
    ("数学：三加四？ 🤔", "三加四等于七。🎉 the answer is 7 עברית", "答案是 7 🎉"),
    (HOSTILE, f"{HOSTILE} 1", f"{HOSTILE} 2"),
    ("Reverse a list.", "def rev(x):\n\tout = []\n\treturn out\n", "def rev(x):\n\treturn x[::-1]\n"),
]
STEPS, ROWS = 3, 8  # rows of a step
NUMBERS = ("kl", "student_nll", "teacher_nll")


def byte_level(folder: Path) -> Any:
    """A tokenizer of bytes and a few words, saved into the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|user|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the answer is the two: let me think. def rev return out"] * 3, trainer)
    words = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", additional_special_tokens=["<|user|>"])
    words.save_pretrained(folder)
    return words


def ids_of(words: Any, text: str) -> list[int]:
    return words(text, add_special_tokens=False, split_special_tokens=True).input_ids


def trajectory(words: Any, text: str, passed: bool | None, **more: Any) -> dict[str, Any]:
    ids = [*ids_of(words, text), words.eos_token_id]
    judged = {"passed": passed, "score": float(bool(passed)), "extracted": "5", "detail": "" if passed else "not equal"}
    return {"ids": ids, "text": text, "finish": "stop", "version": 0} | judged | more


def scored(rng: np.random.Generator, ids: list[int], y: str, view: str, trained: bool) -> dict[str, Any]:
    numbers = {name: np.exp(rng.normal(-2, 2.5, len(ids))).astype(np.float16) for name in (*NUMBERS, "onset")}
    return {"trajectory": y, "view": view, "trained": trained} | numbers


def a_row(words: Any, rng: np.random.Generator, number: int, with_numbers: bool) -> dict[str, Any]:
    problem, attempt, refined = TEXTS[number % len(TEXTS)]
    prompt = [words.convert_tokens_to_ids("<|user|>"), *ids_of(words, problem)]
    y_o = trajectory(words, attempt, number % 3 == 0, feedback="Test 2 failed:\n  expected 5")
    y_r = trajectory(words, refined, number % 4 != 1)
    refine = [*prompt, *ids_of(words, "\nThe attempt:\n"), *y_o["ids"][:-1], *ids_of(words, "\nRewrite it.")]
    row = {
        "problem_id": f"p{number % 6}", "problem": problem, "answer": "5", "reference": f"y* of {problem}",
        "row": number, "step": number // ROWS, "epoch": 0, "sample_index": 0, "seed": number,
        "source": ["school", "olympiad"][number % 2], "student_prompt_ids": prompt, "y_o": y_o,
        "refine_prompt_ids": refine, "y_r": y_r, "trajectory": "y_r", "train": True, "dropped_because": "",
        "student_ids": prompt, "teacher_ids": refine, "response_ids": y_r["ids"],
    }  # fmt: skip
    if with_numbers:
        row["scored"] = [scored(rng, y_r["ids"], "y_r", "refine", True)]
        if number % 4 == 0:
            row["scored"] += [scored(rng, y_o["ids"], "y_o", view, False) for view in ("refine", "vanilla")]
    return row


def a_run(folder: Path, with_numbers: bool = True, steps: int = STEPS) -> RunDirectory:
    """A run of `steps` steps, evaluated before and after, with its tokenizer in a checkpoint."""
    directory = RunDirectory.create(folder, config.load("miniature_opd", [f"run_dir={folder}"]))
    words = byte_level(folder / "checkpoints" / "step-000003" / "model")
    rng = np.random.default_rng(0)
    for step in range(steps):
        rows = [a_row(words, rng, number, with_numbers) for number in range(step * ROWS, (step + 1) * ROWS)]
        directory.write_rows(step + 1, to_table(rows))
    for name, after, luck in (("base", 0, 3), ("trained", steps, 2)):
        samples = [a_row(words, rng, number, False) for number in range(12)]
        samples = [one | {"problem_id": f"e{one['row'] // 4}", "y_r": None} for one in samples]
        for one in samples:
            one["y_o"]["passed"] = one["row"] % luck == 0
        answers = [Answer(one["problem_id"], one["y_o"]["passed"], 9, False, True) for one in samples]
        result = score(answers, name=name, step=after, version=after, resamples=50, seed=0)
        directory.write_evaluation(result, samples)
    directory.release()
    return directory
