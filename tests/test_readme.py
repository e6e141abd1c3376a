"""What the READMEs tell a user is so: commands parse, paths and keys exist, metrics are explained, the recipe works."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from trd_ray import cli
from trd_ray.cli import main
from trd_ray.compare.grid import Comparison
from trd_ray.config import Recipe
from trd_ray.problems import benchmarks
from trd_ray.record.metrics import metric_names

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
READMES = [
    README,
    *(ROOT / f"{p}/README.md" for p in ("cluster", "jobs")),
    *sorted((ROOT / "trd_ray").rglob("README.md")),
]
MACHINE = ["cluster.memory_gib=64", "cluster.local_cpus=16"]  # what else runs here is no part of the claims
MAX_WORDS = 1200

# A path of the repository anywhere in a README, but not the tail of another path, such as ~/.cache/trd_ray/problems.
PATH = re.compile(r"(?<![\w/.~-])(?:trd_ray|jobs|cluster|tests|requirements)/[\w./-]*[\w/]")
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
CODE = re.compile(r"`([^`\n]+)`")
KEY = re.compile(r"([a-z_]+(?:\.[a-z_]+)+)(?:=.*)?|([a-z_]+)=.*")
FILES = {".md", ".log", ".json", ".jsonl", ".yaml", ".parquet", ".py", ".lock", ".html"}  # of a run directory, or here


def name_of(readme: Path) -> str:
    return str(readme.relative_to(ROOT))


each_readme = pytest.mark.parametrize("readme", READMES, ids=name_of)


def section(heading: str) -> str:
    parts = re.split(r"^## ", README.read_text(), flags=re.MULTILINE)
    [found] = [part for part in parts if heading in part.splitlines()[0]]
    return found


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """Without fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def lines(text: str) -> list[list[str]]:
    """The words of every shell command of a README, with what `ray job submit` runs in place of the submission."""
    joined = "".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in joined]
    submitted = [found[found.index("--") + 1 :] if "--" in found else found for found in words]
    ends = [next((i for i, word in enumerate(found, 1) if word.endswith(";")), len(found)) for found in submitted]
    return [[w.removesuffix(";") for w in found[:end]] for found, end in zip(submitted, ends, strict=True) if found]


def commands(text: str) -> list[list[str]]:
    """What `trd` is told, also where it is told by a job's script or by inline code that is more than a name."""
    programs = {f"jobs/{name}.py": name for name in ("train", "evaluate", "refine", "compare")}
    inline = [shlex.split(code) for code in CODE.findall(prose(text)) if code.startswith(("trd ", "python jobs/"))]
    found = []
    for words in [*lines(text), *(words for words in inline if len(words) > 2)]:
        if Path(words[0]).name == "trd":
            found.append(words[1:])
        elif Path(words[0]).name == "python" and words[1] in programs:
            found.append([programs[words[1]], *words[2:]])
    return [words for words in found if words and "..." not in words and not words[0].isupper()]


def dry(text: str) -> list[list[str]]:
    """The commands that start nothing."""
    return [found for found in commands(text) if "--dry-run" in found or found[0] == "init"]


def has_key(node: Any, parts: list[str]) -> bool:
    """Whether a group of keys has this one; the keys of a dict are the user's own."""
    if not parts:
        return True
    if get_origin(node) is dict:
        return get_args(node)[1] is Any or has_key(get_args(node)[1], parts[1:])
    if isinstance(node, type) and issubclass(node, BaseModel):
        field = node.model_fields.get(parts[0])
        return field is not None and has_key(field.annotation, parts[1:])
    return any(has_key(part, parts) for part in get_args(node))


def keys(text: str) -> set[str]:
    """The config keys that a README names: in inline code of nothing else, and as overrides of commands."""
    spans = [[KEY.fullmatch(word) for word in code.split()] for code in CODE.findall(prose(text))]
    named = {m[1] or m[2] for span in spans if all(span) for m in span if m}
    named = {key for key in named if Path(key).suffix not in FILES and key != "key.sub"}
    overrides = [word for found in commands(text) if found[0] != "compare" for word in found]
    return named | {word.partition("=")[0] for word in overrides if cli.OVERRIDE.fullmatch(word)}


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A folder with the README's my.yaml, of a model that is at hand, and the problems that it names."""
    monkeypatch.chdir(tmp_path)
    [text] = blocks(section("Your model, your problems"), "yaml")
    recipe = yaml.safe_load(text)
    columns = recipe["data"]["columns"]
    for group in ("student", "teacher"):
        if "path" in recipe.get(group, {}):
            recipe[group]["path"] = "smollm2"
        recipe.get(group, {}).pop("chat_template_kwargs", None)  # SmolLM2 has no thinking mode to choose
    for path, numbers in ((recipe["data"]["path"], range(64)), (recipe["evaluation"]["path"], range(64, 76))):
        rows = [
            {
                columns["problem"]: f"Ada has {i} apples and buys {i + 3} more. How many has she?",
                columns["answer"]: str(2 * i + 3),
                columns.get("reference", "reference"): f"{i} + {i + 3} = {2 * i + 3}, so \\boxed{{{2 * i + 3}}}.",
            }
            for i in numbers
        ]
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("my.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path


def test_the_readme_s_recipe_fits_with_one_s_own_data(own, capsys):
    printed = dry(section("Your model, your problems"))
    assert any("--dry-run" in found for found in printed)
    assert any(found[0] == "init" for found in printed)
    for arguments in printed:
        if arguments[0] == "init":
            arguments = [*arguments, "--model", "smollm2"]
            Path("my.yaml").rename("printed.yaml")  # init overwrites nothing
        else:
            arguments = [*arguments, *MACHINE]
        code = main(arguments)
        said, refused = capsys.readouterr()
        assert code == 0, (arguments, refused, said[-500:])
        assert arguments[0] == "init" or "fits: yes" in said, (arguments, said[-500:])
        if Path("printed.yaml").exists():
            Path("printed.yaml").replace("my.yaml")


def test_the_front_page_is_short_enough_to_be_read():
    assert len(README.read_text().split()) <= MAX_WORDS


def test_the_row_that_the_readme_shows_has_the_columns_that_its_recipe_names():
    part = section("Your model, your problems")
    [row], [recipe] = blocks(part, "jsonl"), blocks(part, "yaml")
    assert set(json.loads(row)) == set(yaml.safe_load(recipe)["data"]["columns"].values())


def test_the_line_that_is_called_wrong_is_the_wrong_one_and_the_rewrite_is_right():
    from trd_ray.miniature.task import SECRET, compute

    shown = blocks(README.read_text(), "text")[0]
    right = {
        text: compute(int(text[0]), text[1], int(text[2]), SECRET) == int(text[4])
        for text in re.findall(r"\d[+@-]\d=\d", shown)
    }
    [wrong] = [text for text, is_right in right.items() if not is_right]
    assert re.search(re.escape(wrong) + r";\s+<- wrong", shown)


@each_readme
def test_every_command_of_a_readme_parses(readme, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(cli, "_job", lambda options: asked.append(options) or 0)
    found = [words for words in commands(readme.read_text()) if words[0] != "miniature"]
    for words in found:
        assert cli.main(words) == 0, words
    assert [options.command for options in asked] == [words[0] for words in found]


@each_readme
def test_what_else_a_readme_says_to_run_is_there(readme):
    makefile = (ROOT / "Makefile").read_text()
    for words in lines(readme.read_text()):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        script = next((word for word in words if word.startswith("jobs/") and word.endswith(".py")), None)
        if script and script.startswith("jobs/bench"):
            text = (ROOT / script).read_text()
            for beside in re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE):  # modules and packages of jobs
                files = [ROOT / "jobs" / f"{beside}.py", *(ROOT / "jobs" / beside).glob("*.py")]
                text += "".join(file.read_text() for file in files if file.is_file())
            assert [word for word in words if word.startswith("--") and f'"{word}"' not in text] == [], words


@each_readme
def test_every_link_and_every_path_of_a_readme_exists(readme):
    text = readme.read_text()
    links = [link for link in LINK.findall(text) if "://" not in link]
    missing = [link for link in links if not (readme.parent / link).exists()]
    paths = [path for path in PATH.findall(text) if not re.search(r"[A-Z]{2}", path.replace("README", ""))]
    assert missing + [path for path in paths if not (ROOT / path).exists()] == []


@each_readme
def test_every_config_key_of_a_readme_exists(readme):
    assert sorted(key for key in keys(readme.read_text()) if not has_key(Recipe, key.split("."))) == []


def test_every_key_that_a_comparison_is_told_exists():
    told = [words for readme in READMES for words in commands(readme.read_text()) if words[0] == "compare"]
    overrides = [word.partition("=")[0] for words in told for word in words[2:] if cli.OVERRIDE.fullmatch(word)]
    assert overrides
    assert [key for key in overrides if not has_key(Comparison, key.split("."))] == []


def table(readme: Path, heading: str) -> list[str]:
    """The first cells of the table under a heading."""
    [part] = [p for p in re.split(r"^## ", readme.read_text(), flags=re.MULTILINE) if p.startswith(heading)]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in part.splitlines() if line.startswith("| ")]
    return rows[1:]  # without the header


def test_every_metric_has_a_row_and_every_row_a_metric():
    named = [name for cell in table(ROOT / "trd_ray/record/README.md", "Every metric") for name in CODE.findall(cell)]
    assert len(named) == len(set(named))
    of_sets = {f"evaluation/<set>/{measure}" for measure in ("avg", "pass", "lost")}
    assert set(named) == {
        *metric_names(["<name>"], verifiers=["<name>"], alarms=["<name>"]),
        "dropped/<reason>",
        *of_sets,
    }


@each_readme
def test_every_metric_that_a_readme_names_exists(readme):
    groups = {name.split("/")[0] for name in metric_names() if "/" in name}
    said = [code for code in CODE.findall(prose(readme.read_text())) if re.fullmatch(r"[a-z_]+/[a-z_]+", code)]
    metrics = [name for name in said if name.split("/")[0] in groups]
    assert [name for name in metrics if name not in metric_names()] == []


def test_the_front_page_s_metrics_are_explained():
    assert {name for cell in table(README, "What to watch") for name in CODE.findall(cell)} <= set(metric_names())


def test_every_room_has_a_line_on_the_map():
    tracked = subprocess.run(["git", "ls-files", "trd_ray"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    files = tracked or [str(file.relative_to(ROOT)) for file in (ROOT / "trd_ray").rglob("*.py")]
    rooms = {Path(file).parts[1] for file in files} - {"__init__.py", "README.md"}
    linked = LINK.findall((ROOT / "trd_ray/README.md").read_text())
    assert rooms - {Path(link).parts[0] for link in linked} == set()


def test_the_front_page_leads_to_every_readme():
    reached, waiting = set(), [README]
    while waiting:
        readme = waiting.pop()
        if readme not in reached:
            reached.add(readme)
            links = [(readme.parent / link).resolve() for link in LINK.findall(readme.read_text()) if "://" not in link]
            waiting += [place for place in links if place.name == "README.md"]
    assert set(READMES) - reached == set()


def test_the_table_of_benchmarks_is_that_of_the_catalogue():
    assert benchmarks.markdown() in (ROOT / "trd_ray/problems/benchmarks/README.md").read_text()
