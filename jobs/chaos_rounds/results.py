"""What became of a round, and the table of all of them.

a strike, what its run told, what does not hold -> judged() -> Result -> round-003.json -> table()
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import Signals

from chaos_rounds.struck_run import Told
from chaos_rounds.ways import HEARTBEAT_S, STOP, STOPPED, Must, Strike
from trd_ray.record import markdown

NOTICING_S = 15.0  # that a stopped process may be noticed after the heartbeat
RECOVERY_S = 30.0  # from being noticed, plus the start of what has to start
NOTICES = ("engine", "learner", "stream")  # kinds of events that say that something is missed


@dataclass(frozen=True)
class Calm:
    """The run that nothing struck: where it is, how long it took, and how long to its first step."""

    directory: Path
    seconds: float
    starting_s: float


@dataclass
class Result:
    number: int
    victim: str
    signal: str
    moment: str
    rows: str
    ground: str
    must: str
    code: str  # digest of the code that was struck
    step: int = 0
    exits: list[int] = field(default_factory=list)
    noticed_s: float | None = None  # after the strike, by events.jsonl
    back_s: float | None = None  # after the strike: the next step is recorded
    lost_s: float | None = None  # beyond the undisturbed run, of all the strikes of the run together
    missed: str = ""  # why there was no strike
    flaws: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return "failed" if self.flaws else "missed" if self.missed else "ok"


def judged(
    strikes: Sequence[Strike], told: Told, flaws: list[str], events: list[dict], calm: Calm | None, code: str
) -> list[Result]:
    """The result of every strike of a run. What does not hold of the run as a whole is told of each of them."""
    of_run = list(flaws)
    of_run += ["it hung"] if told.hung else []
    of_run += [f"{len(told.left)} processes were left: {', '.join(told.left[:3])}"] if told.left else []
    of_run += [f"left in shared memory: {', '.join(sorted(told.shared)[:3])}"] if told.shared else []
    if told.codes[-1][1] != 0:
        of_run.append(f"the last exit code is {told.codes[-1][1]}")
    times = [told.struck.get(strike.number, {}).get("when", float("inf")) for strike in strikes]
    results = []
    for strike, at, following in zip(strikes, times, [*times[1:], float("inf")], strict=True):
        way, facts = strike.way, told.struck.get(strike.number, {})
        result = Result(
            strike.number,
            way.victim,
            Signals(way.signal).name,
            way.moment,
            way.rows,
            way.ground,
            str(strike.must),
            code,
        )
        result.missed = facts.get("missed", "" if facts else "its moment never came")
        result.step = facts.get("step", 0)
        result.flaws = list(of_run)
        result.exits = [code for when, code in told.codes if at <= when < following]
        if not result.missed:
            result.flaws += exit_flaws(strike.must, [code for code in result.exits if code])
            _time(result, strike, told, events, at, following, calm)
        results.append(result)
    return results


def exit_flaws(must: Must, codes: list[int]) -> list[str]:
    """Whether the exit codes, but for that of success, are what must follow."""
    fits = (must.goes_on and not codes) or (len(codes) == 1 and codes[0] in must.codes)
    return [] if fits else [f"exit {', '.join(map(str, codes)) or 0}, but must: {must}"]


def _time(
    result: Result, strike: Strike, told: Told, events: list[dict], at: float, following: float, calm: Calm | None
) -> None:
    noticed = [e["when"] for e in events if at < e["when"] < following and e["kind"] in NOTICES]
    recorded = [m["when"] for m in told.moments if m["moment"] == "recorded" and m["when"] > at]
    result.noticed_s = round(min(noticed) - at, 1) if noticed else None
    result.back_s = round(min(recorded) - at, 1) if recorded else None
    stopped = strike.way.signal == STOP and strike.way.victim in STOPPED
    if stopped and result.noticed_s is not None and result.noticed_s > HEARTBEAT_S + NOTICING_S:
        result.flaws.append(f"it was noticed after {result.noticed_s:.0f} s, with a heartbeat_s of {HEARTBEAT_S:.0f}")
    if calm is None:
        return
    result.lost_s = round(told.seconds - calm.seconds, 1)
    if result.back_s is not None and result.noticed_s is not None and strike.must.goes_on and strike.way.signal != STOP:
        recovery_s = result.back_s - result.noticed_s
        if recovery_s > RECOVERY_S + calm.starting_s:
            most = f"{RECOVERY_S:.0f} s and a start ({calm.starting_s:.0f} s)"
            result.flaws.append(f"the recovery took {recovery_s:.0f} s, longer than {most}")


def save(result: Result, folder: Path) -> None:
    place(folder, result.number).write_text(json.dumps(asdict(result), indent=2))


def saved(folder: Path, number: int, code: str) -> Result | None:
    """The result of a round that this very code has made; None if it is still to be made."""
    file = place(folder, number)
    found = Result(**json.loads(file.read_text())) if file.exists() else None
    return found if found and found.code == code else None


def place(folder: Path, number: int) -> Path:
    return folder / f"round-{number:03d}.json"


def table(results: Iterable[Result]) -> str:
    rows = [
        [
            str(r.number), f"{r.victim} {r.signal}", f"{r.moment}, {r.rows}, step {r.step}", r.must,
            ", ".join(map(str, r.exits)), _seconds(r.noticed_s), _seconds(r.back_s), _seconds(r.lost_s), r.verdict,
        ]
        for r in results
    ]  # fmt: skip
    head = ["round", "struck", "when", "must", "exit codes", "noticed, s", "next step, s", "lost, s", "verdict"]
    return markdown.table([head, *rows])


def summary(results: Sequence[Result]) -> str:
    """How many rounds, and how many of each fault that a campaign is made to find."""

    def with_words(*words: str) -> int:
        return sum(any(word in flaw for flaw in r.flaws for word in words) for r in results)

    counts = {
        "hangs": with_words("it hung"),
        "with processes left": with_words("processes were left"),
        "with rows lost or recorded twice": with_words("rows lost", "rows recorded twice"),
        "with other weights": with_words("differs from the undisturbed"),
        "slow": with_words("the recovery took"),
    }
    verdicts = {word: sum(r.verdict == word for r in results) for word in ("ok", "failed", "missed")}
    found = ", ".join(f"{count} {what}" for what, count in counts.items())
    lines = [f"{len(results)} rounds: {', '.join(f'{n} {word}' for word, n in verdicts.items())}. {found}."]
    lines += [f"round {r.number}: {'; '.join(r.flaws)}" for r in results if r.flaws]
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
