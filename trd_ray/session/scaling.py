"""The numbers of a run's engines while it goes on: asked for with `trd scale`, or decided after a step.

    door --scale--> asked()                    --+
    a step's loads -> ScalePolicy.after_step() --+-> Resizing, in a thread of its own -> pools
                                                 +-> scale.json, events.jsonl, the screen

- A pool that a person has scaled is the person's: the policy leaves it alone until `trd scale RUN POOL=auto`.
- scale.json keeps the numbers for the run that goes on, as long as the recipe asks for the same replicas as before.
- Engines that leave answer what they hold. New ones serve once they have the weights of the version that is served.
- What cannot be is said, and the run goes on with the engines that it has.

At the end of the run `close` gives up what is under way; the pools stop their engines.
"""

import asyncio
import contextlib
import json
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import ray

from trd_ray.config import REFINER, EngineRange, Recipe, did_you_mean, keys_of, role_of, teacher_of
from trd_ray.engine.actor import reason
from trd_ray.engine.launch import LOAD_EVERY_S
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.scale.loads import moments
from trd_ray.scale.scale_policy import EngineBounds, ScalePolicy
from trd_ray.session.engine_room import SeatedRoom
from trd_ray.session.inputs import Inputs
from trd_ray.session.resizing import Resizing
from trd_ray.session.session import Session

FILE = "scale.json"
ANSWER_S = 10.0  # for the pools to tell their loads
AUTO = "auto"
MOST = 1000  # engines of a pool that a person may ask for


class Scaling:
    def __init__(self, session: Session):
        """`session` has started its pools. At the end of the `with` block what is under way is given up."""
        self.session = session
        self.recipe = session.recipe
        self.replicas, self.by_hand = _asked_and_by_hand(session)
        self.bounds = {name: _bounds(replicas) for name, replicas in self.replicas.items()}
        self.room = SeatedRoom(session)
        self.resizing = Resizing(
            session.pools,
            {name: session.plan.specs[name].replicas for name in session.pools},
            self.room,
            grows=self._keep,  # a run that ends while a new engine starts goes on with it
        )
        self.room.newer = lambda: self.resizing.queued > 0
        scale = self.recipe.scale
        self.policy = ScalePolicy({}, gain=scale.gain, calm_steps=scale.calm_steps, window_s=scale.window_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._doing: list[Future] = []
        self._changed_s = 0.0  # Unix time at which the last change was over
        self._keeping = threading.Lock()
        session.door.on("scale", self.asked)
        session.door.shows("scale", self.figures)

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.resizing.counts)

    def figures(self) -> dict[str, dict[str, Any]]:
        """What status.json shows."""
        return {
            name: {"engines": count, "min": self.bounds[name].min, "max": self.bounds[name].max, "by": self._who(name)}
            for name, count in self.counts.items()
        }

    def _who(self, name: str) -> str:
        if name in self.by_hand:
            return "hand"
        return "policy" if self.bounds[name].min < self.bounds[name].max else "recipe"

    # By hand

    def asked(self, arguments: dict[str, Any]) -> str:
        """What is done about `trd scale RUN refiner=3`; raises UserError for what cannot be."""
        if not arguments:
            raise UserError("say which pool is to have how many engines, as in refiner=3")
        wanted = {name: self._wanted(name, count) for name, count in arguments.items()}
        if self.session.starting or self.session.to_start:
            raise UserError("its engines still start: ask again when they are up")
        if self.room.over.is_set():
            raise UserError("the run is about to end")
        numbers = {name: count for name, count in wanted.items() if count is not None}
        self._require(numbers)
        left = {name: self._within_bounds(name) for name, count in wanted.items() if count is None}
        self.by_hand = (self.by_hand | numbers.keys()) - left.keys()
        said = [f"{name} is left to the policy of its bounds" for name in left]
        before = self.counts
        said += [f"{name} stays at {count}" for name, count in numbers.items() if count == before[name]]
        changed = {name: count for name, count in (numbers | left).items() if count != before[name]}
        if changed:
            said.append(f"{_changes(before, changed)}: {_meaning(before, changed)}")
        if self._busy():  # what is under way may end at another number than there is now
            changed |= numbers
        changed |= {name: count for name, count in numbers.items() if self.resizing.late[name]}  # those still leave
        if changed:
            self._begin(changed, "hand", "asked for")
        self._keep()
        return "; ".join(said)

    def _within_bounds(self, name: str) -> int:
        """The number from which the policy can go on: a person may have asked for one that it may not choose."""
        bounds = self.bounds[name]
        return min(max(self.counts[name], bounds.min), bounds.max)

    def _wanted(self, name: str, count: Any) -> int | None:
        """The number that is asked for, None for auto."""
        pool, pools = name, list(self.session.pools)
        if role_of(pool) == REFINER and pool not in pools and self.recipe.shares_engines:
            raise UserError(
                f"the sampler's engines also refine in this run (placement={self.recipe.placement}): say "
                f"sampler={count} instead"
            )
        if pool == REFINER and pool not in pools and self.recipe.teachers:
            each = " or ".join(f"{one}={count}" for one in pools if role_of(one) == REFINER)
            raise UserError(f"this run has several teachers, whose engines are scaled apart: say {each or 'sampler=N'}")
        if teacher_of(pool) and role_of(pool) in pools:
            raise UserError(f"this run has one teacher: say {role_of(pool)}={count} instead")
        if pool not in pools:
            raise UserError(f"this run has no engines of {pool!r}{did_you_mean(pool, pools)}")
        if count == AUTO:
            if self.bounds[pool].min == self.bounds[pool].max:
                raise UserError(
                    f"{keys_of(pool)}.replicas of this run's recipe is a number: say how many engines it should have"
                )
            return None
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST:
            raise UserError(f"{pool} must have 1 engine or more, and {MOST} at most, but {count!r} was asked for")
        return count

    def _require(self, wanted: dict[str, int]) -> None:
        """Raise UserError for numbers that this run cannot have, however long one waits."""
        before = self.counts
        changed = {name for name, count in wanted.items() if count != before[name]}
        if self.recipe.takes_turns and any(self.session.plan.specs[name].memory_utilization for name in changed):
            raise UserError(
                "engines and ranks have the same GPUs in turn in this run (placement=timeshare), so the number of "
                "engines is fixed: begin a run with other numbers, or with placement=separate to change them"
            )
        if self.session.plan.sync_backend == "ipc" and changed & self.session.following().keys():
            raise UserError(
                "the engines that get this run's weights share their GPUs with the ranks of the learner, one each "
                "(sync.backend=ipc), so their number is fixed: begin a run with sync.backend=nccl to change it"
            )
        grown = {name: count for name, count in wanted.items() if count > before[name]}
        if grown and self.room.local and not self.room.fits(before | wanted, self.resizing.seated):
            [name, *_] = grown
            free = self.room.at_once(name, grown[name] - before[name])
            raise UserError(
                f"this machine has no room for {grown[name]} engines of the {name}: {before[name] + free} are the most "
                "beside the others, so ask for fewer, or take some from another pool in the same command"
            )

    # By the policy

    def after_step(self) -> None:
        """Look whether other numbers would have made the step faster; called once a step."""
        free = {name: b for name, b in self.bounds.items() if b.min < b.max and name not in self.by_hand}
        if not free:
            return
        series = self._loads()
        if series is None or self._busy():
            return
        counts, seated = self.counts, self.resizing.seated
        self.policy.limits = {
            name: EngineBounds(free[name].min, free[name].max) if name in free else EngineBounds(count, count)
            for name, count in counts.items()
        } | {
            name: EngineBounds(free[name].min, counts[name]) for name in free if not self.resizing.may_grow(name)
        }  # fmt: skip
        found = self.policy.after_step(
            moments(series, LOAD_EVERY_S, self._changed_s), counts, lambda wanted: self.room.fits(wanted, seated)
        )
        if found:
            changed = {name: count for name, count in found.counts.items() if count != counts[name]}
            self._begin(changed, "policy", found.why)
            self._keep()

    def _busy(self) -> bool:
        """Whether a change is under way."""
        over = [one for one in self._doing if one.done()]
        if over:
            self._doing = [one for one in self._doing if not one.done()]
            self.policy.changed()
        return bool(self._doing)

    def _loads(self) -> dict[str, list] | None:
        pools: dict[str, Any] = self.session.pools
        asked = [pool.take_loads.remote() for pool in pools.values()]
        with contextlib.suppress(Exception):  # a pool that has died is met by those who need it
            return dict(zip(pools, ray.get(asked, timeout=ANSWER_S), strict=True))
        return None

    # The change

    def _begin(self, wanted: dict[str, int], by: str, why: str) -> None:
        said = f"{_changes(self.counts, wanted)} ({why})"
        self._tell(said, by=by, wanted=wanted)
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="scaling", daemon=True).start()
        self._doing.append(asyncio.run_coroutine_threadsafe(self._bring(wanted), self._loop))

    async def _bring(self, wanted: dict[str, int]) -> None:
        try:
            problems = await self.resizing.bring(wanted)
        except Exception as e:  # such as that of a pool that has died
            problems = [f"the numbers of engines could not be changed: {reason(e)}"]
        self._changed_s = time.time()
        for problem in problems:
            self._tell(problem)
        if not problems:
            now = " and ".join(f"{count} engines" if count > 1 else "1 engine" for count in wanted.values())
            self._tell(f"{' and '.join(wanted)} {'have' if len(wanted) > 1 else 'has'} {now} now", engines=self.counts)
        self._keep()

    def _tell(self, said: str, **facts: Any) -> None:
        self.session.directory.event("scale", said=said, **facts)
        self.session.display.say(said)

    def _keep(self) -> None:
        """Write down how many engines there are, for the run that goes on. Two threads do so."""
        with self._keeping, contextlib.suppress(OSError):  # a full disk is met by what the run must keep
            tree = {
                name: {"engines": count, "by": self._who(name), "replicas": self.replicas[name]}
                for name, count in self.counts.items()
            }
            write_atomically(self.session.directory.path / FILE, json.dumps(tree, indent=1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.room.over.set()
        if loop := self._loop:
            ended = asyncio.run_coroutine_threadsafe(_cancel_all(), loop)
            ended.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def with_kept_numbers(inputs: Inputs, path: Path) -> Inputs:
    """The inputs of a run that goes on in the directory `path`, with as many engines as it had when it ended."""
    recipe = inputs.recipe
    for name, kept in _kept(path).items():
        engines = recipe.engines.get(name)
        if engines and kept.get("replicas") == _replicas(recipe, name):
            recipe = recipe.with_replicas(name, _starting(engines.replicas, kept["engines"]))
    return replace(inputs, recipe=recipe)


def _starting(replicas: int | EngineRange, count: int) -> int | EngineRange:
    """The replicas of a pool that begins with the number that was kept."""
    if isinstance(replicas, int):
        return count
    return EngineRange(min=min(count, replicas.min), max=max(count, replicas.max), start=count)


def _asked_and_by_hand(session: Session) -> tuple[dict[str, Any], set[str]]:
    """What the recipe asks for, before `with_kept_numbers`, and the pools that begin with the number of a person."""
    asked = {name: _replicas(session.recipe, name) for name in session.pools}
    by_hand = set()
    for name, kept in _kept(session.directory.path).items():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a damaged file
            before = kept["replicas"] if isinstance(kept["replicas"], int) else EngineRange(**kept["replicas"])
            began = _starting(before, kept["engines"])
            if name in asked and asked[name] == (began if isinstance(began, int) else began.model_dump()):
                asked[name] = kept["replicas"]
                by_hand |= {name} if kept.get("by") == "hand" else set()
    return asked, by_hand


def _bounds(replicas: Any) -> EngineRange:
    if isinstance(replicas, int):
        return EngineRange(min=replicas, max=replicas, start=replicas)
    return EngineRange(**replicas)


def _replicas(recipe: Recipe, name: str) -> Any:
    """As scale.json holds them."""
    return recipe.engines[name].model_dump(mode="json", include={"replicas"})["replicas"]


def _kept(path: Path) -> dict[str, dict[str, Any]]:
    """What scale.json holds; nothing if it is damaged, since the recipe says enough."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        tree = json.loads((path / FILE).read_text())
        if all(isinstance(kept["engines"], int) and kept["engines"] > 0 for kept in tree.values()):
            return tree
    return {}


def _changes(before: dict[str, int], wanted: dict[str, int]) -> str:
    return ", ".join(
        f"{name} {before[name]} -> {count}" if count != before[name] else f"{name} stays at {count}"
        for name, count in wanted.items()
    )


def _meaning(before: dict[str, int], wanted: dict[str, int]) -> str:
    more = any(count > before[name] for name, count in wanted.items())
    fewer = any(count < before[name] for name, count in wanted.items())
    parts = ["new engines serve once they are up and have the weights"] * more
    return "; ".join(parts + ["those that leave answer first what they hold"] * fewer)
