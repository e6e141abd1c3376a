"""Bad problems, models, run directories and benchmarks: each is told in one sentence before anything starts."""

import gzip
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from refusing import Case, assert_refused, cases, command, train

GOOD = {"problem": "1+1", "answer": "2", "reference": "1+1=2;"}


def lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def data(name: str, content: str | bytes, *words: str, file: str = "bad.jsonl", more: str = "") -> Case:
    given = train(name, f"data.path={file} evaluation.path=null {more}", *words)
    given.files[file] = content
    return given


def rows(name: str, *bad: object, words: tuple[str, ...], more: str = "") -> Case:
    return data(name, lines(*bad), *words, more=more)


def parquet(*found: dict) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(found)), out)
    return out.getvalue()


def judged(name: str, cell: object, *words: str) -> Case:
    return rows(name, {"problem": "Add.", "tests": cell}, words=("bad.jsonl", *words))


PIPE = {"inputs": ["1"], "outputs": ["1"]}
FILES = [
    data("an empty file", "", "is empty", "problem and answer"),
    data("a file of blank lines", "\n \n\n", "is empty"),
    data("a line cut off", lines(GOOD, '{"problem": "1+'), "line 2", "cut off"),
    data("a Latin-1 file", lines(GOOD).replace("1+1=2", "\xe9").encode("latin-1"), "not UTF-8", "save it as UTF-8"),
    data("a UTF-16 file", lines(GOOD).encode("utf-16"), "not UTF-8"),
    data("lines that are lists", lines(["1+1", "2"]), "line 1 holds a list", "expected an object"),
    data("a JSON file with an open list", "[" + json.dumps(GOOD), "bad.json", "cut off", file="bad.json"),
    data("a JSON file with an empty list", "[]", "bad.json is empty", file="bad.json"),
    data("a JSON list of numbers", "[1, 2]", "row 1 holds a int", file="bad.json"),
    data("a gzip file cut off", gzip.compress(lines(GOOD).encode())[:-9], "whole gzip", file="bad.jsonl.gz"),
    data("a gzip file that is none", lines(GOOD), "whole gzip file", file="bad.jsonl.gz"),
    data("a Parquet file cut off", parquet(GOOD)[:-20], "not a readable Parquet file", file="bad.parquet"),
    data("an empty Parquet file", b"", "bad.parquet is empty", file="bad.parquet"),
    data("an Arrow file of noise", b"noise" * 9, "not a readable Arrow file", file="bad.arrow"),
    data("a spreadsheet", b"PK\x03\x04", "spreadsheet", "save its sheet as CSV", file="bad.xlsx"),
    data("a CSV with a short row", "problem,answer\n1+1\n", "cells", "double quotes", file="bad.csv"),
    data("an empty CSV", "", "bad.csv is empty", "column names", file="bad.csv"),
    data("a Latin-1 CSV", b"problem,answer\n\xe9,1\n", "save it as CSV in UTF-8", file="bad.csv"),
    data("a CSV of names alone", "problem,answer\n", "bad.csv", file="bad.csv"),
    data("a TSV with commas", "problem,answer\n1+1,2\n", "bad.tsv", "data.columns", file="bad.tsv"),
    train("a data file that is not there", "data.path=no/such.jsonl", "no data file no/such.jsonl", "set data.path"),
    train("a glob of nothing", "data.path=no/*.jsonl", "no/*.jsonl", "data.path"),
    train("a data set that is not there", "data.path=a/b", "a/b", "check data.path", "network"),
    train("a folder without data", "data.path=d", "folder d holds no .jsonl", **{"d/a__txt": "x"}),
]
ROWS = [
    rows(
        "misspelt columns",
        {"question": "1+1", "answer": "2"},
        words=("no column 'problem'", "set data.columns.problem=question"),
    ),
    rows("a mapped column that is not there", GOOD, words=("'q'",), more="data.columns.problem=q"),
    rows("an unknown name of ours", GOOD, words=("data.columns", "prolbem"), more="data.columns.prolbem=problem"),
    rows("ids that stand twice", {**GOOD, "problem_id": "a"}, {"problem_id": "a", **GOOD}, words=("twice", "unique")),
    rows("an empty answer", GOOD | {"answer": " "}, words=("line 1", "answer is empty", "remove that row")),
    rows("an empty problem", GOOD | {"problem": ""}, words=("line 1", "problem is empty")),
    rows("an answer of null", GOOD, GOOD | {"answer": None}, words=("line 2", "answer is empty")),
    rows("an answer that is no number", '{"problem": "1", "answer": NaN}', words=("line 1", "answer")),
    rows("an answer in a list", GOOD | {"answer": ["2"]}, words=("line 1", "answer holds a list")),
    rows("an answer in an object", GOOD | {"answer": {"a": 2}}, words=("line 1", "answer holds a dict")),
    rows("an answer of true", GOOD | {"answer": True}, words=("line 1", "answer holds a bool")),
    rows(
        "messages without a user", {"messages": [{"role": "system", "content": "x"}], "answer": 2}, words=("messages",)
    ),
    rows("half a surrogate", '{"problem": "\\ud800", "answer": "1"}', words=("line 1", "no text")),
    rows("a row without an answer", GOOD, {"problem": "2+2"}, words=("line 2", "answer")),
    rows("no reference in opsd", {"problem": "1+1", "answer": "2"}, words=("data.columns.reference=NAME",)),
    rows(
        "every row dropped for its reference",
        {"problem": "1+1", "answer": "2"},
        words=("data.without_reference=drop leaves none",),
        more="data.without_reference=drop",
    ),
    rows("difficulties outside of TACO", GOOD, words=("data.format=taco",), more="data.difficulty=[EASY]"),
    judged("tests of unequal length", {"inputs": ["1"], "outputs": []}, "1 inputs but 0 outputs"),
    judged("tests without a case", {"inputs": [], "outputs": []}, "has no case"),
    judged("tests in a list", [1], "tests holds no tests"),
    judged("tests in broken JSON", "{", "tests holds no tests"),
    judged("numbers for the text of tests", {"inputs": [1], "outputs": ["1"]}, "are text"),
    judged("an unknown field of tests", {"kind": "stdio", **PIPE, "timeout": 1}, "timeout"),
    judged("a call without its list", {"fn_name": "f", "inputs": [1], "outputs": [1]}, "list of its arguments"),
    judged("tests of an unknown kind", {"kind": "http", **PIPE}, "kind"),
    rows("tests under the name of TACO", {"problem": "Add.", "input_output": "{}"}, words=("data.columns.tests",)),
    data("the same problems held out", lines(GOOD), "trained on", "evaluation.allow_overlap=true"),
]
ROWS[-1].arguments = tuple(a.replace("path=null", "path=bad.jsonl") for a in ROWS[-1].arguments)


def model(name: str, change, *words: str, more: str = "") -> Case:
    def prepare(work: Path) -> None:
        from trd_ray.miniature import model_path

        shutil.copytree(model_path("student"), work / "m")
        change(work / "m")

    return train(name, f"student.path=m {more}", *words, prepare=prepare)


def edit(file: str, **values):
    def change(folder: Path) -> None:
        place = folder / file
        tree = json.loads(place.read_text()) | values
        place.write_text(json.dumps({key: value for key, value in tree.items() if value != "absent"}))

    return change


def template(text: str):
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text)

    return change


def replaced(file: str, content):
    return lambda folder: (folder / file).write_bytes(content((folder / file).read_bytes()))


def _swapped(text: bytes) -> bytes:
    tree = json.loads(text)
    words = tree["model"]["vocab"]
    words["1"], words["2"] = words["2"], words["1"]
    return json.dumps(tree).encode()


def _only_adapters(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


WEIGHTS = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
MODELS = [
    train("a model that is not there", "student.path=/no/such/model", "/no/such/model", "config.json"),
    train("a file as a model", "student.path=m.bin", "m.bin is a file, not a model", m__bin="x"),
    train("an empty folder as a model", "student.path=d", "folder d holds no config.json", **{"d/a": ""}),
    train("a miniature that is not made", "student.path=miniature:tutor", "there is no model miniature:tutor"),
    model("a model without weights", lambda m: (m / WEIGHTS).unlink(), "no weights", "download the model again"),
    model("empty weights", replaced(WEIGHTS, lambda _: b""), "empty model.safetensors"),
    model("weights cut off", replaced(WEIGHTS, lambda b: b[:-99]), "model.safetensors is not whole"),
    model("weights with a broken header", replaced(WEIGHTS, lambda b: b"\xff" * 99), "header cannot be read"),
    model("weights that Git LFS did not fetch", replaced(WEIGHTS, lambda _: POINTER), "Git LFS", "git lfs pull"),
    model(
        "a shard that is missing",
        lambda m: (m / (WEIGHTS + ".index.json")).write_text('{"weight_map": {"a": "b.safetensors"}}'),
        "names b.safetensors",
    ),
    model("an index without a map", lambda m: (m / (WEIGHTS + ".index.json")).write_text("{}"), "holds no weight_map"),
    model("a configuration of other weights", edit("config.json", hidden_size=32), "do not fit its config.json"),
    model("a broken configuration", replaced("config.json", lambda b: b[:20]), "config.json"),
    model("an unknown architecture", edit("config.json", model_type="nosuch"), "config.json", "nosuch"),
    model("an encoder and decoder", edit("config.json", model_type="t5"), "not a causal language model"),
    model("adapters alone", _only_adapters, "holds adapters alone", "checkpoint.export=merged"),
    model("a model without a tokenizer", lambda m: (m / "tokenizer.json").unlink(), "tokenizer"),
    model("another end of turn", edit("generation_config.json", eos_token_id=0), "eos_token_id"),
    model("no template", lambda m: (m / "chat_template.jinja").unlink(), "has no chat template"),
    model("a broken template", template("{% for m in messages %}{{ m['content'] }"), "cannot render", "student"),
    model("a template that raises", template("{{ raise_exception('no') }}"), "cannot render", "no"),
    model(
        "a swapped vocabulary",
        replaced("tokenizer.json", _swapped),
        "different vocabularies",
        more="teacher.mode=opd teacher.path=miniature:teacher",
    ),
]
SETTINGS = [
    train("more cores than there are", "learner.cpus=64", "64", "CPUs", "lower"),
    train("engines without GPUs", "sampler.gpus=1", "GPU", "the cluster has 0"),
    train("99 replicas", "sampler.replicas=99", "CPUs", "sampler.replicas"),
    train("an object store larger than memory", "cluster.object_store_gib=900000", "cluster.object_store_gib"),
    train("a cache larger than memory", "sampler.cpu_kv_cache_gib=9000", "memory", "GiB"),
    train("weights by NCCL without GPUs", "sync.backend=nccl", "sync.backend=nccl needs", "set sync.backend=auto"),
    train("a metric that no step has", "checkpoint.best=kl/maen", "checkpoint.best", "did you mean kl/mean?"),
    train("an engine argument that vLLM has not", "sampler.extra.foo_bar=1", "sampler.extra.foo_bar"),
    train("a support larger than the vocabulary", "loss.top_k=1000", "loss.top_k", "28"),
    train("responses longer than the context", "sampler.max_response_tokens=4000", "sampler.max_model_len"),
    train("a refine prompt too short for a problem", "refiner.max_prompt_tokens=17", "refiner.max_prompt_tokens is 17"),
    train("an unknown placeholder", ["prompts.solve=solve {problme}"], "prompts.solve", "{problme}"),
    train("a wording without its problem", "prompts.solve=solve", "prompts.solve", "{problem}"),
    train("adapters on no layer", ["learner.lora={targets: [w_proj]}"], "learner.lora.targets", "w_proj"),
    train("a corpus that is not there", "data.source=corpus data.path=/no/corpus", "/no/corpus", "jobs/refine.py"),
    train("nothing to resume", "--resume", "there is no run to resume", "leave --resume out"),
    train("a run directory that is a file", "run_dir=f", "is a file", "set run_dir", f="x"),
    train("a run directory with other files", "run_dir=d", "holds other files", "set run_dir", **{"d/a": "x"}),
    train("a run directory in proc", "run_dir=/proc/x", "cannot be made", "set run_dir"),
    train(
        "a run that is there already",
        "run_dir=d",
        "already holds a run",
        **{"d/recipe__yaml": "name: x\n", "d/__lock": ""},
    ),
    train(
        "a run of another recipe",
        "run_dir=d --resume",
        "another recipe",
        **{"d/recipe__yaml": "name: x\n", "d/__lock": ""},
    ),
    train("a run whose recipe is empty", "run_dir=d --resume", "recipe.yaml is empty", **{"d/recipe__yaml": ""}),
    train("a held-out benchmark misspelt", "evaluation.path=aime42", "no benchmark aime42", "did you mean aime2"),
    command("a model to evaluate that is not there", "evaluate no/such.yaml aime24", "no/such.yaml"),
    command("a benchmark misspelt", "evaluate miniature:student aime42", "no benchmark aime42", "did you mean"),
    command("a benchmark named twice", "evaluate miniature_opsd miniature:test miniature:test", "named twice"),
    command(
        "an unknown key of an evaluation",
        "evaluate miniature:student miniature:test evaluaton.samples=1",
        "unknown key evaluaton",
    ),
    command(
        "a run without checkpoints",
        "evaluate d miniature:test",
        "no checkpoint to evaluate",
        **{"d/recipe__yaml": "name: x\n", "d/checkpoints/none": ""},
    ),
    command("a file of problems that is not there", "evaluate miniature:student p.jsonl", "no file p.jsonl"),
    command("a base that has no score", "evaluate miniature_opsd miniature:test --base=b", "no score", "--base"),
    command("dates of a benchmark without", "evaluate miniature_opsd aime24@2024-01..2024-02", "aime24"),
]


@cases(FILES + ROWS + MODELS + SETTINGS)
def test_bad_problems_models_and_places_are_one_sentence_and_leave_nothing(case, tmp_path, monkeypatch, capsys):
    assert_refused(case, tmp_path, monkeypatch, capsys)
