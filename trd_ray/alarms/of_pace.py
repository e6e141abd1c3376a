"""Alarms of time and machines: who is waited for, what is lost beside the work, what dies, and what runs full."""

from collections.abc import Callable
from statistics import median

from trd_ray.alarms import thresholds as t
from trd_ray.alarms.condition import AlarmCondition
from trd_ray.alarms.history import History, StepLine

POOLS = {"sample": "sampler.replicas", "refine": "refiner.replicas", "verify": "verify.max_tasks"}


def _shares(h: History, of: Callable[[StepLine], float | None]) -> float | None:
    """The median share of the last steps; None where they are fewer than PACE_STEPS, or too short to matter."""
    lines = h.newest(t.PACE_STEPS)
    steps = h.values("seconds/step", t.PACE_STEPS)
    if not steps or median(steps) < t.LONG_STEP_S:
        return None
    found = [part / took for line in lines if (part := of(line)) is not None and (took := line.get("seconds/step"))]
    return median(found) if len(found) == t.PACE_STEPS else None


def _stage(name: str) -> Callable[[StepLine], float | None]:
    return lambda line: line.get(f"seconds/{name}")


def _overlaps(h: History) -> bool:
    """Whether engines work while the learner trains; on policy one waits for the other, and a corpus needs none."""
    return h.around.samples and h.around.max_staleness != 0


def _learner_waits(h: History) -> str | None:
    share = _shares(h, _stage("wait"))
    if not _overlaps(h) or share is None or share < t.MOST_OF_A_STEP:
        return None
    busy = {stage: found for stage in POOLS if (found := _shares(h, _stage(stage))) is not None}
    longest = max(busy, key=lambda stage: busy[stage]) if busy else ""
    why = f"; {longest} is under way for {busy[longest]:.0%}: raise {POOLS[longest]}" if longest else ""
    return f"The learner waits for rows in {share:.0%} of a step, the median of {t.PACE_STEPS} steps{why}"


def _engines_wait(h: History) -> str | None:
    train = _shares(h, _stage("train"))
    busy = [found for stage in ("sample", "refine") if (found := _shares(h, _stage(stage))) is not None]
    if not _overlaps(h) or train is None or not busy or train < t.MOST_OF_A_STEP or max(busy) > t.ENGINES_BUSY:
        return None
    return f"Training takes {train:.0%} of a step, and engines are at work in {max(busy):.0%} of it at most"


def _engines_work(h: History) -> bool:
    busy = [found for stage in ("sample", "refine") if (found := _shares(h, _stage(stage))) is not None]
    return _below("train")(h) or (bool(busy) and max(busy) > t.MOST_OF_A_STEP)


def _verifier_slow(h: History) -> str | None:
    verify = _shares(h, _stage("verify"))
    others = [_shares(h, _stage(stage)) or 0.0 for stage in ("sample", "refine", "train")]
    if verify is None or verify < t.MOST_OF_A_STEP or verify < max(others):
        return None
    return f"Verification is under way in {verify:.0%} of a step, longer than sampling, refinement and training"


def _below(stage: str) -> Callable[[History], bool]:
    return lambda h: (share := _shares(h, _stage(stage))) is not None and share < t.MOST_END


def _overhead(h: History) -> str | None:
    share = _shares(h, _stage("overhead"))
    if share is None or share < t.OVERHEAD:
        return None
    return f"In {share:.0%} of a step nothing samples, verifies, refines or trains, the median of {t.PACE_STEPS} steps"


def _throughput_fell(h: History) -> str | None:
    rates = h.values("tokens_per_s/sampler", t.THROUGHPUT_STEPS)
    start, length = h.at_start("y_o/tokens_mean"), h.last.get("y_o/tokens_mean")
    is_longer = start is not None and length is not None and length > t.THROUGHPUT_LENGTH * start
    took = h.values("seconds/step", t.THROUGHPUT_STEPS)
    if not rates or not took or median(took) < t.LONG_STEP_S or is_longer:
        return None
    if not h.best_rate or median(rates) > t.THROUGHPUT_FELL * h.best_rate:
        return None
    return f"The sampler makes {median(rates):.0f} tokens a second, and made {h.best_rate:.0f} before"


def _throughput_is_back(h: History) -> bool:
    rates = h.values("tokens_per_s/sampler", t.THROUGHPUT_STEPS)
    return bool(rates) and median(rates) > t.THROUGHPUT_END * h.best_rate


def _slow_rank(h: History) -> str | None:
    lines = [line for line in h.newest(t.SLOW_RANK_STEPS) if line.get("learner/slowest_rank_ratio") is not None]
    if len(lines) < t.SLOW_RANK_STEPS or {line.get("learner/slowest_rank") for line in lines} == set():
        return None
    ranks = {int(line.get("learner/slowest_rank") or 0) for line in lines}
    ratio = median(line.get("learner/slowest_rank_ratio") or 1.0 for line in lines)
    if len(ranks) > 1 or ratio < t.SLOW_RANK:
        return None
    return (
        f"Rank {ranks.pop()} of the learner takes {ratio:.2f} times as long as the others in each of {len(lines)} steps"
    )


def _ranks_are_even(h: History) -> bool:
    ratio = h.last.get("learner/slowest_rank_ratio")
    return ratio is None or ratio < t.SLOW_RANK_END


def _slow_checkpoints(h: History) -> tuple[float, float] | None:
    """(seconds of the last ones, seconds of the steps between two) where each of them took longer than those."""
    took = [seconds for line in h.lines if (seconds := line.get("checkpoint/seconds")) is not None]
    steps = h.values("seconds/step", min(len(h.lines), t.PACE_STEPS))
    if len(took) < t.SLOW_CHECKPOINTS or not steps:
        return None
    newest = took[-t.SLOW_CHECKPOINTS :]
    return min(newest), h.around.checkpoint_every_steps * median(steps)


def _slow_checkpoint(h: History) -> str | None:
    found = _slow_checkpoints(h)
    if found is None or found[0] < max(found[1], t.SLOW_CHECKPOINT_S):
        return None
    return f"A checkpoint takes {found[0]:.0f} s to be written, and the steps between two take {found[1]:.0f} s"


def _checkpoints_are_fast(h: History) -> bool:
    found = _slow_checkpoints(h)
    took = h.last.get("checkpoint/seconds")
    return found is not None and took is not None and took < max(found[1], t.SLOW_CHECKPOINT_S)


def _engine_deaths(h: History) -> list[str]:
    found = h.events("engine", t.RESTARTS_STEPS)
    return [str(event.get("engine")) for event in found if event.get("what") in ("restarts", "rests")]


def _engines_restart(h: History) -> str | None:
    engines = _engine_deaths(h)
    if len(engines) < t.RESTARTS:
        return None
    return (
        f"Engines ended {len(engines)} times in the last {t.RESTARTS_STEPS} steps ({', '.join(sorted(set(engines)))})"
    )


def _learner_deaths(h: History) -> int:
    found = h.events("learner", t.RESTARTS_STEPS)
    return sum(event.get("phase") == "restarting" and "the nodes are others now" not in _said(event) for event in found)


def _said(event: object) -> str:
    return str(event.get("said", "")) if isinstance(event, dict) else ""


def _learner_restarts(h: History) -> str | None:
    count = _learner_deaths(h)
    if count < t.LEARNER_RESTARTS:
        return None
    return f"The learner started again {count} times in the last {t.RESTARTS_STEPS} steps"


def _spills(h: History) -> str | None:
    spilled = h.last.get("store/spilled_gib") or 0.0
    if spilled < t.SPILLED_GIB:
        return None
    return f"Ray's object store wrote {spilled:.1f} GiB to disk in step {h.last.step}, since its memory is full"


def _spills_no_more(h: History) -> bool:
    found = [line.get("store/spilled_gib") for line in h.newest(t.SPILLED_STEPS)]
    return len(found) == t.SPILLED_STEPS and not any(found)


def _disk_needs(h: History) -> float:
    sizes = [size for line in h.lines if (size := line.get("checkpoint/gib")) is not None]
    return max(t.DISK_LEAST_GIB, t.DISK_CHECKPOINTS * sizes[-1] if sizes else 0.0)


def _disk_full(h: History) -> str | None:
    free = h.last.get("disk/free_gib")
    if free is None or free >= _disk_needs(h):
        return None
    return f"The disk of the run directory has {free:.1f} GiB left, and the next checkpoint wants {_disk_needs(h):.1f}"


CONDITIONS = [
    AlarmCondition(
        "learner_waits",
        "The learner's GPUs stand still for want of rows.",
        "More engines in the pool that the sentence names (`trd scale` adds them while the run goes on), or fewer "
        "learner.workers.",
        _learner_waits,
        _below("wait"),
    ),
    AlarmCondition(
        "engines_wait",
        "The engines stand still while the learner trains.",
        "More learner.workers or a larger learner.tokens_per_micro_batch, or fewer sampler.replicas.",
        _engines_wait,
        _engines_work,
    ),
    AlarmCondition(
        "verifier_slow",
        "Engines and learner wait for verdicts.",
        "Raise verify.max_tasks where there are CPUs; for code, verify.max_tests bounds the tests of a program.",
        _verifier_slow,
        _below("verify"),
    ),
    AlarmCondition(
        "overhead",
        "Time goes to scheduling, feeding and weight transfer.",
        "Larger steps (rollouts_per_step), another sync.backend; `timeline.json` shows what was waited for.",
        _overhead,
        lambda h: (share := _shares(h, _stage("overhead"))) is not None and share < t.OVERHEAD_END,
    ),
    AlarmCondition(
        "throughput_fell",
        "Engines are gone, or a GPU is throttled or shared with somebody.",
        "`trd status` shows the engines that are up and `trd logs` why others are not; `nvidia-smi` shows clocks.",
        _throughput_fell,
        _throughput_is_back,
    ),
    AlarmCondition(
        "slow_rank",
        "All ranks wait for it in every layer.",
        "Look at that GPU and its node (clocks, neighbours, links); a node that is drained is left at the next step.",
        _slow_rank,
        _ranks_are_even,
    ),
    AlarmCondition(
        "slow_checkpoint",
        "One is not written when the next is due, so the run waits for it.",
        "Raise checkpoint.every_steps, use faster storage, or set checkpoint.export=adapter with adapters.",
        _slow_checkpoint,
        _checkpoints_are_fast,
    ),
    AlarmCondition(
        "engine_restarts",
        "What ends them comes again: mostly memory, or a request that the engine cannot take.",
        "See the reasons in events.jsonl and each engine's log (`trd logs`); for memory lower sampler.max_concurrent.",
        _engines_restart,
        lambda h: not _engine_deaths(h),
    ),
    AlarmCondition(
        "learner_restarts",
        "Each start trains the steps since the last checkpoint again.",
        "See why in events.jsonl; for memory lower learner.tokens_per_micro_batch, and lower checkpoint.every_steps.",
        _learner_restarts,
        lambda h: not _learner_deaths(h),
    ),
    AlarmCondition(
        "spilling",
        "Rows go through the disk, which slows the stream, and a full disk ends it.",
        "Raise cluster.object_store_gib (on a cluster: `ray start --object-store-memory`), or lower rollouts_per_step.",
        _spills,
        _spills_no_more,
    ),
    AlarmCondition(
        "disk_nearly_full",
        "The run pauses where the disk is full.",
        "Make room, or lower checkpoint.keep_last; checkpoint.mirror keeps copies elsewhere.",
        _disk_full,
        lambda h: (free := h.last.get("disk/free_gib")) is None or free > t.DISK_END * _disk_needs(h),
    ),
    AlarmCondition(
        "no_progress",
        "Something hangs, or takes far longer than it did.",
        "`trd status` says what is awaited, `trd logs` what the processes said last; `trd stop` ends the run with what "
        "is recorded.",
        lambda h: None,  # it begins between two steps: see standstill.py
        lambda h: True,  # a step was recorded
    ),
]
