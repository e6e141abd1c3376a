"""What a look at a machine found: one line a question, with its remedy.

    this_machine.examine() on every node  ->  merged()  ->  text() for people, as_json() for scripts

A finding is "pass", "lacks" or "not known". What is lacking is `needed` where nothing that was asked for can run
without it; everything else is said and refuses nothing.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

PASS, LACKS, NOT_KNOWN = "pass", "lacks", "not known"
MAX_NAMES = 3  # of nodes in one line


@dataclass(frozen=True)
class Finding:
    what: str
    state: str
    found: str
    remedy: str = ""  # "" where nothing is lacking
    needed: bool = False
    where: str = ""  # "" on a single machine

    @property
    def refuses(self) -> bool:
        return self.state == LACKS and self.needed


def merged(of_nodes: dict[str, list[Finding]]) -> list[Finding]:
    """One line for all nodes that found the same, in the order in which things are first found."""
    nodes: dict[Finding, list[str]] = {}
    for node, findings in of_nodes.items():
        for finding in findings:
            nodes.setdefault(replace(finding, where=""), []).append(node)
    places = list(dict.fromkeys(finding.what for finding in nodes))
    lines = [replace(finding, where=_where(names, len(of_nodes))) for finding, names in nodes.items()]
    return sorted(lines, key=lambda line: places.index(line.what))


def _where(nodes: list[str], in_all: int) -> str:
    if len(nodes) == in_all:
        return f"all {in_all} nodes" if in_all > 1 else nodes[0]
    more = f" and {len(nodes) - MAX_NAMES} more" if len(nodes) > MAX_NAMES else ""
    return ", ".join(nodes[:MAX_NAMES]) + more


def text(findings: list[Finding]) -> str:
    """The table for a terminal, with each remedy below its line, and a sentence at the end."""
    places = any(finding.where for finding in findings)
    head = ["what", "state", *(["where"] if places else []), "found"]
    rows = [[f.what, _state(f), *([f.where] if places else []), f.found] for f in findings]
    below = [f"-> {f.remedy}" if f.remedy else "" for f in findings]
    return f"{columns([head, *rows], ['', *below])}\n\n{verdict(findings)}"


def _state(finding: Finding) -> str:
    return "LACKS" if finding.refuses else finding.state


def columns(rows: list[list[str]], below: list[str]) -> str:
    """Cells under one another; `below` is a line of its own under the last column, or "" for none."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row, note in zip(rows, below, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
        if note:
            lines.append(" " * sum(width + 2 for width in widths) + note)
    return "\n".join(lines)


def verdict(findings: list[Finding]) -> str:
    refusing = list(dict.fromkeys(f.what for f in findings if f.refuses))
    if refusing:
        return f"needed and lacking: {', '.join(refusing)}"
    lacking = list(dict.fromkeys(f.what for f in findings if f.state == LACKS))
    return "nothing that is needed lacks" + (f"; without {', '.join(lacking)}" if lacking else "")


def as_json(findings: list[Finding], **more: object) -> str:
    ok = not any(finding.refuses for finding in findings)
    return json.dumps({"ok": ok, **more, "findings": [asdict(finding) for finding in findings]}, indent=2)


def exit_code(findings: Iterable[Finding]) -> int:
    return 2 if any(finding.refuses for finding in findings) else 0
