"""The tests that are marked `gpu`, run by pytest from a checkout.

Needs torch, transformers and pytest, and neither Ray nor vLLM.
"""

import re
import subprocess
import sys
from pathlib import Path

from trd_ray.doctor.gpu.outcome import Figures, PartFailed, PartSkipped

CHECKOUT = Path(__file__).parents[3]
MARK = "pytest.mark.gpu"


def marked_files() -> list[str]:
    """The test files with a test that is marked; all others would be imported for nothing."""
    found = sorted((CHECKOUT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(CHECKOUT)) for file in found if f"@{MARK}\n" in file.read_text()]


def command(files: list[str]) -> list[str]:
    """pytest without the project's options, which name plugins that a bare machine may lack."""
    options = ["-c", "/dev/null", "--rootdir", str(CHECKOUT), "-p", "no:cacheprovider", "-o", "pythonpath=tests"]
    return [sys.executable, "-m", "pytest", *options, "-W", "ignore", "-ra", "-m", "gpu", *files]


def run(folder: Path) -> Figures:
    files = marked_files()
    if not files:
        raise PartSkipped(f"there are no tests in {CHECKOUT}: work from a checkout")
    done = subprocess.run(command(files), cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    return counted(done.returncode, done.stdout)


def counted(code: int, output: str) -> Figures:
    """The figures of pytest's last line. Raises PartFailed unless every test passed, and at least one."""
    last = (output.strip().splitlines() or [""])[-1]
    figures: Figures = {word: float(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", last)}
    if code or not figures.get("passed") or figures.get("skipped"):
        lines = output.splitlines()
        said = next((line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))), last)
        raise PartFailed(f"pytest ended with {code}: {said[:300]}", figures)
    return figures
