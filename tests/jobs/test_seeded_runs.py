"""What a user may get wrong in the options of the jobs that make runs of several seeds: one sentence, exit code 2."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import figure3  # noqa: E402
import two_teachers  # noqa: E402

HERE = str(Path(__file__))


@pytest.mark.parametrize("job", [figure3, two_teachers], ids=lambda job: job.__name__)
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: --directory"),
        (["--directory", "D", "--seeds", "0"], "argument --seeds: must be a whole number of at least 1, but is 0"),
        (["--directory", HERE], f"argument --directory: must be a directory, but {HERE} is a file"),
        (["--directory", "D", "--sedes", "2"], "unrecognized arguments: --sedes"),
        (["--directory", "D", "stepz=3"], "unknown key stepz"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_before_anything_is_made(
    job, arguments, sentence, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert job.main(arguments) == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told and len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
