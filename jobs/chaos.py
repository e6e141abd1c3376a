"""`python jobs/chaos.py RECIPE --rounds N --seed S`: processes of a run die at chosen moments; does it live?

    draw -> a run, whose process dies or stops at its moment -> it goes on, or the same command does -> what must hold

A round strikes one process (engine, pool, stage, verifier task, learner rank, mailbox, Ray Train's controller, driver,
the process above it, raylet, GCS, a node, the head) with SIGKILL, SIGSTOP or a signal that asks it to stop, at one
moment: start, sampling, refining, verify, train, in a sync, in a checkpoint, evaluation. It then checks:

- exit codes: what must go on does so by itself, and of the rest the same command goes on
- every row once; problems, order and seeds as in the run that nothing struck
- final weights bit-identical to that run's, where every row is answered alike: on a corpus, and with stand-ins
- no process left, nothing half-written, nothing left in temporary folders or in shared memory, no trace on screen
- how long until it was noticed and until the next step was recorded, and what time was lost

`--stand-ins` replaces vLLM's AsyncLLM and the learner's forward and backward by something that costs nothing; all else
is real. The campaign is resumable: the same command goes on, and makes rounds of other code again.

Exit codes: 0 all rounds are as they must be, 1 some are not, 2 a mistake in the options, 130 Ctrl-C.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from trd_ray.errors import RunFailed, UserError


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def settings(arguments: list[str]):
    """The settings of a campaign, and whether they are only tried; raises UserError."""
    from chaos_rounds import campaign, ways

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("recipe", help="a recipe's name or file; a small one: each round is a whole run of a few steps")
    add("overrides", nargs="*", metavar="key.sub=value", help="of every run")
    add("--rounds", type=positive, default=20, help="default 20")
    add("--seed", type=int, default=0)
    add("--stand-ins", action="store_true", help="for AsyncLLM and the learner's arithmetic")
    add(
        "--together",
        type=positive,
        default=1,
        metavar="N",
        help="rounds that share a run, one after another; default 1",
    )
    add("--local", action="store_true", help="every run starts a Ray of its own, and no round needs several nodes")
    add("--only", nargs="+", default=[], metavar="WAY", help="e.g. --only learner pool/KILL/sync driver/corpus")
    add("--folder", type=Path, help="where the campaign is kept; default: runs/chaos/RECIPE-SEED")
    add("--keep", action="store_true", help="also the runs that were as they must be")
    add("--dry-run", action="store_true", help="only say which rounds are drawn")
    s = parser.parse_intermixed_args(arguments)
    among = ways.ways(s.stand_ins)
    if s.local:
        among = [replace(way, ground="local") for way in among if way.ground != "nodes"]
    if s.only:
        for name in s.only:
            if not ways.named(name, among):
                victims = ", ".join(dict.fromkeys(way.victim for way in among))
                raise UserError(f"--only {name} names no round: it begins with one of {victims}")
        among = [way for name in s.only for way in ways.named(name, among)]
    name = f"{Path(s.recipe).stem}{'-stand-ins' if s.stand_ins else ''}-{s.seed}"
    folder = (s.folder or Path("runs", "chaos", name)).absolute()
    asked = campaign.Settings(
        s.recipe, tuple(s.overrides), folder, s.rounds, s.seed, s.stand_ins, s.together, tuple(among), s.keep
    )
    return asked, s.dry_run


def main(arguments: list[str]) -> int:
    from chaos_rounds import campaign, results

    try:
        asked, only_tried = settings(arguments)
        chaos = campaign.Campaign(asked)
        if only_tried:
            print(chaos.drawn())
            return 0
        found = chaos.go()
    except (UserError, RunFailed) as e:
        print(e, file=sys.stderr)
        return 2 if isinstance(e, UserError) else 1
    except KeyboardInterrupt:
        return 130
    print(f"\n{results.table(found)}\n\n{results.summary(found)}")
    return 0 if all(result.verdict == "ok" for result in found) else 1


if __name__ == "__main__":
    from trd_ray.session.supervise import supervised

    sys.exit(supervised(main, sys.argv[1:]))
