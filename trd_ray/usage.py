"""What the commands of the command line take: their arguments and options, which argparse explains to the user."""

import argparse
import math


def of_dry_run(command: argparse.ArgumentParser) -> None:
    text = "print what the resolved recipe has that is no default, who would run where, and end"
    command.add_argument("--dry-run", action="store_true", help=text)
    _of_machines(command)
    text = "for --dry-run: what a GPU costs an hour, in any currency; the estimate then says what the run costs"
    command.add_argument("--price", type=_price, metavar="AMOUNT", help=text)
    text = "for --dry-run: estimate with the lengths and rates of this run, a directory or its name below runs/"
    command.add_argument("--like", metavar="RUN", help=text)
    form = command.add_mutually_exclusive_group()
    form.add_argument("--full", action="store_true", help="for --dry-run: every key of the recipe")
    form.add_argument("--json", action="store_true", help="for --dry-run: everything as JSON, for scripts")


def _of_machines(command: argparse.ArgumentParser) -> None:
    text = "for --dry-run: a cluster that is not here, as [NODESx]GPUSx(GiB | KIND), such as 8x80GiB or 2x8xH100"
    command.add_argument("--on", metavar="GPUS", help=text)
    text = "for --dry-run: memory of each GPU (default: what the nodes tell of theirs)"
    command.add_argument("--gpu-gib", type=_gib, help=text)


def of_init(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "file", nargs="?", default="my.yaml", metavar="FILE", help="the recipe to write (default: my.yaml)"
    )
    command.add_argument("--model", default="Qwen/Qwen3-1.7B", help="the one that learns: a folder or a hub name")
    command.add_argument("--teacher", metavar="MODEL", help="another, stronger model of the same tokenizer")
    command.add_argument("--mode", choices=["opsd", "opd"], help="default: opd with --teacher, else opsd")
    command.add_argument("--data", metavar="PROBLEMS", help="training data: JSONL, Parquet, a folder, a hub name")
    command.add_argument("--held-out", metavar="PROBLEMS", help="evaluation data: the same, or a benchmark")
    text = "what a column of PROBLEMS is called, where it is not found: problem, answer, reference, tests"
    command.add_argument("--column", action="append", default=[], metavar="OURS=NAME", help=text)


def of_check(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", help="a YAML file, or the name of a shipped recipe such as miniature_opsd")
    command.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override the recipe; values are YAML")
    text = "how many problems to look at, spread over the data (default: 64)"
    command.add_argument("--rows", type=_whole, default=64, metavar="N", help=text)
    text = "print the views of this problem instead: its place in the data, from 1, or its problem_id"
    command.add_argument("--row", metavar="K", help=text)


def of_reproduce(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", help="the name of a shipped recipe that has figures, or with --figures any recipe")
    names = "some of the figures' benchmarks, or where one lies, as in aime24:/path (default: all); and overrides"
    command.add_argument("overrides", nargs="*", metavar="BENCHMARK|key.sub=value", help=names)
    command.add_argument("--figures", metavar="FILE", help="what was reported, and what passes (default: as shipped)")
    of_dry_run(command)


def of_export(command: argparse.ArgumentParser) -> None:
    text = "a run directory, of which the newest checkpoint is taken, or a checkpoint's folder"
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=text)
    command.add_argument("--best", action="store_true", help="take the run's best checkpoint, by its checkpoint.best")
    command.add_argument("--to", metavar="FOLDER", help="a new folder (default: exports/RUN-STEP)")
    text = "type of the weights (default: bfloat16; adapters: float32)"
    command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help=text)
    form = command.add_mutually_exclusive_group()
    text = "whole weights; adapters are added to the base (default: as the checkpoint has them)"
    form.add_argument("--merged", dest="form", action="store_const", const="merged", help=text)
    form.add_argument("--adapter", dest="form", action="store_const", const="adapter", help="LoRA adapters alone")
    text = "upload to the Hugging Face hub too, into a private repository unless it exists"
    command.add_argument("--push", metavar="OWNER/NAME", help=text)


def of_chat(command: argparse.ArgumentParser) -> None:
    text = "a run, whose newest checkpoint is asked, a checkpoint, a model folder, a hub name, or a recipe's student"
    command.add_argument("model", metavar="CHECKPOINT", help=text)
    text = "override what it is asked with, such as evaluation.temperature=0"
    command.add_argument("overrides", nargs="*", metavar="key.sub=value", help=text)
    command.add_argument("--prompt", metavar="TEXT", help="answer this and end (default: ask, or read lines)")
    command.add_argument("--plain", action="store_true", help="a chat without the recipe's prompts.solve")


def of_show(command: argparse.ArgumentParser) -> None:
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.description = f"{command.description}\n{_SHOW_EXAMPLES}"
    text = "the directory of a run or corpus, or its name below runs/; it may go on, or have crashed"
    command.add_argument("run", metavar="RUN", help=text)
    which = command.add_argument_group("which row (default: the newest repaired one)")
    which.add_argument("--row", type=_row, metavar="N", help="this one, by its number")
    text = "an answer of this evaluation of the run, such as trained, or old/trained of its set old"
    which.add_argument("--evaluation", metavar="NAME", help=text)
    which.add_argument("--step", type=_whole, metavar="S", help="of this step")
    which.add_argument("--problem", metavar="ID", help="of this problem_id")
    which.add_argument("--source", metavar="NAME", help="from this source of data.sources")
    which.add_argument("--worst", action="store_true", help="the one with the highest mean KL, in place of the newest")
    kinds = which.add_mutually_exclusive_group()
    for kind, text in {
        "repaired": "y_o failed and y_r passed",
        "broken": "y_o passed and y_r failed",
        "failed": "nothing of it passed",
        "passed": "y_o passed",
        "dropped": "it was not trained on",
        "cut": "y_o or y_r ended at the length limit",
    }.items():
        kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, help=text)
    text = "a line for each of the newest COUNT (default: 20) that are as asked for"
    which.add_argument("--list", dest="listing", nargs="?", type=_whole, const=20, metavar="COUNT", help=text)
    how = command.add_argument_group("what to show of it")
    text = "what shades a token: its KL, the student's or the teacher's NLL, or words that begin a doubt (default: kl)"
    how.add_argument("--by", choices=["kl", "student", "teacher", "onset"], default="kl", help=text)
    text = "the teacher's view under which tokens were scored, where there are several: refine or vanilla"
    how.add_argument("--view", metavar="NAME", help=text)
    text = "list the COUNT tokens with the most of it (default: 10 where there are no colors)"
    how.add_argument("--top", type=_row, metavar="COUNT", help=text)
    how.add_argument("--diff", action="store_true", help="what y_r left out of y_o, and what it put in")
    how.add_argument("--views", action="store_true", help="the prompts as they were sent, special tokens in « »")
    how.add_argument("--json", dest="as_json", action="store_true", help="all of it, for scripts")


_SHOW_EXAMPLES = """
  trd show miniature-opsd --row 17
  trd show miniature-opsd --worst --diff      the row with the highest KL, and what was refined in it
  trd show miniature-opsd --broken --list     rows in which the refinement harmed
"""


def of_review(command: argparse.ArgumentParser) -> None:
    text = "the directory of a run of trd refine whose recipe has verify.function=review, or its name below runs/"
    command.add_argument("run", metavar="RUN", help=text)
    text = "whose verdicts they are (default: the name of the user)"
    command.add_argument("--reviewer", metavar="NAME", help=text)


ANALYSED = ("signal", "position", "classes", "departure", "support", "lengths", "buckets", "subsets")


def of_analyse(command: argparse.ArgumentParser) -> None:
    text = (
        "a directory with rows: a run, also one that goes on or has crashed, a corpus, an evaluation; or a run's name"
    )
    command.add_argument("run", metavar="RUN", help=text)
    text = f"one of {', '.join(ANALYSED)} (default: everything)"
    command.add_argument("what", nargs="?", choices=ANALYSED, metavar="WHAT", help=text)
    command.add_argument("--json", action="store_true", help="for scripts")
    text = "these steps alone: 10:20, 10:, :20 or 10"
    command.add_argument("--steps", type=_steps, default=(None, None), metavar="A:B", help=text)
    command.add_argument("--source", metavar="NAME", help="rows of this one of data.sources alone")


def of_report(command: argparse.ArgumentParser) -> None:
    text = "a run, an evaluation or a comparison: its directory, or its name below runs/; several runs in one page"
    command.add_argument("runs", nargs="+", metavar="RUN", help=text)
    text = "where the page goes (default: report.html in the directory; of several runs in this one)"
    command.add_argument("--to", metavar="FILE", help=text)
    text = "what a GPU-hour costs, in any currency: the page then says what the run cost"
    command.add_argument("--price", type=_price, metavar="P", help=text)


def of_doctor(command: argparse.ArgumentParser) -> None:
    text = "a recipe to look for too: its models and data, a compiler or a sandbox if it needs one"
    command.add_argument("recipe", nargs="?", help=text)
    command.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override the recipe; values are YAML")
    text = "look at every node of this cluster (default: the recipe's cluster.address, RAY_ADDRESS, else this machine)"
    command.add_argument("--address", metavar="HOST:PORT", help=text)
    command.add_argument("--json", action="store_true", help="for scripts")
    text = (
        "try the package on this machine's GPUs: tests, benchmarks, runs; about an hour, and it goes on where it ended"
    )
    command.add_argument("--gpu", action="store_true", help=text)
    text = (
        "with --gpu: this part alone, also where it has passed; may be repeated (trd_ray/doctor/README.md lists them)"
    )
    command.add_argument("--only", action="append", default=[], metavar="PART", help=text)
    text = "with --gpu: where the table and the logs go (default: runs/doctor-gpu)"
    command.add_argument("--out", metavar="FOLDER", help=text)


def _gib(text: str) -> float:
    return _positive(text, "a number of GiB greater than 0")


def _price(text: str) -> float:
    return _positive(text, "a number greater than 0, such as 2.5")


def _positive(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be {what}, but is {text}")
    return number


def _row(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, but is {text}")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, but is {text}")
    return int(text)


def _steps(text: str) -> tuple[int | None, int | None]:
    first, colon, last = text.partition(":")
    ends = [first, last if colon else first]
    if not any(ends) or not all(end.isdecimal() or not end for end in ends):
        raise argparse.ArgumentTypeError(f"must be two steps such as 10:20, 10: or :20, but is {text}")
    found = (int(ends[0]) if ends[0] else None, int(ends[1]) if ends[1] else None)
    if found[0] is not None and found[1] is not None and found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"must begin before it ends, but is {text}")
    return found


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"must be a number of seconds between 0 and a million, but is {text}")
    return seconds


STEERING = {
    "status": "what a run does, or every run below runs/ and on the cluster; also after a crash",
    "logs": "what happened in a run, or the end of one of its logs",
    "stop": "end a run with a checkpoint, from anywhere; --now does not wait for one",
    "pause": "let a run rest between two steps",
    "unpause": "let it go on",
    "checkpoint": "let a run write a checkpoint after the step under way, and wait for it",
    "scale": "give the pools of a run more or fewer engines while it goes on",
}


def of_steering(command: argparse.ArgumentParser, name: str) -> None:
    """`name` is a key of STEERING."""
    text = "a run directory, a run below runs/, or on a cluster the name, job or submission of a run"
    command.add_argument("run", nargs="?" if name == "status" else None, metavar="RUN", help=text)
    text = "look for the run on this cluster, as HOST:PORT (default: RAY_ADDRESS)"
    command.add_argument("--address", metavar="HOST:PORT", help=text)
    if name == "status":
        command.add_argument("--json", action="store_true", help="for scripts")
        return
    if name == "logs":
        text = "sampler-0, ray, train or failure, for instance (default: what happened, and which logs there are)"
        command.add_argument("log", nargs="?", metavar="LOG", help=text)
        command.add_argument("-n", "--lines", type=_whole, default=50, help="how many of the last lines (default: 50)")
        command.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
        return
    text = "longest wait for the run to answer, in seconds (default: 60)"
    command.add_argument("--timeout", type=_seconds, default=60.0, metavar="S", help=text)
    if name == "stop":
        command.add_argument("--now", action="store_true", help="at once, without a checkpoint; what is on disk stays")
    if name == "checkpoint":
        command.add_argument("--no-wait", action="store_true", help="return as soon as the run has answered")
    if name == "scale":
        text = "how many engines a pool shall have: refiner=3, sampler=2, judge=2, refiner.NAME=3"
        command.add_argument("sizes", nargs="+", metavar="POOL=N", help=text)


def of_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("comparison", help="a YAML file, or the name of a shipped comparison such as miniature")
    command.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override it; values are YAML")
    text = "print the cells, done and left, how long they take, what they are scored on, who would run where, and end"
    command.add_argument("--dry-run", action="store_true", help=text)
    text = "run nothing: make the tables from finished cells, the folder `cells` of a comparison"
    command.add_argument("--from-cells", metavar="FOLDER", help=text)
    _of_machines(command)


# The commands that neither run a recipe nor steer a run: what each does, and what gives it its arguments.
OTHERS = {
    "init": ("write a recipe for your own model and data, every line explained", of_init),
    "check": (
        "whether verifier, data and prompts of a recipe are sound, on some rows, before anything starts",
        of_check,
    ),
    "show": (
        "one row of a run: problem, y_o, y_r, verdicts, each token colored by its KL",
        of_show,
    ),
    "review": ("judge the responses of a corpus that wait for a person, one at a time", of_review),
    "analyse": ("where the signal of a run sits, and whether refinement stays near the student", of_analyse),
    "export": ("a checkpoint as a Hugging Face folder, in any type, with a model card", of_export),
    "chat": ("try a checkpoint: ask it in the terminal, or through a pipe", of_chat),
    "report": ("a page to understand a run by: did it help, what was wrong, curves, samples, cost", of_report),
    "compare": ("several methods, modes and seeds in one table; started again, it goes on", of_compare),
    "reproduce": (
        "run a recipe, evaluate it, put what was reported beside it; started again, it goes on",
        of_reproduce,
    ),
    "doctor": ("what this machine or cluster has and lacks, each with its remedy; --gpu tries it out", of_doctor),
}
