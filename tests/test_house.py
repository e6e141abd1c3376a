"""The house: folders import from floors below their own, names mean one thing, and no file or function is long."""

import ast
from collections import Counter, defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "trd_ray"

# From the top. What shares a line may not know each other; what is not named here is the ground.
FLOORS = [
    ["api"],
    ["cli"],
    ["chat"],
    [
        "compare",
        "reproduce",
        "export",
        "draft",
        "doctor",
        "steer",
        "analyse",
        "check",
        "review",
        "show",
    ],  # doctor starts others by command lines
    ["train", "evaluate"],
    ["session"],
    ["report"],
    ["record"],
    ["alarms", "trackers"],
    ["diagnostics"],
    ["score"],
    ["stream"],
    ["distill"],
    ["engine"],
    ["scale"],
    ["economics"],
    ["preflight"],
    ["problems"],
    ["miniature"],
    ["verify"],
    ["sandbox"],
    ["shipped"],
]
FLOOR = {room: height for height, rooms in enumerate(reversed(FLOORS), 1) for room in rooms}

# The programs have one shape, so these modules mean the same in each. The sandbox's values are one module in two
# processes, of which one cannot import the package.
SAME_IN_EVERY_PROGRAM = {"command", "plan", "report"}
TWICE = {"values": {"trd_ray.sandbox.values", "trd_ray.sandbox.inside.values"}}

MAX_LINES_OF_A_FILE = 400
MAX_LINES_OF_A_FUNCTION = 60


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(file.read_text()) for name, file in MODULES.items()}


def imports(name: str) -> list[tuple[int, str]]:
    """Line and module of everything of the package that a module imports, wherever in the file it does."""
    found = []
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "trd_ray"]
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if MODULES[name].name == "__init__.py" else name.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            if module.split(".")[0] == "trd_ray":
                whole = (f"{module}.{alias.name}" for alias in node.names)
                found += [(node.lineno, one if one in MODULES else module) for one in whole]
    return found


def floor(name: str) -> int:
    return FLOOR.get((name.split(".") + [""])[1], 0)


def room(name: str) -> str:
    return (name.split(".") + [""])[1]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "trd_ray"])
def test_a_folder_imports_only_from_floors_below_its_own(name):
    upwards = [
        f"{MODULES[name].relative_to(ROOT.parent)}:{line} imports {other}"
        for line, other in imports(name)
        if other != "trd_ray"
        and (floor(other) > floor(name) or (floor(other) == floor(name) > 0 and room(other) != room(name)))
    ]
    assert not upwards, "; ".join(upwards)


def test_every_room_that_has_a_floor_exists():
    assert {room for room in FLOOR if not (ROOT / room).is_dir() and not (ROOT / f"{room}.py").is_file()} == set()


def test_no_imports_go_round_in_a_circle():
    order = TopologicalSorter({name: {other for _, other in imports(name)} - {name} for name in MODULES})
    try:
        order.prepare()
    except CycleError as e:
        pytest.fail(" -> ".join(e.args[1]))


def test_no_two_modules_share_a_name():
    places = defaultdict(set)
    for name, file in MODULES.items():
        if file.name != "__init__.py":
            places[file.stem].add(name)
    assert {
        stem: names
        for stem, names in places.items()
        if len(names) > 1 and stem not in SAME_IN_EVERY_PROGRAM and names != TWICE.get(stem)
    } == {}


def test_no_two_classes_share_a_name():
    classes = Counter(node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, times in classes.items() if times > 1] == []


def test_no_file_and_no_function_is_long():
    long = [
        f"{file.relative_to(ROOT.parent)} has {lines} lines"
        for file in MODULES.values()
        if (lines := len(file.read_text().splitlines())) > MAX_LINES_OF_A_FILE
    ]
    long += [
        f"{MODULES[name].relative_to(ROOT.parent)}:{node.lineno} {node.name} has {lines} lines"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_LINES_OF_A_FUNCTION
    ]
    assert not long, "; ".join(long)


def test_the_folders_of_the_tests_are_the_folders_of_the_package():
    beside = {"jobs", "cluster"}  # of the repository, not of the package
    tests = Path(__file__).parent
    named = {folder.name for folder in tests.iterdir() if list(folder.glob("test_*.py"))}
    assert named - beside <= {folder.name for folder in ROOT.iterdir()}


def test_no_two_files_of_tests_share_a_name():
    """pytest imports each by its name alone, and a second one ends the whole run."""
    names = Counter(file.name for file in (ROOT.parent / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
