"""The command line: `trd train | refine RECIPE key.sub=value ...`, `trd evaluate MODEL|RECIPE [BENCHMARK ...]
key.sub=value ...`, `trd check`, `trd show`, `trd analyse`, `trd review`, `trd compare`, `trd reproduce`, `trd export`,
`trd chat`, `trd init`, `trd recipes`, `trd doctor` and `trd miniature build`; and for a run that goes on `trd status |
logs | stop | pause | unpause | checkpoint | scale RUN`.

What a user can fix is one sentence on standard error and exit code 2.
"""

import argparse
import contextlib
import os
import re
import sys
from pathlib import Path

from trd_ray import collector, usage
from trd_ray.errors import RunFailed, UserError
from trd_ray.session.submitted import resume_by_default
from trd_ray.session.supervise import supervised

READERS = ("export", "analyse", "show", "review", "report", "chat")
SUPERVISED = ("train", "evaluate", "refine", "compare", "reproduce")

# Anything else that holds "=" is a path.
OVERRIDE = re.compile(r"[a-z_]\w*(\.\w+)*=.*", re.DOTALL)

# Every command with an example, in the order in which a new user meets them.
EXAMPLES = {
    "recipes": "trd recipes",
    "doctor": "trd doctor miniature_opsd",
    "init": "trd init my.yaml --model Qwen/Qwen3-1.7B --data problems.jsonl --held-out held_out.jsonl",
    "check": "trd check my.yaml",
    "train": "trd train miniature_opsd",
    "status": "trd status runs/miniature-opsd",
    "logs": "trd logs runs/miniature-opsd sampler-0",
    "show": "trd show runs/miniature-opsd --worst",
    "stop": "trd stop runs/miniature-opsd",
    "pause": "trd pause runs/miniature-opsd",
    "unpause": "trd unpause runs/miniature-opsd",
    "checkpoint": "trd checkpoint runs/miniature-opsd",
    "scale": "trd scale runs/miniature-opsd refiner=2",
    "evaluate": "trd evaluate runs/miniature-opsd miniature:test",
    "analyse": "trd analyse runs/miniature-opsd",
    "chat": "trd chat runs/miniature-opsd --prompt 6+1@1-2-3@2",
    "export": "trd export runs/miniature-opsd --to exports/mine",
    "report": "trd report runs/miniature-opsd",
    "compare": "trd compare miniature --dry-run",
    "reproduce": "trd reproduce miniature_opsd",
    "refine": "trd refine my.yaml run_dir=runs/corpus",
    "review": "trd review runs/corpus",
    "miniature": "trd miniature build --help",
}


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        _parser().print_help()
        return 0
    if not arguments[0].startswith("-") and arguments[0] not in EXAMPLES:
        return _run(lambda: _unknown(arguments[0]))
    if arguments[:1] == ["miniature"]:
        from trd_ray.miniature import build

        return _run(lambda: build.main(arguments[1:]))
    parser = _parser()
    options, after = parser.parse_known_args(_resume_spelled_out(arguments))
    takes_names = options.command in ("evaluate", "reproduce")
    takes_overrides = hasattr(options, "overrides")
    if unknown := [
        a for a in after if a.startswith("-") or not takes_overrides or not (OVERRIDE.fullmatch(a) or takes_names)
    ]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if takes_overrides:
        options.overrides += after  # those that stand behind an option
    return _run(lambda: _job(options))


def _resume_spelled_out(arguments: list[str]) -> list[str]:
    """`--resume` may stand alone, before "auto" or "no"; argparse would take any override behind it for its value."""
    out: list[str] = []
    for argument in arguments:
        if argument in ("auto", "no") and out and out[-1] == "--resume=required":
            out[-1] = f"--resume={argument}"
        else:
            out.append("--resume=required" if argument == "--resume" else argument)
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "trd", usage="trd COMMAND ...", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="versions of this and of what it stands on")
    commands = parser.add_subparsers(dest="command", required=True, prog="trd", help=argparse.SUPPRESS)
    texts = {"miniature": "build the miniature world's models again"}
    command = commands.add_parser("recipes", description="List what ships with the package, and what each needs.")
    command.add_argument("name", nargs="?", help="print this recipe or comparison instead")
    texts["recipes"] = "the shipped recipes, and what each needs"
    for name, (text, arguments) in usage.OTHERS.items():
        texts[name] = text
        arguments(commands.add_parser(name, description=text))
    for name, text in {
        "train": "sample, verify, refine, verify, distil, sync; evaluate before and after",
        "evaluate": "Avg@k and Pass@k of a checkpoint on benchmarks; started again, it goes on",
        "refine": "build a corpus of rollouts and refinements, to train on later with data.source=corpus",
    }.items():
        texts[name] = text
        command = commands.add_parser(name, description=text)
        recipe = "a YAML file, or the name of a shipped recipe such as miniature_opsd"
        if name == "evaluate":
            model = "a model folder, a hub name, a run or a checkpoint of it, or a recipe, whose student it is: "
            command.add_argument("recipe", metavar="MODEL|RECIPE", help=model + recipe)
            names = (
                "aime24, aime24:/path, a file of problems, or one of the recipe's evaluation.sets (default: its "
                "evaluation.path and all of its sets); and overrides"
            )
            command.add_argument("overrides", nargs="*", metavar="BENCHMARK|key.sub=value", help=names)
        else:
            command.add_argument("recipe", help=recipe)
            command.add_argument(
                "overrides", nargs="*", metavar="key.sub=value", help="override the recipe; values are YAML"
            )
        usage.of_dry_run(command)
        if name != "evaluate":
            text = (
                "go on with the run in its directory; auto: begin one where there is none, and end well if it is done; "
                "a submitted job means auto unless it says no"
            )
            choices, default = ("auto", "required", "no"), resume_by_default()
            command.add_argument("--resume", choices=choices, default=default, metavar="auto", help=text)
        else:
            command.add_argument("--name", help="what to call the checkpoint in the tables (default: after its path)")
            command.add_argument("--base", help="compare with a former evaluation: its directory, or a name next to it")
    for name, text in usage.STEERING.items():
        texts[name] = text
        usage.of_steering(commands.add_parser(name, description=text), name)
    commands.add_parser("miniature")
    parser.description = _overview(texts)
    return parser


def _overview(texts: dict[str, str]) -> str:
    lines = [f"  {name:11}{texts[name]}\n  {'':11}  {example}" for name, example in EXAMPLES.items()]
    return "\n".join(
        ["Trajectory-Refined Distillation on Ray.", "", *lines, "", "trd COMMAND --help says what a command takes."]
    )


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import platform

        from trd_ray import __version__
        from trd_ray.record.environment import commit, versions

        checkout = commit()
        print(f"trd_ray {__version__}" + (f", commit {checkout}" if checkout else ""))
        installed = {"Python": platform.python_version()} | versions()
        print(", ".join(f"{name} {version}" for name, version in installed.items() if name != "trd-ray"))
        parser.exit()


def _unknown(command: str) -> int:
    from trd_ray.config import did_you_mean

    raise UserError(f"there is no command {command!r}{did_you_mean(command, list(EXAMPLES))}: trd --help explains them")


def _job(options: argparse.Namespace) -> int:
    if options.command == "doctor":
        return _doctor(options)
    if options.command in usage.STEERING:
        return _steer(options)
    from trd_ray import config

    if options.command == "recipes":
        from trd_ray import shipped

        print(shipped.text(options.name).strip() if options.name else shipped.listing())
        return 0
    if options.command == "init":
        return _init(options)
    if options.command in READERS:
        return _read(options)
    # Read by Ray when it is imported: a message about its own inner life that looks like an error and is none.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")
    # Torch, Ray and their like take seconds to import, so what a user wrote is read and checked before that.
    if options.command == "compare":
        return _compare(options)
    if options.command == "evaluate":
        return _evaluate(options)
    if options.command == "reproduce":
        return _reproduce(options)
    recipe = config.load(options.recipe, options.overrides)
    if options.command == "check":
        from trd_ray.check import command as check

        return check.run(recipe, options.rows, options.row)
    from trd_ray.session import dry

    asked = dry.asked(options)
    if asked and asked.on:
        return asked.elsewhere(recipe, options.command)
    from trd_ray.train import command

    if asked:
        return command.dry_run(recipe, options.command, asked)
    return command.run(recipe, options.command, options.resume)


def _read(options: argparse.Namespace) -> int:
    """What looks at a run, or takes from it, and starts none."""
    o = options
    if o.command == "export":
        from trd_ray.export import command as export

        return export.export(o.checkpoint, o.to, o.dtype, o.form, o.best, o.push)
    if o.command == "analyse":
        from trd_ray.analyse import command as analyse

        return analyse.analyse(o.run, o.what, o.json, o.steps, o.source)
    if o.command == "show":
        from trd_ray.show import command as show

        wish = show.WantedRow(o.row, o.step, o.problem, o.source, o.kind, o.worst)
        return show.show(o.run, wish, o.listing, o.as_json, o.by, o.view, o.top, o.views, o.diff, o.evaluation)
    if o.command == "review":
        from trd_ray.review import command as review

        return review.review(o.run, o.reviewer)
    if o.command == "report":
        from trd_ray.report import command as report

        return report.run(o.runs, o.to, o.price)
    from trd_ray.chat import command as chat

    return chat.chat(o.model, o.prompt, o.plain, o.overrides)


def _doctor(options: argparse.Namespace) -> int:
    """Look, or try; no import here needs more than Python's own modules, since a machine may lack any package."""
    if options.gpu:
        if options.recipe or options.address:
            raise UserError("trd doctor --gpu tries the GPUs of this machine: leave the recipe and --address out")
        from trd_ray.doctor.gpu import trial

        out = Path(options.out or "runs/doctor-gpu").expanduser().absolute()
        return trial.run(options.only, out, as_json=options.json)
    if options.only or options.out:
        raise UserError("--only and --out belong to trd doctor --gpu: add --gpu, or leave them out")
    recipe = None
    if options.recipe:
        from trd_ray import config

        recipe = config.load(options.recipe, options.overrides)
    from trd_ray.doctor import command as doctor

    # With overrides it is no longer for the machine that its header names.
    name = "" if options.overrides else options.recipe or ""
    return doctor.run(recipe, options.address, name=name, json=options.json)


def _steer(options: argparse.Namespace) -> int:
    from trd_ray.steer import command as steer

    o = options
    if o.command == "status":
        return steer.status(o.run, o.address, o.json)
    if o.command == "logs":
        return steer.logs(o.run, o.log, o.address, o.lines, o.follow)
    if o.command == "checkpoint":
        return steer.checkpoint(o.run, o.address, o.timeout, wait=not o.no_wait)
    arguments = {"stop": lambda: {"now": o.now}, "scale": lambda: steer.sizes(o.sizes)}.get(o.command, dict)
    return steer.ask(o.run, o.command, arguments(), o.address, o.timeout)


def _init(options: argparse.Namespace) -> int:
    from trd_ray import draft

    columns = dict(column.partition("=")[::2] for column in options.column)
    mode = options.mode or ("opd" if options.teacher else "opsd")
    file = Path(options.file)
    wish = draft.Wish(file, options.model, options.teacher, mode, options.data, options.held_out, columns)
    print(draft.write(wish))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from trd_ray.compare import grid

    comparison = grid.load(options.comparison, options.overrides)
    grid.require_recipes(comparison)
    from trd_ray.session import dry

    asked = dry.asked(options)
    if options.from_cells:
        from trd_ray.compare import command

        if asked:
            raise UserError("--from-cells runs nothing: leave --dry-run out")
        return command.from_cells(options.comparison, options.overrides, options.from_cells)
    if asked and asked.on:
        from trd_ray.compare import engine_groups

        return engine_groups.elsewhere(comparison, asked.on)
    from trd_ray.compare import command

    if asked:
        return command.dry_run(options.comparison, options.overrides, asked.gpu_gib)
    return command.run(options.comparison, options.overrides)


def _reproduce(options: argparse.Namespace) -> int:
    from trd_ray import config
    from trd_ray.reproduce import figures

    overrides, names = _told_apart(options.overrides)
    config.load(options.recipe, overrides)
    found = figures.load(options.recipe, options.figures)
    specs = figures.asked(found, names)
    from trd_ray.reproduce import command
    from trd_ray.session import dry

    if asked := dry.asked(options):
        return command.dry_run(options.recipe, overrides, found, specs, asked)
    return command.run(options.recipe, overrides, found, specs)


def _told_apart(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Overrides, and everything else: names of benchmarks."""
    overrides = [a for a in arguments if OVERRIDE.fullmatch(a)]
    return overrides, [a for a in arguments if not OVERRIDE.fullmatch(a)]


def _evaluate(options: argparse.Namespace) -> int:
    from trd_ray.evaluate import target
    from trd_ray.session import dry

    overrides, benchmarks = _told_apart(options.overrides)
    recipe = target.target(options.recipe, overrides).recipe
    target.require_names(benchmarks, recipe)
    asked = dry.asked(options)
    if asked and asked.on:
        return asked.elsewhere(recipe, "evaluate")
    from trd_ray.evaluate import command

    if asked:
        return command.dry_run(options.recipe, benchmarks, overrides, options.base, asked)
    return command.run(options.recipe, benchmarks, overrides, options.name, options.base)


def _run(job) -> int:
    from trd_ray.session.stop import Stopped

    try:
        code = job()
        sys.stdout.flush()
        return code
    except UserError as e:
        _say(str(e))
        return 2
    except RunFailed as e:
        _say(str(e))
        return 1
    except Stopped as e:
        _say(f"stopped by {e}")
        return e.exit_code
    except BrokenPipeError:  # whoever read the output has gone, as in `trd recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _say(text: str) -> None:
    """Print on standard error. Data that the text quotes cannot control the terminal."""
    from trd_ray.record.markdown import visible

    with contextlib.suppress(OSError):  # a terminal that has gone away
        print(f"trd: {visible(text)}", file=sys.stderr, flush=True)


def run(arguments: list[str] | None = None) -> int:
    """The program `trd`, and each job script: what starts Ray runs below a process that outlives it."""
    collector.rarely()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    starts_ray = arguments[:1] and arguments[0] in SUPERVISED and "--dry-run" not in arguments
    return supervised(main, arguments) if starts_ray else main(arguments)


if __name__ == "__main__":
    sys.exit(run())
