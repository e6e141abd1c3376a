"""The benchmarks by name, as data: where each is published, its size and its licence.

Sizes are the publishers' own. A licence is what the data set's card or repository declares, or "see source" where it
declares none or we could not read it. In any case the problems of contests belong to their authors.
"""

from dataclasses import dataclass
from typing import Literal

Task = Literal["math", "code"]

# The paper's evaluation: 16 samples a problem, temperature 0.6, top-p 0.95, and a limit for each task.
MAX_RESPONSE_TOKENS: dict[Task, int] = {"math": 38_912, "code": 16_384}


@dataclass(frozen=True)
class Entry:
    name: str
    title: str
    task: Task
    repository: str  # on the Hugging Face hub; for evalplus the release that its package downloads
    files: tuple[str, ...]  # patterns of the repository's files; the first that matches any file counts
    problems: int
    licence: str
    alternatives: tuple[str, ...] = ()  # repositories with another schema that is read too, as NAME:REPOSITORY
    note: str = ""

    @property
    def remedy(self) -> str:
        """How to get the benchmark: the end of a sentence that says it is missing."""
        return (
            f"run `hf download {self.repository} --repo-type dataset --local-dir DIR` (or huggingface-cli in place of "
            f"hf) where there is a network, and name {self.name}:DIR"
        )


_ALL = ("*.parquet", "*.jsonl")

ENTRIES: tuple[Entry, ...] = (
    Entry(
        "aime24",
        "AIME 2024 (I and II)",
        "math",
        "math-ai/aime24",
        _ALL,
        30,
        "see source",
        ("HuggingFaceH4/aime_2024", "Maxwell-Jia/AIME_2024"),
    ),
    Entry(
        "aime25",
        "AIME 2025 (I and II)",
        "math",
        "math-ai/aime25",
        _ALL,
        30,
        "see source",
        ("opencompass/AIME2025", "yentinglin/aime_2025", "MathArena/aime_2025"),
    ),
    Entry(
        "hmmt25",
        "HMMT February 2025",
        "math",
        "MathArena/hmmt_feb_2025",
        _ALL,
        30,
        "CC BY-NC-SA 4.0",
        ("PraMamba/HMMT-202502",),
    ),
    Entry("beyondaime", "BeyondAIME", "math", "ByteDance-Seed/BeyondAIME", _ALL, 100, "CC0 1.0"),
    Entry(
        "amobench",
        "AMO-Bench, parser-graded subset",
        "math",
        "meituan-longcat/AMO-Bench",
        _ALL,
        39,
        "MIT",
        note="the 39 of 50 problems that a rule can grade (AMO-Bench-P): answer_type is not 'description'",
    ),
    Entry("math500", "MATH-500", "math", "HuggingFaceH4/MATH-500", _ALL, 500, "see source (MATH itself: MIT)"),
    Entry("gsm8k", "GSM8K", "math", "openai/gsm8k", ("main/test-*", "*test*.jsonl"), 1319, "MIT"),
    Entry(
        "humaneval_plus",
        "HumanEval+ v0.1.10",
        "code",
        "evalplus/humanevalplus_release",
        ("HumanEvalPlus*.jsonl", "HumanEvalPlus*.jsonl.gz"),
        164,
        "see source (evalplus: Apache-2.0, HumanEval: MIT)",
        note="evalplus's own release on GitHub, or the file that HUMANEVAL_OVERRIDE_PATH names",
    ),
    Entry(
        "mbpp_plus",
        "MBPP+ v0.2.0",
        "code",
        "evalplus/mbppplus_release",
        ("MbppPlus*.jsonl", "MbppPlus*.jsonl.gz"),
        378,
        "see source (evalplus: Apache-2.0, MBPP: CC BY 4.0)",
        note="evalplus's own release on GitHub, or the file that MBPP_OVERRIDE_PATH names",
    ),
    Entry(
        "livecodebench_v6",
        "LiveCodeBench release_v6",
        "code",
        "livecodebench/code_generation_lite",
        ("test*.jsonl",),
        1055,
        "see source",
        note="all contests from May 2023 to April 2025; NAME@FIRST..LAST selects by contest date, "
        "and test6.jsonl alone is the 175 problems that v6 added (January to April 2025)",
    ),
)

BY_NAME = {entry.name: entry for entry in ENTRIES}


def listing() -> str:
    """The table of the benchmarks for the terminal, a line for each."""
    lines = [("name", "problems", "source", "licence")]
    lines += [(e.name, str(e.problems), e.repository, e.licence) for e in ENTRIES]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join("  ".join([*(f"{line[c]:<{widths[c]}}" for c in range(3)), line[3]]) for line in lines)


def markdown() -> str:
    """The table of the benchmarks for the README."""
    lines = ["| name | benchmark | problems | source | licence |", "|---|---|---:|---|---|"]
    for e in ENTRIES:
        place = "github.com" if e.repository.endswith("_release") else "huggingface.co/datasets"
        also = f"; also {', '.join(f'`{other}`' for other in e.alternatives)}" if e.alternatives else ""
        title = f"{e.title}: {e.note}" if e.note else e.title
        lines.append(
            f"| `{e.name}` | {title} | {e.problems} | [{e.repository}](https://{place}/{e.repository}){also} "
            f"| {e.licence} |"
        )
    return "\n".join(lines)
