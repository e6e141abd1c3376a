"""Keys that are each right and cannot work together. Every function raises ValueError, which says what to set."""

from collections.abc import Mapping

from trd_ray.config.close_words import did_you_mean
from trd_ray.config.diagnostic_keys import DiagnosticsConfig
from trd_ray.config.evaluation_keys import EvaluationConfig, evaluated
from trd_ray.config.rollout_keys import (
    DataConfig,
    EngineConfig,
    RefinerConfig,
    SamplerConfig,
    StreamConfig,
    StudentConfig,
    TeacherConfig,
)
from trd_ray.config.teachers import NAME, NamedTeacherConfig, keys_of
from trd_ray.config.training_keys import CheckpointConfig, LearnerConfig, LossConfig, SyncConfig, TrainConfig
from trd_ray.config.verify_keys import VerifyConfig


def require_teacher(student: StudentConfig, teacher: TeacherConfig, group: str = "teacher") -> None:
    """`group` is where the recipe has the keys of this teacher."""
    if teacher.mode == "opd" and not teacher.path:
        raise ValueError(f"{group}.mode is opd but {group}.path is empty: set {group}.path, or {group}.mode=opsd")
    if teacher.mode == "opsd" and teacher.path and teacher.path != student.path:
        raise ValueError(
            f"{group}.mode is opsd, where the teacher is the student itself, but {group}.path names another model: "
            f"leave {group}.path empty, or set {group}.mode=opd"
        )
    if teacher.mode == "opd" and teacher.follow != "frozen":
        raise ValueError(
            f"{group}.follow={teacher.follow} has no meaning in OPD, whose teacher is another model: "
            f"set {group}.follow=frozen"
        )


def require_teachers(
    teacher: TeacherConfig, teachers: Mapping[str, NamedTeacherConfig], data: DataConfig, placement: str
) -> None:
    """What several teachers cannot have, and what one cannot have of theirs."""
    if not teachers:
        if data.teacher_column:
            raise ValueError(
                f"data.teacher_column is {data.teacher_column!r}, but the recipe has no teachers by name: set "
                "teachers={NAME: {path: ..., mode: opd}, ...}, or leave data.teacher_column out"
            )
        return
    if teacher != TeacherConfig():
        raise ValueError(
            f"teacher and teachers ({', '.join(teachers)}) are both set: move the keys of teacher into a teacher of "
            "its own below teachers"
        )
    for name in teachers:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"teachers.{name} is no name of a teacher, which stands in names of pools and files: use letters, "
                "digits, - and _"
            )
    if placement == "shared":
        raise ValueError(
            "placement=shared has one pool, whose model refines every row, but teachers has several: set "
            "placement=separate"
        )
    averages = [name for name, one in teachers.items() if one.follow == "ema"]
    if len(averages) > 1:
        raise ValueError(
            f"the teachers {' and '.join(averages)} follow averages (follow=ema), but the learner keeps one: let all "
            "but one of them be frozen or live"
        )


def require_trajectory(train: TrainConfig, refiner: RefinerConfig, group: str = "refiner") -> None:
    """`group` is where the recipe has the keys of this refiner."""
    chooses = refiner.select in ("best_score", "nearest")  # the other rules were always accepted
    if train.trajectory != "mixture" and train.mixture_share != 0.5:
        raise ValueError(
            f"train.mixture_share is of a mixture, but train.trajectory is {train.trajectory}: set "
            "train.trajectory=mixture, or leave it out"
        )
    if train.trajectory == "repair" and train.when_refinement_fails == "raw_if_passed":
        raise ValueError(
            "train.when_refinement_fails=raw_if_passed has no meaning with train.trajectory=repair, which refines only "
            "attempts that failed: set train.when_refinement_fails=drop"
        )
    if train.trajectory == "repair" and train.subset == "passed":
        raise ValueError(
            "train.subset=passed leaves out all that train.trajectory=repair refines: set train.trajectory=y_o, or "
            "train.subset=all"
        )
    of_refinements = {
        f"{group}.select={refiner.select}": chooses,
        f"{group}.max_edited_share": refiner.max_edited_share is not None,
        f"{group}.from={refiner.begins}": refiner.begins != "attempt",
    }
    if train.trajectory in ("y_o", "reference") and any(of_refinements.values()):
        key = next(key for key, given in of_refinements.items() if given)
        raise ValueError(
            f"{key} is about refinements, but train.trajectory={train.trajectory} trains on none: leave it out, or set "
            "another train.trajectory"
        )
    if refiner.begins != "relay" and refiner.relay_logprob != RefinerConfig().relay_logprob:
        raise ValueError(
            f"{group}.relay_logprob says where a relay begins, but {group}.from is {refiner.begins}: set "
            f"{group}.from=relay, or leave it out"
        )
    if refiner.begins != "attempt" and refiner.feedback != "none":
        raise ValueError(
            f"{group}.feedback={refiner.feedback} tells the verdict of an attempt, which {group}.from={refiner.begins} "
            f"does not show: set {group}.feedback=none, or {group}.from=attempt"
        )
    if chooses and refiner.n == 1:
        raise ValueError(
            f"{group}.select={refiner.select} has a single refinement to choose from: set {group}.n=4, or "
            f"{group}.select=first"
        )


def require_several(train: TrainConfig, sampler: SamplerConfig) -> None:
    if train.subset == "best" and sampler.n == 1:
        raise ValueError(
            "train.subset=best takes one of a problem's rollouts, but sampler.n is 1: set sampler.n=2, or "
            "train.subset=all"
        )


def require_loss(loss: LossConfig) -> None:
    if loss.divergence != "jsd" and "beta" in loss.model_fields_set and loss.beta != 0.5:
        raise ValueError(f"loss.beta is of jsd, but loss.divergence is {loss.divergence}: leave one of them out")
    if loss.rest == "tail" and not loss.top_k:
        raise ValueError("loss.rest=tail has no meaning without loss.top_k: set loss.top_k=32, or leave it out")
    if not loss.has_teacher:
        of_distributions = {"top_k": None, "temperature": 1.0, "token_clip": None, "vocab_clip": None}
        if given := [f"loss.{key}" for key, default in of_distributions.items() if getattr(loss, key) != default]:
            raise ValueError(
                f"{' and '.join(given)} compare two distributions, but loss.divergence=cross_entropy has labels and no "
                "teacher: leave them out, or set another loss.divergence"
            )


def require_span(loss: LossConfig, train: TrainConfig) -> None:
    if loss.span == "edited" and train.trajectory in ("y_o", "reference"):
        raise ValueError(
            "loss.span=edited is about what a refinement changes, but "
            f"train.trajectory={train.trajectory} trains on none: set loss.span=all, or another train.trajectory"
        )


def require_scorer(loss: LossConfig, diagnostics: DiagnosticsConfig) -> None:
    if diagnostics.rows and not loss.has_teacher:
        raise ValueError(
            f"diagnostics.rows={diagnostics.rows} has a teacher score rows, but with loss.divergence=cross_entropy the "
            "learner has none: set diagnostics.rows=0, or another loss.divergence"
        )


def require_adapters(learner: LearnerConfig, sync: SyncConfig, checkpoint: CheckpointConfig) -> None:
    for key, value in (("sync.lora", sync.lora), ("checkpoint.export", checkpoint.export)):
        if value == "adapter" and not learner.lora:
            raise ValueError(f"{key}=adapter needs adapters: set learner.lora={{}}, or {key}=merged")


def require_passes(data: DataConfig) -> None:
    if data.passes > 1 and data.source != "corpus":
        raise ValueError(
            f"data.passes={data.passes} is how often the rows of a corpus are met, but data.source is {data.source}, "
            "whose rollouts are sampled anew: set steps, which may be more than one pass has"
        )


def require_evaluation(evaluation: EvaluationConfig, stream: StreamConfig, data: DataConfig) -> None:
    if evaluation.every_steps and stream.max_staleness == "never" and data.source == "problems":
        raise ValueError(
            "evaluation.every_steps gives the engines the newest weights, but with stream.max_staleness=never they "
            "sample with the initial ones: leave it out, or set stream.max_staleness to a number"
        )


def require_prose(verify: VerifyConfig) -> None:
    if verify.answer_in_formula and not verify.answer_in_prose:
        raise ValueError(
            "verify.answer_in_formula is for responses that state no answer in prose, but verify.answer_in_prose "
            "is false: set verify.answer_in_prose=true, or leave it out"
        )


def require_full_marks(verify: VerifyConfig) -> None:
    """The scorers of reasoning_gym give partial credit for what is no answer."""
    lowered = {"verify": verify.pass_at} if verify.function == "reasoning_gym" else {}
    for name, one in verify.functions.items():
        if one.function == "reasoning_gym" and one.pass_at is not None:
            lowered[f"verify.functions.{name}"] = one.pass_at
    for key, pass_at in lowered.items():
        if pass_at != 1.0:
            raise ValueError(
                f"{key}.pass_at is {pass_at:g}, but an item of reasoning_gym passes at 1.0 alone: leave it out, since "
                "partial credit is kept as the score, by which refiner.select=best_score chooses"
            )


def require_told(verify: VerifyConfig, refiner: RefinerConfig) -> None:
    if refiner.feedback != "none" and verify.asks_a_person and not verify.by and not verify.by_source:
        raise ValueError(
            f"refiner.feedback={refiner.feedback} tells the refiner a verdict, but with verify.function=review there "
            "is none before a person has judged: set refiner.feedback=none"
        )


def require_best(checkpoint: CheckpointConfig, evaluation: EvaluationConfig) -> None:
    """A checkpoint that is best by an evaluation needs an evaluation that falls on a checkpoint."""
    best = checkpoint.best
    every = evaluation.every_steps
    if not (best or "").startswith("evaluation/"):
        return
    known = [metric for name in evaluation.names or [""] for metric in evaluated(name)]
    if best not in known:
        raise ValueError(f"checkpoint.best names no metric{did_you_mean(str(best), known)}")
    meets = evaluation.names and (evaluation.after or (every and not checkpoint.every_steps % every))
    if not meets:
        raise ValueError(
            f"checkpoint.best is {best}, but no evaluation falls on a checkpoint: set "
            "evaluation.path or evaluation.sets, and checkpoint.every_steps to a multiple of evaluation.every_steps"
        )


def require_sendable_adapters(
    learner: LearnerConfig, sync: SyncConfig, teacher: TeacherConfig, group: str = "teacher"
) -> None:
    if sync.lora != "adapter":
        return
    if sync.in_flight == "keep":
        raise ValueError(
            "sync.in_flight=keep cannot give running requests another adapter: set sync.in_flight=drain, or "
            "sync.lora=merged"
        )
    if learner.lora and learner.lora.rank > 512:
        raise ValueError(
            f"vLLM takes adapters of rank 512 at most, but learner.lora.rank is {learner.lora.rank}: "
            "lower it, or set sync.lora=merged"
        )
    if teacher.follow == "ema":
        raise ValueError(
            f"{group}.follow=ema has the refiner follow an average of the adapters, but sync.lora=adapter sends "
            "the newest ones: set sync.lora=merged"
        )


def require_shareable(
    teacher: TeacherConfig, sampler: SamplerConfig, refiner: RefinerConfig, learner: LearnerConfig, sync: SyncConfig
) -> None:
    """One pool that also refines has one model below both roles, and keeps it where the teacher is frozen."""
    if why := unshareable(teacher, sampler, refiner, learner, sync):
        raise ValueError(f"placement=shared {why}, or placement=separate")


def unshareable(
    teacher: TeacherConfig, sampler: SamplerConfig, refiner: RefinerConfig, learner: LearnerConfig, sync: SyncConfig
) -> str | None:
    """Why one pool could not sample and refine, and what to set; None where it could."""
    if teacher.mode == "opd":
        return (
            "refines on the sampler's engines, but in OPD the teacher is another model: set teacher.mode=opsd and "
            "leave teacher.path empty"
        )
    if teacher.follow == "ema":
        return (
            "refines with the initial student or with the newest one, but teacher.follow=ema with an average: set "
            "teacher.follow=frozen or teacher.follow=live"
        )
    if teacher.follow == "frozen" and not (learner.lora and sync.lora == "adapter"):
        return (
            "with teacher.follow=frozen samples with an adapter and refines without it: set learner.lora={} and "
            "sync.lora=adapter; or set teacher.follow=live"
        )
    if refiner.dtype and refiner.dtype != (sampler.dtype or learner.dtype):
        return (
            f"refines on the sampler's engines, which compute in {sampler.dtype or learner.dtype}, but refiner.dtype "
            f"is {refiner.dtype}: leave it out"
        )
    return None


def require_turns(
    engines: Mapping[str, EngineConfig],
    judge: EngineConfig,
    learner: LearnerConfig,
    sync: SyncConfig,
    stream: StreamConfig,
) -> None:
    """What placement=timeshare cannot have. `engines` are the pools that rest while the learner works."""
    if stream.max_staleness not in (0, "never"):
        raise ValueError(
            "placement=timeshare has the engines rest while the learner works, so that no rollout is made ahead, but "
            f"stream.max_staleness is {stream.max_staleness}: set stream.max_staleness=0, or placement=separate"
        )
    if sync.backend == "nccl":
        raise ValueError(
            "sync.backend=nccl needs GPUs of their own for engines and ranks, but placement=timeshare has them take "
            "turns on the same: set sync.backend=auto, or placement=separate"
        )
    if not isinstance(learner.workers, int):
        raise ValueError(
            "placement=timeshare has engines and ranks on the same GPUs, so neither number may change, but "
            f"learner.workers is a range: set learner.workers={learner.bounds.max}, or placement=separate"
        )
    for pool, engine in engines.items():
        _require_turns_of(keys_of(pool), engine)
    if learner.gpus is not None:
        raise _whole_in_turn("learner.gpus", learner.gpus)
    if judge.gpus and judge.gpus % 1:
        raise ValueError(
            f"placement=timeshare has engines and ranks take whole GPUs in turn, but judge.gpus is {judge.gpus:g}, "
            "which could be of one of those: set judge.gpus=1, or placement=separate"
        )


def _whole_in_turn(key: str, gpus: float) -> ValueError:
    return ValueError(
        f"placement=timeshare has engines and ranks take whole GPUs in turn, but {key} is {gpus:g}: leave it out "
        f"({key}=null)"
    )


def _require_turns_of(group: str, engine: EngineConfig) -> None:
    """`group` is where the recipe has the keys of this pool."""
    if not isinstance(engine.replicas, int):
        raise ValueError(
            "placement=timeshare has engines and ranks on the same GPUs, so neither number may change, but "
            f"{group}.replicas is a range: set {group}.replicas={engine.bounds.max}, or placement=separate"
        )
    if engine.gpus is not None:
        raise _whole_in_turn(f"{group}.gpus", engine.gpus)
    if engine.tensor_parallel > 1:
        raise ValueError(
            "placement=timeshare has each engine on the GPU of one rank, since Ray gives an engine a share of one GPU "
            f"alone, but {group}.tensor_parallel is {engine.tensor_parallel}: set {group}.tensor_parallel=1, or "
            "placement=separate"
        )
