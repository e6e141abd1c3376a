"""From the rows of a run and the CPU of its processes to the figures of the stream benchmark.

rows/step-*.parquet -> StepFacts -> bound --.
Seen: times, Usage before and after --------+-> Report -> text, JSON
"""

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from stream_bench.meter import DRIVER, HOSTS, LEARNER, Usage
from stream_bench.settings import Settings
from trd_ray.record.bounds import StepSeconds, bound

ALONE = "stand-in alone"


@dataclass
class Seen:
    """What the driver notes while the run goes on."""

    up_at: float = 0.0  # when all engines that sample were up
    recorded_at: list[float] = field(default_factory=list)  # for each step
    first: Usage | None = None  # after the first step
    last: Usage | None = None  # after the last step that is measured
    idle: tuple[Usage, Usage, float] | None = None  # before and after so many seconds in which nothing was done
    stand_in: tuple[float, float] = (0.0, 0.0)  # CPU seconds that the stand-in itself has used, at the same times


@dataclass(frozen=True)
class StepFacts:
    """The slowest row of a step, when the step's first request began and when each row was refined."""

    raw_tokens: int
    refined_tokens: int
    started_at: float
    refined_at: list[float]


def step_facts(file: Path) -> StepFacts:
    import pyarrow.parquet as pq

    parts = [f"y_o.{name}" for name in ("ids", "start_s")] + [f"y_r.{name}" for name in ("ids", "start_s", "seconds")]
    table = pq.ParquetFile(file).read(columns=parts)

    def column(y: str, name: str) -> Any:
        part: Any = table[y].combine_chunks()
        return part.field(name)

    raw, refined = (column(y, "ids").value_lengths().to_pylist() for y in ("y_o", "y_r"))
    ends = [a + b for a, b in zip(*(column("y_r", n).to_pylist() for n in ("start_s", "seconds")), strict=True)]
    slowest = max(zip(raw, refined, strict=True), key=sum)
    return StepFacts(*slowest, min(column("y_o", "start_s").to_pylist()), ends)


def bound_s(s: Settings, facts: StepFacts) -> float:
    """The least seconds that a step can take where such steps follow one another."""
    sampled, refined = (n * s.seconds_a_token for n in (facts.raw_tokens, facts.refined_tokens))
    # Where nothing becomes stale, nothing waits for an update either.
    in_flight = "keep" if s.staleness == "never" else s.in_flight
    return bound(StepSeconds(sampled, refined, s.train_seconds), s.together - 1, in_flight)


@dataclass(frozen=True)
class Spent:
    """CPU of one process in the measured steps."""

    role: str
    seconds: float
    idle_share: float  # of a core, which it takes while no row is on its way
    rows: int  # that it worked on

    def of_rows(self, span_s: float) -> float:
        """Seconds that its rows took."""
        return max(0.0, self.seconds - span_s * self.idle_share)


@dataclass(frozen=True)
class Report:
    settings: dict[str, Any]
    wall_s: float
    bound_s: float
    ratio: float
    slowest_s: dict[str, float]  # S, R, T: means over the measured steps
    first_request_s: float  # from the sampler being up to the first request
    cpu_ms_a_row: dict[str, float]  # by role
    cpu_ms_a_row_in_all: float  # without the engines' hosts
    idle_share: dict[str, float]  # of a core, by role, while no row is on its way
    busiest: list[dict[str, Any]]  # processes: role, share of a core, rows a second at which it fills one
    store_mib: float
    driver_mib: float
    walls_s: list[float]


def report(s: Settings, seen: Seen, folder: Path) -> Report:
    facts = [step_facts(file) for file in sorted((folder / "run" / "rows").glob("step-*.parquet"))]
    assert seen.last and len(facts) == s.steps
    recorded_at = seen.recorded_at[: s.steps - s.last_steps]
    walls = [b - a for a, b in pairwise(recorded_at)]
    span, measured = sum(walls), facts[1 : len(recorded_at)]
    wall, least = span / len(walls), _mean([bound_s(s, f) for f in measured])
    # Rows of later steps are already on their way when the first step ends, so each side counts what it finished.
    recorded = s.rows * len(measured)
    begin, end = recorded_at[0], recorded_at[-1]
    refined = sum(begin <= t <= end for f in facts for t in f.refined_at) or recorded
    spent = _spent(seen, recorded, refined)
    cpu, idle = _by_role(spent, span)
    cpu[ALONE] = 1e3 * (seen.stand_in[1] - seen.stand_in[0]) / refined
    in_all = sum(ms for role, ms in cpu.items() if role not in (HOSTS, ALONE))
    tokens = {"S": [f.raw_tokens for f in measured], "R": [f.refined_tokens for f in measured]}
    slowest = {name: _mean(n) * s.seconds_a_token for name, n in tokens.items()} | {"T": s.train_seconds}
    return Report(
        asdict(s), wall, least, wall / least, slowest, facts[0].started_at - seen.up_at, cpu, in_all, idle,
        _busiest(spent, span), seen.last.store_bytes / 2**20, seen.last.driver_bytes / 2**20, walls,
    )  # fmt: skip


def _mean(values: list) -> float:
    return sum(values) / len(values)


def _spent(seen: Seen, recorded: int, refined: int) -> list[Spent]:
    assert seen.first and seen.last and seen.idle
    before, after, idle_s = seen.idle

    def between(pid: str, a: Usage, b: Usage) -> float:
        return b.processes.get(pid, ("", 0.0))[1] - a.processes.get(pid, ("", 0.0))[1]

    found = []
    for pid, (role, _) in seen.last.processes.items():
        # A process that started in those seconds says nothing of what it takes when it is idle.
        idle_share = between(pid, before, after) / idle_s if pid in before.processes else 0.0
        rows = recorded if role in (DRIVER, LEARNER) else refined
        found.append(Spent(role, between(pid, seen.first, seen.last), idle_share, rows))
    return found


def _by_role(spent: list[Spent], span_s: float) -> tuple[dict[str, float], dict[str, float]]:
    cpu: dict[str, float] = {}
    idle: dict[str, float] = {}
    for one in sorted(spent, key=lambda one: one.role):
        cpu[one.role] = cpu.get(one.role, 0.0) + 1e3 * one.of_rows(span_s) / one.rows
        idle[one.role] = idle.get(one.role, 0.0) + one.idle_share
    return cpu, idle


def _busiest(spent: list[Spent], span_s: float) -> list[dict[str, Any]]:
    """The three busiest processes, engines' hosts aside: in a real run every engine has a process of its own."""
    those = [one for one in spent if one.role != HOSTS and one.of_rows(span_s) > 0]
    top = sorted(those, key=lambda one: one.of_rows(span_s) / one.rows, reverse=True)[:3]
    return [
        {
            "role": one.role,
            "core_share": one.seconds / span_s,
            "rows_per_s_at_one_core": (1 - one.idle_share) * one.rows / one.of_rows(span_s),
        }
        for one in top
    ]


def text(r: Report) -> str:
    s = Settings(**r.settings)
    cpu = ", ".join(f"{role} {ms:.1f}" for role, ms in r.cpu_ms_a_row.items() if role not in (HOSTS, ALONE))
    idle = sum(share for role, share in r.idle_share.items() if role != HOSTS)
    slowest = ", ".join(f"{name} {seconds:.2f}" for name, seconds in r.slowest_s.items())
    busiest = "; ".join(
        f"{b['role']} {b['core_share']:.0%} of a core, full at {b['rows_per_s_at_one_core']:.0f} rows/s"
        for b in r.busiest
    )
    return f"""
{s.rows} rows a step, {s.engines} engines, staleness {s.staleness}, {s.in_flight}; {len(r.walls_s)} steps after the \
first; raw median {s.raw_median}, refined {s.refined_median}, at most {s.max_tokens} tokens
wall of a step      {r.wall_s:.2f} s ({min(r.walls_s):.2f} to {max(r.walls_s):.2f})
bound of a step     {r.bound_s:.2f} s ({slowest})
ratio               {r.ratio:.3f}
CPU a row           {r.cpu_ms_a_row_in_all:.1f} ms: {cpu}
engines' hosts      {r.cpu_ms_a_row.get(HOSTS, 0.0):.1f} ms a row, of which the stand-in makes up answers for \
{r.cpu_ms_a_row[ALONE]:.1f}
without rows        {idle:.0%} of a core, driver {r.idle_share[DRIVER]:.1%}
busiest             {busiest}
object store        {r.store_mib:.0f} MiB high water; driver {r.driver_mib:.0f} MiB
first request       {r.first_request_s:.1f} s after all engines that sample were up"""
