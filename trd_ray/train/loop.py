"""The run: one place that knows the order of things.

    start pools, learner, stream -> evaluate the base -> each step: take rows, build examples, train, sync,
                                                         evaluate if due, record, checkpoint if due -> summary

A step is recorded (rows, metrics) after its update and its sync, and a checkpoint holds everything up to its step, so
a resumed run begins at the first problem that the checkpoint has not trained. Leaving, by success, error or signal,
stops every actor.
"""

import time
from pathlib import Path
from typing import Any

import ray

from trd_ray.config import EVALUATED
from trd_ray.distill.batches import Cost, Example, micro_batches, split
from trd_ray.distill.trainer import SYNC_WAITS, Trainer
from trd_ray.engine.actor import Request
from trd_ray.engine.launch import engine_dtype
from trd_ray.errors import RunFailed
from trd_ray.preflight import placement
from trd_ray.problems.order import order
from trd_ray.record import warnings
from trd_ray.record.ledger import facts_of_rows, row_metrics, stage_seconds, union_seconds
from trd_ray.record.metrics import Metrics
from trd_ray.rows import part
from trd_ray.session.session import Session
from trd_ray.stream.examples import build
from trd_ray.stream.feed import Feed, corpus_tables
from trd_ray.stream.graph import blocks, graph
from trd_ray.stream.stages import StageSpec
from trd_ray.train.checkpoints import Checkpoints

STOP_LEARNER_S = 60


def start_feed(session: Session, *, start_step: int, version: int) -> Feed:
    """The rows of the run from `start_step` on, from the graph over the pools or from a corpus."""
    r, inputs = session.recipe, session.inputs
    if inputs.problems is None:
        tables: Any = corpus_tables(r.data.path, rows_per_step=r.rollouts_per_step, start_step=start_step)
    else:
        rows = order(
            inputs.problems, seed=r.seed, rollouts_per_step=r.rollouts_per_step, samples_per_problem=r.sampler.n,
            shuffle=r.data.shuffle, steps=r.steps, start_step=start_step,
        )  # fmt: skip
        spec = StageSpec(
            r, inputs.student_path, inputs.teacher_path, session.pools["sampler"], session.refiner, version,
            # Where nothing trains, nothing grows stale.
            max_staleness=r.stream.max_staleness if inputs.job == "train" else "never",
        )  # fmt: skip
        dataset = graph(blocks(rows, r), spec)
        tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    return Feed(tables, rows_per_step=r.rollouts_per_step, stall_timeout_s=r.stream.stall_timeout_s)


class Training:
    """The learner, its versions and its records, from `start_step` to the end."""

    def __init__(self, session: Session, start_step: int, resume_from: Path | None):
        s, r = session, session.recipe
        self.session, self.recipe, self.directory = session, r, session.directory
        self.start_step = self.step = start_step
        self.total_steps = s.inputs.total_steps
        self.corpus = s.inputs.problems is None
        self.cost = Cost.of(
            s.inputs.student, s.inputs.teacher, r.learner.activation_checkpointing, adapters=bool(r.learner.lora)
        )
        self.offline = r.stream.max_staleness == "never"
        self.version = start_step
        self.served = 0  # engines start with the initial weights
        learner = s.actors["learner"]
        self.trainer = Trainer(
            {
                "recipe": r,
                "student_path": s.inputs.student_path,
                "teacher_path": s.inputs.teacher_path,
                "tokenizer_path": s.inputs.student_path,
                "total_steps": self.total_steps,
                "resume_from": str(resume_from) if resume_from else None,
                "pools": s.following(),
                "sync_backend": placement.sync_backend(r, s.gpus),
                "engine_dtype": engine_dtype(r.sampler, r),
            },
            cpus=learner.cpus,
            gpus=learner.gpus,
            storage=s.directory.path / "logs" / "ray_train",
        )
        self.trained = start_step  # steps in the learner's weights; ahead of `step` between update and record
        self.checkpoints = Checkpoints(r, s.directory, self.trainer, saved=start_step)
        self.pauses: list[tuple[float, float]] = []  # evaluations and checkpoints since the last step's end
        self.began = time.time()
        self.metrics = Metrics(s.directory.path, self.total_steps, start_step)
        self.recorded: dict[str, Any] = {}  # the last step's metrics

    def wait_until_started(self) -> None:
        """Until the engines answer and every rank has its models; each has a deadline of its own."""
        display = self.session.display
        display.starting({"learner": (0, 1)})
        self.trainer.wait_until_started(self.session.look_at_start)
        display.starting({"learner": (1, 1)})
        self.session.wait_until_started()

    def run(self, feed: Feed) -> None:
        self.began = time.time()
        while self.step < self.total_steps:
            self.watch()  # with rows ready, as a corpus always has them, nothing else would
            self.one_step(feed)
            self.checkpoints.require_updates(self.step, self.recorded)
            self.checkpoints.finish(wait=False)
            if self.checkpoints.due(self.step, self.total_steps):
                self.checkpoint(wait=False)
        self.checkpoints.finish(wait=True)

    def one_step(self, feed: Feed) -> None:
        """Take the step's rows, train on their examples, give the engines the new weights, evaluate if due, record."""
        begin = time.time()  # of the wait; the step itself began when the engines got its weights
        expected = self.session.inputs.rows_in_step(self.step)

        def while_waiting() -> None:
            self.watch()
            self.session.display.rollouts(feed.arrived(self.step), expected)

        rows = feed.take(self.step, while_waiting, expected)
        taken = time.time()
        if self.step == self.start_step:  # what came before the first sample was the start of the stages
            self.began = max(self.began, min((row["y_o"]["start_s"] for row in rows if not self.corpus), default=begin))
        gap = self.logprob_gap(rows)
        shared = self.session.inputs.findings.shared_vocabulary
        examples = [e for row in rows if (e := build(row, self.recipe, self.session.views, shared))]
        learned, train_window = self._train(examples)
        self.version += 1
        synced = time.time()
        if not self.offline:
            self.sync()
        done = time.time()
        statuses = self.session.statuses()
        metrics = row_metrics(rows, self.version - 1) | learned | gap
        metrics |= self._times(rows, done, train_window) | {"seconds/sync": done - synced}
        metrics |= {"seconds/wait": taken - begin, "version": self.version, "epoch": rows[-1]["epoch"], "time_s": done}
        metrics |= {f"queue/{name}": status["waiting"] for name, status in statuses.items()}
        self.began, self.pauses = done, []
        try:
            metrics |= self.evaluate(self.step + 1)
        finally:  # a step that has trained is recorded, also when its evaluation was stopped
            self._record(rows, metrics)

    def _record(self, rows: list[dict], metrics: dict[str, Any]) -> None:
        number = self.step + 1
        self.directory.write_rows(number, rows)
        self.metrics.log(number, metrics)
        self.session.display.step({"step": number} | metrics)
        self.step, self.recorded = number, metrics
        if self.step == self.start_step + 1:
            self.session.warn(warnings.of_rows(facts_of_rows(rows), self.recipe))

    def evaluate(self, steps: int) -> dict[str, float]:
        """Avg@k and Pass@k of the newest weights on the held-out problems, if that is due after `steps` steps."""
        name = self._evaluation(steps)
        if name is None:
            return {}
        begin = time.time()
        if self.served != self.version:
            self.sync()
        score = self.session.evaluate(name, steps, self.version, self.session.inputs.held_out, self.watch)
        self.pauses.append((begin, time.time()))
        self.session.display.phase("training")
        measures = (f"avg@{score.samples}", f"pass@{2 ** (score.samples.bit_length() - 1)}")
        return {name: score.scores[measure].value for name, measure in zip(EVALUATED, measures, strict=True)}

    def evaluate_missed(self) -> None:
        """The evaluation after the last step that is recorded, if the run was stopped in it."""
        name = self._evaluation(self.step) if self.step else None
        if name and all(score.name != name for score in self.directory.read_evaluations()):
            self.evaluate(self.step)

    def _evaluation(self, steps: int) -> str | None:
        """The name of the evaluation that is due after so many steps."""
        e = self.recipe.evaluation
        if self.session.inputs.held_out is None:
            return None
        if steps == self.total_steps and e.after:
            return "trained"
        return f"step-{steps:06d}" if e.every_steps and steps % e.every_steps == 0 else None

    def watch(self) -> None:
        """While rows are awaited: engines that were restarted get the current weights again."""
        if any(s["needs_weights"] for s in self.session.look().values()):
            self.sync()

    def _train(self, examples: list[Example]) -> tuple[dict[str, float], tuple[float, float]]:
        begin = time.time()
        self.trained = self.step + 1
        r = self.recipe
        per_update = [
            micro_batches(shares, r.learner.tokens_per_micro_batch, r.learner.packing, self.cost)
            for shares in split(examples, r.learner.updates_per_step, r.learner.workers, self.cost)
        ]
        shares = [ray.put([update[rank] for update in per_update]) for rank in range(r.learner.workers)]
        learned = self.trainer.call("step", r.learner.step_timeout_s, per_rank=[[ref] for ref in shares])
        # When every row was dropped the step counts, but there is nothing to say of a loss.
        told = {name: learned[name] for name in ("lr", "updates", "skipped_updates")}
        return learned if examples else told, (begin, time.time())

    def sync(self) -> None:
        """Every engine that follows the learner serves `version` when this returns; a failed one is restarted first."""
        if not self.session.following():
            return
        for attempt in range(3):
            patience = SYNC_WAITS * self.recipe.sync.timeout_s * len(self.session.following())
            problem = self.trainer.call("sync", patience, key="sync.timeout_s", version=self.version)
            if problem is None:
                self.served = self.version
                return
            self._wait_for_restart(problem if attempt < 2 else f"{problem} (three times)")
        raise RunFailed(f"the engines could not be given policy version {self.version}: {problem}")

    def _wait_for_restart(self, problem: str) -> None:
        deadline = time.monotonic() + self.recipe.sampler.start_timeout_s
        while any(s["restarting"] for s in self.session.look().values()):
            if time.monotonic() > deadline:
                raise RunFailed(f"an engine did not come back after a failed weight sync: {problem}")
            time.sleep(0.5)

    def logprob_gap(self, rows: list[dict]) -> dict[str, float]:
        """|engine - learner| log-probability of sampled tokens at the same policy version: the proof of a right sync.

        Rows that older weights sampled are scored again by an engine, if the engines serve the learner's version.
        """
        probe = [r for r in rows if part(r, "y_o", "ids")][: self.recipe.sync.probe_rows]
        if not probe or "sampler" not in self.session.pools or self.corpus:
            return {}
        if all(row["y_o"]["version"] == self.version for row in probe):
            engine = [row["y_o"]["logprobs"] for row in probe]
        elif self.served == self.version:
            asked = [
                Request(prompt_ids=[*row["student_prompt_ids"], *row["y_o"]["ids"]], seed=0, prompt_logprobs=True)
                for row in probe
            ]
            answers = ray.get(
                self.session.pools["sampler"].generate.remote(asked, self.version),
                timeout=self.recipe.sampler.request_timeout_s,
            )
            engine = [a[0].prompt_logprobs[-len(row["y_o"]["ids"]) :] for a, row in zip(answers, probe, strict=True)]
        else:
            return {}
        learner = self.trainer.call(
            "logprobs", self.recipe.learner.step_timeout_s,
            sequences=[(row["student_prompt_ids"], row["y_o"]["ids"]) for row in probe],
        )  # fmt: skip
        pairs = zip(learner, engine, strict=True)
        gaps = [abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)]
        return {"sync/gap_mean": sum(gaps) / len(gaps), "sync/gap_max": max(gaps)}

    def _times(self, rows: list[dict], done: float, train: tuple[float, float]) -> dict[str, float]:
        """Seconds by stage from the last sync to this one, without an evaluation or a checkpoint between them.

        Overhead is the time in which nothing sampled, verified, refined or trained: scheduling, feeding, sync.
        """
        begin = self.began
        seconds = stage_seconds(rows, (begin, done), others=[train, *self.pauses])
        paused = union_seconds(self.pauses, (begin, done))
        tokens = {y: sum(len(part(row, y, "ids") or ()) for row in rows) for y in ("y_o", "y_r")}
        out = {f"seconds/{stage}": seconds[stage] for stage in ("sample", "verify", "refine")}
        out |= {
            "seconds/step": done - begin - paused,
            "seconds/train": train[1] - train[0],
            "seconds/overhead": done - begin - seconds["busy"],
        }
        for name, y, stage in (("sampler", "y_o", "sample"), ("refiner", "y_r", "refine")):
            if seconds[stage]:
                out[f"tokens_per_s/{name}"] = tokens[y] / seconds[stage]
        return out

    def checkpoint(self, wait: bool = True) -> None:
        """Save the state after `step` steps, if it is new and if the learner is there, not in a step that failed."""
        if self.trainer.lost:
            return
        if self.trained == self.step != self.checkpoints.begun:
            begin = time.time()
            self.session.display.phase(f"writing checkpoint {self.step}")
            self.checkpoints.begin(self.step, self.version, self.recorded)
            self.pauses.append((begin, time.time()))
            self.session.display.phase("training")
        if wait:
            self.checkpoints.finish(wait=True)

    def close(self) -> None:
        self.metrics.close()
        self.trainer.stop(0 if self.session.stop.hurried else STOP_LEARNER_S)
