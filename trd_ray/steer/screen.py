"""What `trd status` prints: one screen for a run, a line a run for many.

what look_at() found  ->  screen()  ->  lines of plain text

mine: running, training, in /shared/runs/mine
step 12 of 40, about 3 min left; waits for rows since 2 s (refiner)
last step 3.2 s: wait 2.1, sample 1.8, refine 1.1, train 0.8, sync 0.1; y_o/passed 0.61, y_r/passed 0.88
...
"""

import socket
import time
from collections.abc import Sequence
from typing import Any

from trd_ray.record.markdown import visible
from trd_ray.record.time_left import Left, duration

DOING = {
    "start": "starts engines and learner",
    "wait": "waits for rows",
    "probe": "compares log-probabilities",
    "examples": "makes examples",
    "train": "trains",
    "sync": "sends weights to the engines",
    "rest": "waits for the engines to rest",
    "wake": "gives the GPUs back to the engines",
    "evaluate": "evaluates",
    "record": "records the step",
    "checkpoint": "writes a checkpoint",
    "pause": "rests",
}
PARTS = ("wait", "sample", "verify", "refine", "train", "rest", "wake", "sync", "overhead")
MEANS = {
    "running": "running",
    "paused": "resting, trd unpause ends that",
    "silent": "alive, but silent",
    "done": "done",
    "failed": "failed",
    "stopped": "stopped",
    "dead": "dead",
    "unknown": "running, or just died: its lock is not seen here",
    "ended": "not running",
}
WIDTH = 120  # of an event; `trd logs` prints all of it
# Of a pool's status, the columns of the table.
COLUMNS = (("running", ".0f"), ("waiting", ".0f"), ("busy", ".0%"), ("tokens_per_s", ".0f"), ("version", ".0f"))


def screen(view: dict[str, Any]) -> str:
    """Everything about one run."""
    status = view["status"]
    now = view["seen"]
    lines = [f"{view['name']}: {_state(view)}, in {view['directory']}"]
    live = view["state"] in ("running", "paused", "silent", "unknown")
    if live and status:
        lines.append(_progress(status, now))
    elif (ended := status.get("ended")) and ended.get("said"):
        lines.append(ended["said"])
    elif view["state"] == "dead":
        lines.append(f"its process said nothing for {duration(now - status['written'])}; the same command goes on")
    if last := _last_step(status.get("last_step") or view["metrics"]):
        lines.append(last)
    if live:
        lines += _pools(status.get("pools"), status.get("version"))
    lines += _checkpoint(view)
    for one in view.get("alarms", []):
        lines.append(f"alarm since step {one['since_step']}, {one['name']}: {_sentence(one['sentence'])} {one['do']}")
    if (alarm := view["alarm"]) and not _is_shown(alarm, view):
        lines.append(f"last alarm, {duration(now - alarm['when'])} ago: {alarm.get('said', alarm['kind'])}")
    if view["events"]:
        lines += ["", *(cut(event_line(event)) for event in view["events"])]
    return "\n".join(visible(line) for line in lines)


def listing(views: Sequence[dict[str, Any]]) -> str:
    """A line a run, the newest last."""
    rows = [("run", "state", "step", "left", "in")]
    for view in views:
        try:
            step, left = _step(view), _left(view)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):  # a status of another version
            step, left = "?", "?"
        rows.append((view["name"], view["state"], step, left, view["directory"]))
    return "\n".join(visible(line) for line in aligned(rows, left=(0, 1, 4)))


def _step(view: dict[str, Any]) -> str:
    shown = view["status"].get("shown")
    done, everything = (shown or {}).get("steps") or [view["metrics"].get("step"), None]
    return "-" if done is None else f"{done}/{everything}" if everything else str(done)


def _left(view: dict[str, Any]) -> str:
    left = view["status"].get("left_s") if view["state"] == "running" else None
    return "-" if left is None else duration(left)


def event_line(event: dict[str, Any]) -> str:
    when = time.strftime("%m-%d %H:%M:%S", time.localtime(event["when"]))
    return visible(f"{when}  {event['kind']:10} {event.get('said', '')}")


def cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 4] + " ..."


def _state(view: dict[str, Any]) -> str:
    status = view["status"]
    words = MEANS.get(view["state"], "") or str(view["state"])
    if view["state"] == "silent":
        words += f" for {duration(view['seen'] - status['written'])}"
    if view["state"] in ("done", "failed", "stopped"):
        words += f" {duration(view['seen'] - status['ended']['when'])} ago"
    program = f" ({status['program']})" if status.get("program") else ""
    if view["holder"] and status and status["host"] != socket.gethostname():
        words += f" on {status['host']}"
    return words + program


def _progress(status: dict[str, Any], now: float) -> str:
    shown = status.get("shown") or {}
    parts = []
    for what in ("steps", "samples"):
        if what in shown:
            parts.append(f"{what.removesuffix('s')} {shown[what][0]} of {shown[what][1]}")
    if status.get("left_s") is not None:
        parts.append(str(Left(status["left_s"], shown.get("evaluations_not_in_left_s", 0))))
    doing = status.get("doing")
    if "starting" in shown:
        parts.append(shown.get("phase", "starting"))
        parts += [f"{name} {ready} of {of} up" for name, (ready, of) in shown["starting"].items() if of]
    elif doing and shown.get("phase") in (None, "training"):
        waits_for = f" ({doing['waits_for']})" if doing.get("waits_for") else ""
        since = duration(max(0.0, now - doing["since"]))
        parts.append(f"{DOING.get(doing['what'], doing['what'])} since {since}{waits_for}")
    elif shown.get("phase"):
        parts.append(shown["phase"])
    if status.get("turn"):
        parts.append(status["turn"])
    if "rollouts" in shown:
        parts.append("{} of {} rows of the step are there".format(*shown["rollouts"]))
    if "evaluating" in shown:
        parts.append("{} of {} samples".format(*shown["evaluating"]["samples"]))
    return "; ".join(parts) or "starts"


def _last_step(metrics: dict[str, Any]) -> str:
    if "seconds/step" not in metrics:
        return ""
    took = ", ".join(f"{p} {metrics[f'seconds/{p}']:.1f}" for p in PARTS if metrics.get(f"seconds/{p}") is not None)
    of_it = ("y_o/passed", "y_r/passed", "kl/mean", "sync/gap_mean", "staleness/mean", "evaluation/avg")
    measured = ", ".join(f"{name} {metrics[name]:.3g}" for name in of_it if metrics.get(name) is not None)
    return f"last step {metrics['seconds/step']:.1f} s: {took}{'; ' if measured else ''}{measured}"


def _pools(pools: Any, version: Any) -> list[str]:
    if not isinstance(pools, dict) or not pools or "error" in pools:
        return []
    rows: list[tuple[str, ...]] = [("pool", "engines", "running", "waiting", "busy", "tokens/s", "version", "restarts")]
    engines = []
    for name, pool in pools.items():
        numbers = [format(pool[key], form) if pool.get(key) is not None else "-" for key, form in COLUMNS]
        rows.append((name, f"{pool.get('up', 0)} of {pool.get('engines', 0)}", *numbers, str(pool.get("restarts", 0))))
        engines += [_engine(one) for one in pool.get("lives", [])]
        if pool.get("failure"):
            engines.append(f"{name}: {pool['failure']}")
    lines = ["", *aligned(rows, left=(0,))]
    if engines:
        lines.append("; ".join(engines))
    if isinstance(version, dict) and "learner" in version:
        lines.append(f"the learner has policy version {version['learner']}, the engines serve {version['served']}")
    return [*lines, ""]


def _engine(life: dict[str, Any]) -> str:
    if life["state"] in ("starting", "resting") and life.get("why"):
        return f"{life['name']} {life['state']} ({life['why']})"
    return f"{life['name']} {life['state']}, {life['running']} running"


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _is_shown(alarm: dict[str, Any], view: dict[str, Any]) -> bool:
    """Whether it is one of those that last."""
    lasting = {(one["name"], one["since_step"]) for one in view.get("alarms", [])}
    return alarm["kind"] == "alarm" and (alarm.get("name"), alarm.get("since_step")) in lasting


def _checkpoint(view: dict[str, Any]) -> list[str]:
    if not view["checkpoints"]:
        return ["no checkpoint yet"] if view["status"].get("program") == "train" else []
    kept = ", ".join(map(str, view["checkpoints"]))
    newest = view["status"].get("checkpoint")
    writing = newest.get("writing") if isinstance(newest, dict) and view["state"] in ("running", "paused") else None
    return [f"checkpoints {kept}{f'; {writing} is being written' if writing else ''}"]


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Columns two spaces apart; those of `left` begin at the left, the others end at the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
