"""The samples of one benchmark on disk, written as they come.

    Samples.open(path, settings)  ->  what an earlier start left  ->  add(), judge()  ->  parquet()

The file is append-only and holds JSON lines: first the settings, then samples and verdicts in the order in which they
came, each with the key (problem_id, sample). The rules:

- A line is handed to the operating system whole. A killed process leaves at most one that is cut short, which is
  removed when the file is opened again.
- A sample is never made twice.
- A sample is never mixed with samples of other weights, settings or prompts: `open` and `check_prompt` refuse those.
- A verdict of another verifier, or with another answer key, is ignored and made again. So is one that says nothing
  about the response, since what judges was killed: it counts as not passed until the next start.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trd_ray.config import Recipe, VerifyConfig
from trd_ray.config.effects import VERDICTS
from trd_ray.config.keys import affecting, in_group
from trd_ray.config.verify_keys import FunctionKeys
from trd_ray.engine.actor import Generation
from trd_ray.engine.launch import engine_dtype
from trd_ray.errors import UserError
from trd_ray.evaluate.weights import difference
from trd_ray.files import taking_place
from trd_ray.record.directory import differences
from trd_ray.rows import METADATA, TRAJECTORY, encodable, parts_of
from trd_ray.score.stats import Answer
from trd_ray.verify import UNJUDGED, Verdict
from trd_ray.verify.gym.gym_verifier import entry_of

FORMAT = 1
ROWS_AT_A_TIME = 256
_OF_VERDICTS = in_group("verify", affecting(VERDICTS))
_OF_JUDGES = in_group("judge", affecting(VERDICTS))
_USUAL = VerifyConfig()

SCHEMA = pa.schema(
    [
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("prompt_sha256", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("y_o", TRAJECTORY, nullable=False),  # without log-probabilities
    ],
    metadata=METADATA,
)

Key = tuple[str, int]  # problem_id, number of the sample


@dataclass
class Kept:
    """What memory holds of a sample; the rest is read from the file when it is needed."""

    place: int  # where its line begins in the file
    prompt: str
    tokens: int
    finish: str
    verdict_place: int | None = None
    verdict_of: str = ""  # the verifier and answer key that gave the verdict
    passed: bool = False
    answered: bool = False


class Samples:
    """Samples on disk, open in one process at a time: the one that holds the run directory's claim."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.settings = settings
        self._kept: dict[Key, Kept] = {}
        self._begun = False
        self._end = 0
        self._file: Any = None

    @classmethod
    def open(cls, path: Path, settings: dict[str, Any]) -> "Samples":
        """Open the file and read what it holds. Nothing is written yet.

        `settings` holds "model" (see `weights.fingerprint`) and whatever else the samples depend on. Raises UserError,
        with what differs, if the file holds samples that were made in another way.
        """
        samples = cls(path, settings)
        if path.exists():
            samples._load()
        samples._file = open(path, "ab")  # noqa: SIM115
        return samples

    @classmethod
    def model(cls, path: Path) -> dict[str, Any] | None:
        """The fingerprint of the weights that a file names; None if its first line is not complete."""
        with open(path, "rb") as file:
            line = file.readline()
        return _header(path, line)["model"] if line.endswith(b"\n") else None

    def _load(self) -> None:
        with open(self.path, "rb+") as file:
            for number, line in enumerate(iter(file.readline, b"")):
                if not line.endswith(b"\n"):
                    file.truncate(self._end)
                    break
                if number == 0:
                    self._same_settings(_header(self.path, line))
                    self._begun = True
                    self._end += len(line)
                    continue
                try:
                    self._take(json.loads(line))
                except (ValueError, KeyError, TypeError) as e:
                    raise UserError(
                        f"line {number + 1} of {self.path} is damaged: delete that line, and the sample is made again"
                    ) from e
                self._end += len(line)

    def _take(self, line: dict[str, Any]) -> None:
        if line["kind"] == "sample":
            self._kept[_key(line)] = Kept(self._end, line["prompt_sha256"], line["tokens"], line["finish"])
        elif kept := self._kept.get(_key(line)):  # None if the line of the sample was deleted
            self._judged(kept, line)

    def _same_settings(self, began: dict[str, Any]) -> None:
        remedy = "or set run_dir to a new place"
        ours = {k: v for k, v in self.settings.items() if k != "model"}
        theirs = {k: v for k, v in began.items() if k != "model"}
        if changed := differences(theirs, ours, set()):
            raise UserError(
                f"{self.path} holds samples that were made with other settings: put back {'; '.join(changed)}, {remedy}"
            )
        if changed := difference(began["model"], self.settings["model"]):
            raise UserError(f"{self.path} holds samples of other weights ({changed}): evaluate those again, {remedy}")

    def _judged(self, kept: Kept, line: dict[str, Any]) -> None:
        if line["detail"].startswith(UNJUDGED):
            return
        kept.verdict_place = self._end
        kept.verdict_of = line["verifier"]
        kept.passed = line["passed"]
        kept.answered = bool(line["extracted"])

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def check_prompt(self, problem_id: str, samples: int, prompt_sha256: str) -> None:
        """Refuse a prompt other than the one that the problem's samples were made from."""
        for sample in range(samples):
            kept = self._kept.get((problem_id, sample))
            if kept and kept.prompt != prompt_sha256:
                raise UserError(
                    f"{self.path} holds samples of another prompt for problem {problem_id}: put the problem, prompts.* "
                    "and the chat template back as they were, or set run_dir to a new place"
                )

    def verified(self, key: Key, verifier: str) -> bool:
        kept = self._kept.get(key)
        return kept is not None and kept.verdict_place is not None and kept.verdict_of == verifier

    def passed(self, key: Key) -> bool:
        return self._kept[key].passed

    def response(self, key: Key) -> tuple[str, list[int]]:
        """Its text and its token ids."""
        sample = self._read(self._kept[key].place)
        return sample["text"], sample["ids"]

    def add(self, key: Key, seed: int, prompt_sha256: str, generation: Generation) -> None:
        g = generation
        place = self._append(
            {
                "kind": "sample",
                "problem_id": key[0],
                "sample": key[1],
                "seed": seed,
                "prompt_sha256": prompt_sha256,
                "tokens": len(g.ids),
                "finish": g.finish,
                "version": g.version,
                "engine": g.engine,
                "start_s": g.start_s,
                "seconds": g.seconds,
                "text": g.text,
                "ids": g.ids.tolist(),
            }
        )
        self._kept[key] = Kept(place, prompt_sha256, len(g.ids), g.finish)

    def judge(self, key: Key, verifier: str, verdict: Verdict) -> None:
        v = verdict
        line = {
            "kind": "verdict",
            "problem_id": key[0],
            "sample": key[1],
            "verifier": verifier,
            "passed": v.passed,
            "score": v.score,
            "extracted": v.extracted,
            "detail": v.detail,
            "feedback": v.feedback,
            "verify_seconds": v.seconds,
            "parts": parts_of(v.parts),
        }
        kept = self._kept[key]
        kept.verdict_place = self._append(line)
        kept.verdict_of = verifier
        kept.passed = v.passed
        kept.answered = bool(v.extracted)

    def _append(self, line: dict[str, Any]) -> int:
        """Write the line, after the settings if it is the first; returns the place at which it begins."""
        if not self._begun:
            self._begun = True
            self._append({"format": FORMAT, "settings": self.settings})
        place = self._end
        written = json.dumps(line).encode() + b"\n"
        self._file.write(written)
        self._file.flush()
        self._end += len(written)
        return place

    def _read(self, place: int) -> dict[str, Any]:
        with open(self.path, "rb") as file:
            file.seek(place)
            return json.loads(file.readline())

    def answers(self, keys: Iterable[Key]) -> list[Answer]:
        return [
            Answer(key[0], kept.passed, kept.tokens, kept.finish == "length", kept.answered)
            for key in keys
            for kept in [self._kept[key]]
        ]

    def parquet(self, place: Path, keys: list[Key]) -> None:
        """Write these samples with their verdicts, in this order, to one file that appears whole."""
        with taking_place(place) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            for i in range(0, len(keys), ROWS_AT_A_TIME):
                rows = list(self._rows(keys[i : i + ROWS_AT_A_TIME]))
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))

    def _rows(self, keys: list[Key]) -> Iterator[dict[str, Any]]:
        for key in keys:
            kept = self._kept[key]
            assert kept.verdict_place is not None
            line = self._read(kept.place) | self._read(kept.verdict_place)
            line["y_o"] = {field.name: line.get(field.name) for field in TRAJECTORY}
            yield {name: encodable(line[name]) for name in SCHEMA.names}

    def close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> "Samples":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prompt_sha256(prompt_ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(prompt_ids).encode()).hexdigest()


def verifier_of(problem: dict[str, Any], verify: VerifyConfig, judge: dict[str, Any] | None = None) -> str:
    """A hash of what a verdict on the problem depends on, without the text: settings, answer and tests.

    `judge` is what a judge's verdicts depend on (`settings_of_judge`); it counts where one is asked.
    """
    # A key of functions that has its default is left out, as it was before there were any: verdicts on disk stay valid.
    unset = {name for name in FunctionKeys.model_fields if getattr(verify, name) == getattr(_USUAL, name)}
    settings = verify.model_dump(mode="json", include=_OF_VERDICTS - unset)
    digest = hashlib.sha256(json.dumps([settings, problem["answer"]], sort_keys=True).encode())
    digest.update(problem.get("tests") or b"")
    if verify.chosen or entry_of(problem):  # which may read any column
        seen = [problem.get(name) for name in ("problem", "reference", "extra", "turns", "source")]
        digest.update(json.dumps(seen).encode())
    if verify.names_judge and judge:
        digest.update(json.dumps(judge, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def settings_of_judge(recipe: Recipe) -> dict[str, Any]:
    """What a judge's verdicts depend on, besides the problem and the text."""
    found = recipe.judge.model_dump(mode="json", include=_OF_JUDGES)
    return found | {"dtype": engine_dtype(recipe.judge, recipe)}


def _header(path: Path, line: bytes) -> dict[str, Any]:
    """The settings that the first line of a file holds."""
    try:
        header = json.loads(line)
        settings = header["settings"]
        known = header["format"] == FORMAT
        if not isinstance(settings["model"], dict):
            raise TypeError("no fingerprint of a model")
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"line 1 of {path}, which says how its samples were made, is damaged: put it back, or set run_dir to a new "
            "place"
        ) from e
    if not known:
        raise UserError(f"{path} was written by another version of this program: set run_dir to a new place")
    return settings


def _key(line: dict[str, Any]) -> Key:
    return line["problem_id"], line["sample"]
