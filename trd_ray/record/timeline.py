"""The timeline of a run, `timeline.json`: who worked and who waited when, in Chrome's trace format.

    spans of the driver --+
    rows of a step -------+-> lanes: driver, steps, each engine, verifier, each learner rank -> timeline.json
    commands of a rank ---+

Open the file at https://ui.perfetto.dev or chrome://tracing. How to read it:

- A slice of category `work` is work. One of category `wait` is the time between: the driver waited for rows, an engine
  had no request, a rank had no command.
- An engine that takes new weights has no request: the lanes of driver and ranks show the sync.
- In a lane of work, requests that overlap are one slice, whose arguments count them.
- The times of engines, verifier and ranks come from the clocks of their own machines.

Two rules keep the file below MAX_BYTES. Their numbers begin at 1 ms, double as often as needed, and are in `otherData`
of the file:

- Work of one kind in one lane with gaps shorter than `resolution_s` is one slice, whose arguments count all of it.
- A span of the driver that is shorter than `shortest_s` is left out. A run of 300 steps never needs this rule.

The file is written whole, at intervals and at the end, also after an error or Ctrl-C. A run that is killed leaves the
last one, and a run that resumes goes on with it. A file that cannot be written costs the timeline, never the run.
"""

import json
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from trd_ray.files import write_atomically
from trd_ray.rows import part

MAX_BYTES = 4_900_000
MAX_SLICES = 20_000  # slices of work in memory; with the waiting between them they about fill MAX_BYTES
MAX_SPANS = 8_000
RESOLUTION_S = 1e-3
INSTANT_S = 1e-6  # work takes at least so long: it begins before it ends, also where the file's microseconds are alike
SAVE_S = 30.0  # between two writes, and longer where a write takes more than a hundredth of that
PROCESSES = ["driver", "engines", "verifier", "learner"]  # the groups of lanes, from the top

Busy = list[list[float]]  # disjoint intervals in order, each [begin, end, how many]


class Timeline:
    def __init__(self, place: Path, wall: Callable[[], float] = time.time):
        """Goes on with the file at `place`, if a run that ended left one there."""
        self.place, self.wall = place, wall
        self.saved, self.cost_s = time.monotonic(), 0.0
        self._begin()
        if place.is_file() and place.stat().st_size <= MAX_BYTES:  # a larger one is not of this class
            try:
                self._read(json.loads(place.read_text()))
            except (OSError, ValueError, LookupError, TypeError, AttributeError):  # damaged by hand: a new one begins
                self._begin()

    def _begin(self) -> None:
        self.began = self.wall()
        self.resolution_s = self.shortest_s = RESOLUTION_S
        self.spans: dict[str, list[tuple[str, float, float]]] = {"driver": [], "steps": []}
        self.marks: list[tuple[str, float]] = []
        self.lanes: dict[tuple[str, str], dict[str, Busy]] = {}  # (group, lane) -> kind -> when
        self.slices = 0  # slices of work in all lanes

    def mark(self, name: str) -> None:
        """Mark this moment, such as a start of the run."""
        self.marks.append((name, self.wall()))

    def span(self, name: str, begin: float, end: float, lane: str = "driver") -> None:
        if end - begin >= self.shortest_s:
            self.spans[lane].append((name, begin, end))
        while sum(map(len, self.spans.values())) > MAX_SPANS:
            self.shortest_s *= 2
            for lane, spans in self.spans.items():
                self.spans[lane] = [span for span in spans if span[2] - span[1] >= self.shortest_s]

    def step(self, name: str, begin: float, end: float) -> None:
        self.span(name, begin, end, "steps")

    def work(self, group: str, lane: str, kind: str, intervals: Iterable[tuple[float, float]]) -> None:
        """Add intervals in which this lane was at work, in any order; each of them counts as one."""
        new: Busy = [[begin, max(end, begin + INSTANT_S), 1] for begin, end in intervals]
        if new:
            busy = self.lanes.setdefault((group, lane), {}).setdefault(kind, [])
            first = min(interval[0] for interval in new) - self.resolution_s
            tail = bisect_left(busy, first, key=lambda interval: interval[1])
            self.slices -= len(busy) - tail
            busy[tail:] = _merged(busy[tail:] + new, self.resolution_s)
            self.slices += len(busy) - tail
            while self.slices > MAX_SLICES:
                self._coarser()

    def rows(self, rows: Iterable[dict]) -> None:
        """Add what engines and verifier did for the rows of a step."""
        found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
        for row in rows:
            for key, interval in _work_of(row):
                found.setdefault(key, []).append(interval)
        for key, intervals in found.items():
            self.work(*key, intervals)

    def save_if_due(self) -> None:
        if time.monotonic() - self.saved > max(SAVE_S, 100 * self.cost_s):
            self.save()

    def save(self) -> str | None:
        """Write the file; returns why it could not be written."""
        begin = time.monotonic()
        try:
            write_atomically(self.place, self.text())
        except OSError as e:
            return e.strerror or str(e)
        finally:
            self.saved = time.monotonic()
            self.cost_s = self.saved - begin
        return None

    def close(self) -> None:
        if problem := self.save():
            print(f"timeline.json could not be written ({problem})")

    def text(self) -> str:
        """What the file holds; the timeline is made coarser until that is small enough."""
        while len(text := self._text()) > MAX_BYTES:
            self._coarser()
        return text

    def _coarser(self) -> None:
        self.resolution_s *= 2
        self._merge()

    def _merge(self) -> None:
        for kinds in self.lanes.values():
            kinds |= {kind: _merged(busy, self.resolution_s) for kind, busy in kinds.items()}
        self.slices = sum(len(busy) for kinds in self.lanes.values() for busy in kinds.values())

    def _text(self) -> str:
        head = {"began_s": self.began, "resolution_s": self.resolution_s, "shortest_s": self.shortest_s}
        events = ",\n".join(json.dumps(event, separators=(",", ":")) for event in self._events())
        return f'{{"displayTimeUnit":"ms","otherData":{json.dumps(head)},"traceEvents":[\n{events}\n]}}\n'

    def _events(self) -> Iterator[dict[str, Any]]:
        for pid, group in enumerate(PROCESSES):
            yield {"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": group}}
            yield {"ph": "M", "pid": pid, "tid": 0, "name": "process_sort_index", "args": {"sort_index": pid}}
        for tid, (lane, spans) in enumerate(self.spans.items()):
            yield _thread(0, tid, lane)
            for name, begin, end in sorted(spans, key=lambda span: (span[1], -span[2])):
                yield self._slice(0, tid, begin, end, name, "wait" if name == "wait" else "work")
        for name, when in self.marks:
            yield {"ph": "i", "s": "g", "pid": 0, "tid": 0, "ts": self._us(when), "name": name}
        for tid, (group, lane) in enumerate(sorted(self.lanes, key=_natural)):
            pid = PROCESSES.index(group)
            reached = None
            yield _thread(pid, tid, lane)
            for begin, end, counts in _segments(self.lanes[group, lane]):
                if reached is not None and begin > reached:
                    yield self._slice(pid, tid, reached, begin, "wait", "wait")
                work = self._slice(pid, tid, begin, end, " + ".join(counts), "work")
                yield work | {"args": {kind: int(count) for kind, count in counts.items()}}
                reached = end

    def _slice(self, pid: int, tid: int, begin: float, end: float, name: str, category: str) -> dict[str, Any]:
        start = self._us(begin)
        duration = self._us(end) - start
        return {"ph": "X", "pid": pid, "tid": tid, "ts": start, "dur": duration, "name": name, "cat": category}

    def _us(self, when: float) -> int:
        return round((when - self.began) * 1e6)

    def _read(self, tree: dict[str, Any]) -> None:
        head = tree["otherData"]
        self.began = float(head["began_s"])
        self.resolution_s = max(RESOLUTION_S, float(head["resolution_s"]))
        self.shortest_s = max(RESOLUTION_S, float(head["shortest_s"]))
        names: dict[tuple[int, int], str] = {}
        for event in tree["traceEvents"]:
            key = event["pid"], event["tid"]
            if event["name"] == "thread_name":
                names[key] = event["args"]["name"]
            elif event["ph"] == "i":
                self.marks.append((event["name"], self.began + event["ts"] / 1e6))
            elif event["ph"] == "X":
                begin = self.began + event["ts"] / 1e6
                end = begin + event["dur"] / 1e6
                if event["pid"] == 0:
                    self.spans[names[key]].append((event["name"], begin, end))
                elif event["cat"] == "work":
                    for kind, count in event["args"].items():
                        kinds = self.lanes.setdefault((PROCESSES[event["pid"]], names[key]), {})
                        kinds.setdefault(kind, []).append([begin, max(end, begin + INSTANT_S), int(count)])
        self._merge()


def _work_of(row: dict) -> Iterator[tuple[tuple[str, str, str], tuple[float, float]]]:
    """((group, lane, kind), (begin, end)) of everything that was done for a row."""
    for y, kind in (("y_o", "sample"), ("y_r", "refine")):
        start, seconds, engine = (part(row, y, name) for name in ("start_s", "seconds", "engine"))
        if start is not None and seconds is not None:
            yield ("engines", engine or "engine", kind), (start, start + seconds)
        start, seconds = (part(row, y, name) for name in ("verify_start_s", "verify_seconds"))
        if start is not None and seconds is not None:
            yield ("verifier", "verifier", f"verify {y}"), (start, start + seconds)


def _merged(busy: Busy, gap_s: float) -> Busy:
    """The intervals in order; those that overlap or have less than `gap_s` between them are one."""
    out: Busy = []
    for begin, end, count in sorted(busy):
        if out and begin - out[-1][1] < gap_s:
            out[-1][1] = max(out[-1][1], end)
            out[-1][2] += count
        else:
            out.append([begin, end, count])
    return out


def _segments(kinds: dict[str, Busy]) -> Iterator[tuple[float, float, dict[str, float]]]:
    """Disjoint segments, cut where the set of kinds under way changes: (begin, end, kind -> how many begin in it)."""
    edges = [(begin, 1, kind, count) for kind, busy in kinds.items() for begin, _, count in busy]
    edges += [(end, 0, kind, 0) for kind, busy in kinds.items() for _, end, _ in busy]
    reached = 0.0
    open_: dict[str, float] = {}
    for when, begins, kind, count in sorted(edges):
        if open_ and when > reached:
            yield reached, when, dict(sorted(open_.items()))
            open_ = dict.fromkeys(open_, 0)
        reached = when
        if begins:
            open_[kind] = count
        else:
            del open_[kind]


def _natural(key: tuple[str, str]) -> tuple:
    """A key by which sampler-2 is sorted before sampler-10."""
    group, lane = key
    return PROCESSES.index(group), [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", lane)]


def _thread(pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}
