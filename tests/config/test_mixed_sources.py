"""Several sources of problems in a recipe, and prompts that stand in files."""

from pathlib import Path

import pytest
import yaml

from trd_ray import config
from trd_ray.config import keys
from trd_ray.config.effects import ROWS
from trd_ray.errors import UserError
from trd_ray.record.directory import MAY_CHANGE, differences

TWO = [{"name": "a", "path": "a.jsonl"}, {"name": "b", "path": "b.parquet"}]


def refusal(tree: dict) -> str:
    with pytest.raises(UserError) as refused:
        config.from_tree(tree)
    return str(refused.value)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"sources": TWO, "path": "c.jsonl"}, "data.path is of a run with one source, but data.sources has 2"),
        ({"sources": TWO, "limit": 5}, "data.limit is of a run with one source"),
        ({"sources": TWO, "source": "corpus"}, "leave data.sources out"),
        ({"sources": [TWO[0], TWO[0]]}, "data.sources has the name 'a' twice"),
        ({"sources": [TWO[0] | {"weight": 1}, TWO[1]]}, "gives b no weight, but others one"),
        ({"sources": [TWO[0] | {"weight": 0}]}, "data.sources.0.weight must be greater than 0.0, but found 0"),
        ({"sources": [TWO[0] | {"name": "a b"}]}, "data.sources.0.name stands in the names of metrics"),
        ({"sources": [{"name": "a"}]}, "data.sources.0.path is missing"),
        ({"sources": [TWO[0] | {"wieght": 1}]}, "unknown key data.sources.0.wieght (did you mean weight?)"),
        (
            {"sources": [TWO[0] | {"prompts": {"slove": "{problem}"}}]},
            "unknown key data.sources.0.prompts.slove (did you mean solve?)",
        ),
        ({"sources": [TWO[0] | {"verify": "mth"}]}, "the verifier 'mth' of a, which is no entry of verify.functions"),
        ({"sources": TWO, "difficulty": ["EASY"]}, "set format: taco in a source"),
        ({"sources": "a.jsonl"}, "data.sources"),
    ],
)
def test_sources_that_cannot_be_mixed_are_refused_with_what_to_set(data, told):
    assert told in refusal({"data": data})


def test_a_recipe_with_sources_reads_back_as_it_was_dumped():
    sources = [TWO[0] | {"weight": 0.7, "prompts": {"solve": "Q: {problem}"}}, TWO[1] | {"weight": 1, "verify": "math"}]
    recipe = config.from_tree({"data": {"sources": sources}})
    assert config.from_tree(yaml.safe_load(config.dump(recipe))) == recipe
    assert config.from_tree(yaml.safe_load(config.dump_differences(recipe))) == recipe
    assert config.own_wordings(recipe.data) == {"a": {"solve": "Q: {problem}"}}
    assert config.verifiers_by_source(recipe.data) == {"b": "math"}


def test_another_weight_is_another_run():
    weighted = [[TWO[0] | {"weight": weight}, TWO[1] | {"weight": 1}] for weight in (1, 2)]
    trees = [config.from_tree({"data": {"sources": sources}}).model_dump(mode="json") for sources in weighted]
    [told] = differences(*trees, MAY_CHANGE)
    assert told.startswith("data.sources=")
    assert "data.sources" in keys.affecting(ROWS)


# Prompts in files


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "solve.md").write_text("\nQuestion: {problem}\n\nBox the answer.\n", encoding="utf-8-sig")
    return tmp_path


SOLVE = "Question: {problem}\n\nBox the answer."


def test_a_wording_is_read_from_a_file_beside_the_recipe_also_in_a_source(folder, monkeypatch):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    sources = [TWO[0] | {"prompts": {"solve": "@prompts/solve.md"}}]
    tree = {"prompts": {"solve": "@prompts/solve.md", "system": "@you are kind"}, "data": {"sources": sources}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(tree))
    recipe = config.load(str(folder / "mine.yaml"))
    assert recipe.prompts.solve == SOLVE and recipe.prompts.system == "@you are kind"
    assert config.own_wordings(recipe.data) == {"a": {"solve": SOLVE}}
    assert "@prompts" not in config.dump(recipe)  # a run's recipe.yaml holds the words, and needs no file


def test_an_override_names_a_file_from_where_trd_is_called(folder, monkeypatch):
    (folder / "mine.yaml").write_text("prompts: {refine: @prompts/solve.md}\n")  # no quotes are needed
    monkeypatch.chdir(folder / "prompts")
    prompts = config.load("../mine.yaml", ["prompts.solve=@solve.md"]).prompts
    assert prompts.solve == prompts.refine == SOLVE


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read (No such file or directory): correct the path"),
        (b"", "holds no wording"),
        (b"@other.md", "holds no wording"),
        ("é".encode("latin-1"), "is not UTF-8 text"),
        (b"x" * (2**20 + 1), "has more than 1 MiB"),
    ],
)
def test_a_file_that_holds_no_wording_is_refused_with_its_key(tmp_path, content, told):
    if content is not None:
        (tmp_path / "w.md").write_bytes(content)
    (tmp_path / "mine.yaml").write_text('prompts: {refine: "@w.md"}\n')
    with pytest.raises(UserError) as refused:
        config.load(str(tmp_path / "mine.yaml"))
    assert told in str(refused.value) and "prompts.refine is @w.md" in str(refused.value)
