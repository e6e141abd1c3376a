"""`trd export` of real checkpoints of a tiny learner: transformers and PEFT load what it writes, and agree."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from trd_ray import config
from trd_ray.cli import main
from trd_ray.distill.checkpoint import Checkpointer
from trd_ray.distill.learner import Learner
from trd_ray.errors import UserError
from trd_ray.evaluate.command import _require_as_written
from trd_ray.evaluate.weights import fingerprint
from trd_ray.export import card
from trd_ray.record.directory import RunDirectory
from trd_ray.rows import to_table
from trd_ray.score.stats import compare, score

VOCAB = 40
IDS = torch.tensor([[3, 5, 7, 9, 11]])
HOSTILE = "x\n---\n# Title <script>alert(1)</script> ```` [a](javascript:1) | b | \x1b[2J\u202e"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> the run directory of one LoRA learner with random adapters, and of one that trains all weights."""
    folder = tmp_path_factory.mktemp("export")
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *map(str, range(VOCAB - 2))])}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder / "base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3}
    special = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None, "tie_word_embeddings": True}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCAB, **sizes, **heads, **special)).save_pretrained(folder / "base")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield {
            "merged": run(folder, "merged", {"lora": {"rank": 2, "alpha": 4}}),
            "adapter": run(folder, "adapter", {"lora": {"rank": 2, "alpha": 4}}, {"export": "adapter"}),
            "full": run(folder, "full", {}, {"best": "evaluation/avg"}),
        }
    finally:
        dist.destroy_process_group()


def run(folder: Path, name: str, learner: dict, checkpoint: dict | None = None) -> Path:
    base = str(folder / "base")
    sets = {"old": {"path": "miniature:tune", "guard": True}, "new": {"path": "miniature:tune"}}
    kept = {"evaluation": {"path": "miniature:test", "sets": sets}, "checkpoint": checkpoint or {}}
    recipe = config.from_tree(
        {"name": name, "student": {"path": base}, "learner": {"dtype": "float32"} | learner} | kept
    )
    directory = RunDirectory.create(folder / name, recipe)
    made = Learner(
        recipe, student_path=base, teacher_path=base, tokenizer_path=base, total_steps=2, device=torch.device("cpu")
    )
    checkpointer = Checkpointer(made, 60)
    for steps in (1, 2):
        torch.manual_seed(steps)
        with torch.no_grad():
            for p in made.trained.values():
                p.to_local().normal_(std=0.3)
        place = directory.begin_checkpoint(steps, {"metrics": {"evaluation/avg": 1 / steps}})
        checkpointer.begin(place)
        assert checkpointer.done(60) == (True, None)
        directory.commit_checkpoint(place)
        repaired = {"y_r": {"passed": True, "ids": [1]}}
        directory.write_rows(steps, to_table([row(f"p{steps}", steps - 1, passed=False) | repaired]))
    answers = [row(p, 0, passed=p == "a") for p in "abcd"]
    scored = score(answers, name="base", step=0, version=0, resamples=100, seed=0)
    solved = [row(p, 0, passed=True) for p in "abcd"]
    trained = score(solved, name="trained", step=2, version=2, resamples=100, seed=0)
    directory.write_evaluation(scored, answers)
    directory.write_evaluation(compare(trained, scored, resamples=100, seed=0), solved)
    write_sets(directory)
    directory.release()
    return directory.path


def write_sets(directory: RunDirectory) -> None:
    """Of 40 problems a guard falls from 30 solved to 10 after step 2, another set rises; step 1 has no score of it."""
    for of, before, after in (("old", 30, 10), ("new", 10, 30)):
        rows = [[row(f"p{i:02}", 0, passed=i < solved) for i in range(40)] for solved in (before, after)]
        names = (("base", 0), ("trained", 2))
        base, trained = (
            score(answers, name=name, step=step, version=step, resamples=100, seed=0)
            for answers, (name, step) in zip(rows, names, strict=True)
        )
        directory.write_evaluation(base, rows[0], of)
        directory.write_evaluation(compare(trained, base, resamples=100, seed=0), rows[1], of)


def row(problem_id: str, step: int, passed: bool) -> dict:
    problem = {"problem_id": problem_id, "problem": "?", "answer": "1", "reference": ""}
    order = {"row": step, "step": step, "epoch": 0, "sample_index": 0, "seed": 0, "train": True}
    y_o = {"ids": [1], "text": "1", "finish": "stop", "version": step, "passed": passed, "extracted": "1"}
    return problem | order | {"y_o": y_o}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def exported(to: Path, *arguments: str) -> Path:
    assert main(["export", *arguments, "--to", str(to)]) == 0
    return to


def refused(capsys, *arguments: str) -> str:
    assert main(["export", *map(str, arguments)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("trd: ") and "\n" not in said
    return said


def test_a_run_s_newest_checkpoint_becomes_a_bfloat16_folder_that_transformers_loads(made, tmp_path, capsys):
    folder = exported(tmp_path / "out", str(made["full"]))
    assert "bfloat16, after 2 steps" in capsys.readouterr().out
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    ours = AutoModelForCausalLM.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(made["full"] / "checkpoints" / "step-000002" / "model")
    for name, p in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], p.to(torch.bfloat16), rtol=0, atol=0)
    assert (
        AutoTokenizer.from_pretrained(folder).get_vocab()
        == AutoTokenizer.from_pretrained(made["full"].parent / "base").get_vocab()
    )
    assert (folder / "generation_config.json").is_file()


def test_a_checkpoint_can_be_named_and_the_best_one_asked_for(made, tmp_path):
    first = made["full"] / "checkpoints" / "step-000001"
    places = [[str(first)], [str(first / "model")], [str(made["full"]), "--best"]]
    written = [exported(tmp_path / str(i), *place) / "model.safetensors" for i, place in enumerate(places)]
    assert len({file.read_bytes() for file in written}) == 1
    newest = exported(tmp_path / "newest", str(made["full"])) / "model.safetensors"
    assert newest.read_bytes() != written[0].read_bytes()


def test_merged_weights_are_the_same_from_a_merged_and_from_an_adapter_export(made, tmp_path):
    outs = [
        exported(tmp_path / name, str(made[name]), "--merged", "--dtype", "float32") for name in ("merged", "adapter")
    ]
    one, other = (AutoModelForCausalLM.from_pretrained(out).state_dict() for out in outs)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["merged", "adapter"])
def test_adapters_are_exported_from_either_and_give_the_merged_model_s_logits(made, tmp_path, name):
    folder = exported(tmp_path / "out", str(made[name]), "--adapter")
    assert not (folder / "model.safetensors").exists() and (folder / "tokenizer.json").is_file()
    adapted = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(made["merged"] / "checkpoints" / "step-000002" / "model")
    base = AutoModelForCausalLM.from_pretrained(made["merged"].parent / "base")
    torch.testing.assert_close(logits(adapted), logits(merged), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(merged), logits(base), atol=0.1), "the adapters change something"


def test_files_have_the_modes_that_the_umask_asks_for_and_nothing_is_left_beside(made, tmp_path):
    before = os.umask(0o027)
    try:
        folder = exported(tmp_path / "out", str(made["full"]))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()} == {0o640}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert list(tmp_path.iterdir()) == [folder]


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(made, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    out, full = tmp_path / "out", made["full"]
    assert "neither a run directory nor a checkpoint" in refused(capsys, tmp_path, "--to", out)
    assert "neither" in refused(capsys, tmp_path / "absent", "--to", out)
    assert "trained all weights" in refused(capsys, full, "--adapter", "--to", out)
    assert "--best chooses" in refused(capsys, full / "checkpoints" / "step-000001", "--best", "--to", out)
    assert "checkpoint.best is empty" in refused(capsys, made["merged"], "--best", "--to", out)
    assert "OWNER/NAME" in refused(capsys, full, "--push", "a b", "--to", out)
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in refused(capsys, full, "--to", tmp_path / "file" / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"file"}
    out.mkdir()
    assert "is there already" in refused(capsys, full, "--to", out)


def test_an_export_that_is_no_longer_what_was_written_is_neither_exported_nor_evaluated(made, tmp_path, capsys):
    import shutil

    copy = shutil.copytree(made["full"], tmp_path / "run")
    folder = copy / "checkpoints" / "step-000002"
    weights = folder / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    damaged = "model/model.safetensors is not what was written"
    assert damaged in refused(capsys, copy, "--to", tmp_path / "out")
    with pytest.raises(UserError, match="model.safetensors is not what the run wrote"):
        _require_as_written(folder / "model", fingerprint(str(folder / "model"), None))
    content[-1] ^= 1
    weights.write_bytes(content)
    _require_as_written(folder / "model", fingerprint(str(folder / "model"), None))


def test_a_damaged_checkpoint_is_refused_and_leaves_nothing(made, tmp_path, capsys):
    """Of an earlier version, which wrote no checksums."""
    import shutil

    copy = shutil.copytree(made["full"], tmp_path / "run")
    weights = copy / "checkpoints" / "step-000002" / "model" / "model.safetensors"
    (copy / "checkpoints" / "step-000002" / "checksums.json").unlink()
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be read" in refused(capsys, copy, "--to", tmp_path / "out")
    (copy / "checkpoints" / "step-000002" / "state.json").write_text("{")
    assert "state.json" in refused(capsys, copy, "--to", tmp_path / "out")
    shutil.copytree(made["merged"], tmp_path / "lora")
    (tmp_path / "lora" / "checkpoints" / "step-000002" / "learner" / ".metadata").write_bytes(b"x")
    assert "export another checkpoint" in refused(capsys, tmp_path / "lora", "--adapter", "--to", tmp_path / "out")
    shutil.copytree(made["adapter"], tmp_path / "peft")
    adapters = tmp_path / "peft" / "checkpoints" / "step-000002" / "model" / "adapter_model.safetensors"
    (tmp_path / "peft" / "checkpoints" / "step-000002" / "checksums.json").unlink()
    adapters.write_bytes(adapters.read_bytes()[:500])
    for form in ("--adapter", "--merged"):
        assert "the adapters in" in refused(capsys, tmp_path / "peft", form, "--to", tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"run", "lora", "peft"}


def test_the_push_is_refused_before_anything_is_written_without_a_token_or_a_network(
    made, tmp_path, capsys, monkeypatch
):
    import huggingface_hub

    out = tmp_path / "out"
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "hf auth login" in refused(capsys, made["full"], "--push", "me/mine", "--to", out)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_none")  # and the hub is offline in tests
    assert "does not answer for --push me/mine" in refused(capsys, made["full"], "--push", "me/mine", "--to", out)
    assert list(tmp_path.iterdir()) == []


def split(card: str) -> tuple[dict, str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_model_card_says_how_it_was_trained_and_how_it_scored(made, tmp_path):
    front, body = split((exported(tmp_path / "out", str(made["merged"])) / "README.md").read_text())
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["trd_ray", "distillation", "on-policy-distillation", "opsd", "lora"],
    }  # the base is a folder of this machine, so no base_model
    assert "| Avg@1 | 25.0 [" in body and "| 100.0 [" in body and "| +75.0 [" in body
    assert "4 problems of `miniature:test`" in body
    assert "Of 2 attempts 0.0% passed, of their rewrites 100.0%." in body
    for text in (
        "2 of 128 rollouts",
        "LoRA adapters, rank 2, alpha 4",
        "forward kl over the whole vocabulary",
        "torch ",
    ):
        assert text in body
    first = exported(tmp_path / "first", str(made["merged"] / "checkpoints" / "step-000001"))
    assert "put the final answer in \\boxed{}" in body, "the words that it was trained with"
    assert "was not evaluated" in (first / "README.md").read_text()


def test_the_model_card_says_how_every_set_moved_and_which_guard_is_lost(made, tmp_path):
    _, body = split((exported(tmp_path / "out", str(made["full"])) / "README.md").read_text())
    scored = body.partition("## How it scored")[2].partition("## ")[0]
    [new, old] = [line for line in scored.splitlines() if line.startswith(("| old |", "| new |"))]
    assert "| lost |" in old and "75.0" in old and "25.0" in old and "-50.0" in old
    assert "lost" not in new and "+50.0" in new
    assert "`old`, 40 problems, 1 samples each" in scored and "A guard is what the model could do before" in scored
    assert scored.index("of `miniature:test`") < scored.index("| old |"), "evaluation.path comes first"
    recipe = config.stored(made["full"] / "recipe.yaml")
    without = card.card(made["full"], recipe, 1, "merged", "bfloat16", "mine")
    assert "was not evaluated" in without and "| old |" not in without, "those are scores of another checkpoint"


def test_the_hub_is_told_of_the_base_and_the_data_where_they_are_on_it():
    tree = {"student": {"path": "Qwen/Qwen3-1.7B"}, "data": {"path": "openai/gsm8k:main"}, "learner": {"lora": {}}}
    front = card._front_matter(config.from_tree(tree), "adapter")
    assert front["base_model"] == "Qwen/Qwen3-1.7B"
    assert (front["base_model_relation"], front["library_name"]) == ("adapter", "peft")
    assert front["datasets"] == ["openai/gsm8k"]
    shipped = card._front_matter(config.load("miniature_opd"), "merged")
    assert "base_model" not in shipped and "datasets" not in shipped
    assert "license" not in front


def test_hostile_names_cannot_leave_their_place_in_the_model_card(made):
    tree = {
        "student": {"path": HOSTILE, "revision": HOSTILE},
        "data": {"path": HOSTILE},
        "prompts": {"system": HOSTILE},
    }
    text = card.card(made["full"], config.from_tree(tree), 2, "merged", "bfloat16", HOSTILE)
    front, body = split(text)
    assert front["library_name"] == "transformers" and "base_model" not in front
    assert "\x1b" not in text and "\u202e" not in text
    outside = "".join(body.split("`````")[0::2])  # what is not in the fence of the recipe
    titles = [line for line in outside.splitlines() if line.startswith("#")]
    assert len(titles) == 5, "its own: the name and four sections"
    assert "\\<script\\>" in titles[0]
