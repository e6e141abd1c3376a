"""What vLLM's scheduler says of itself after each of its steps, of which the last word is kept.

    AsyncLLM.from_engine_args(..., stat_loggers=[view]) --record--> SchedulerView --> Viewed.load() -> EngineLoad

vLLM calls what it is given as if it were a class of loggers, and then the methods below. It counts for the logger only
where there is one.
"""

from functools import cached_property
from typing import Any

from trd_ray.scale.loads import EngineLoad


class SchedulerView:
    def __init__(self) -> None:
        self.last = EngineLoad(0, 0, 0.0)

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> "SchedulerView":
        return self

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        if scheduler_stats is not None:
            waiting = scheduler_stats.num_waiting_reqs
            self.last = EngineLoad(scheduler_stats.num_running_reqs, waiting, scheduler_stats.kv_cache_usage)

    def log_engine_initialized(self) -> None: ...

    def log(self) -> None: ...

    def record_sleep_state(self, is_awake: int, level: int) -> None: ...

    def record_admission_rejection(self, reason: Any) -> None: ...


class Viewed:
    """An engine that tells its load."""

    @cached_property
    def view(self) -> SchedulerView:
        return SchedulerView()

    async def load(self) -> EngineLoad:
        return self.view.last
