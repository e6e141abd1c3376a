"""The keys of verifiers: which function judges a response, how it is called, and the limits of the built-in ones."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trd_ray.config.close_words import did_you_mean
from trd_ray.config.effects import ANSWERS, MACHINES, NUMBERS, ROWS, VERDICTS
from trd_ray.config.node import Node

# The verifiers that have a name of their own, each with whether it takes verify.arguments. trd_ray.verify.chosen has
# the table that makes them.
JUDGE = "judge"  # a model judges
REVIEW = "review"  # a person judges
BUILT_IN = {"math": False, "code": False, "reasoning_gym": False, JUDGE: False, REVIEW: False}

IDS = "completion_ids"  # TRL's name of a response's token ids
_OWN = re.compile(r"([^:]+\.py|[A-Za-z_][\w.]*):([A-Za-z_]\w*)")


def is_own(function: str | None) -> bool:
    """Whether it names a user's function, in a file or in a package, and not one that is built in."""
    return ":" in (function or "")


def own_parts(function: str) -> tuple[str, str]:
    """The file or the module of a user's function, and its name there."""
    place, _, name = function.rpartition(":")
    return place, name


def named_function(function: str) -> str:
    """The name, unchanged. Raises ValueError where it names no verifier by its form."""
    if function in BUILT_IN or _OWN.fullmatch(function):
        return function
    if ":" in function:
        raise ValueError(
            f"must name a function as file.py:name or package.module:name, but found {function!r}: write the path of a "
            "Python file, or a module that can be imported, then a colon and the function's name"
        )
    raise ValueError(
        f"names no verifier: {function!r}{did_you_mean(function, list(BUILT_IN))}; a function of your own is "
        "file.py:name or package.module:name"
    )


def _task_of(functions: set[str]) -> Literal["math", "code", "plain"]:
    functions = functions - {JUDGE} or functions  # beside others it takes whatever form they want
    if functions == {"math"}:
        return "math"
    return "code" if functions == {"code"} else "plain"


class NamedFunction(Node):
    """One of several verifiers."""

    function: Annotated[str, VERDICTS] = Field(description="as verify.function")
    arguments: Annotated[dict[str, Any], VERDICTS] = Field(default_factory=dict, description="as verify.arguments")
    weight: Annotated[float, VERDICTS] = Field(default=1.0, ge=0, description="0: it is shown and does not count")
    pass_at: Annotated[float | None, VERDICTS] = Field(
        default=None,
        description="its own score must reach this too for a response to pass; with verify.by in place of "
        "verify.pass_at",
    )

    @field_validator("function")
    @classmethod
    def _names_a_verifier(cls, function: str) -> str:
        return named_function(function)

    @property
    def counts(self) -> bool:
        """Whether a response may pass or fail by it."""
        return bool(self.weight) or self.pass_at is not None

    @model_validator(mode="after")
    def _takes_arguments(self) -> "NamedFunction":
        if self.arguments and not BUILT_IN.get(self.function, True):
            raise ValueError(f"has arguments, but the built-in verifier {self.function} takes none: leave them out")
        return self


class FunctionKeys(Node):
    """Which function judges, and how one of the user's own is called."""

    function: Annotated[str | None, ROWS, NUMBERS, ANSWERS, VERDICTS] = Field(
        default=None,
        description="what judges: my_rewards.py:score (beside the recipe, or from where trd is called), "
        "package.module:name, or a built-in one by its name; default: code where a problem has tests, "
        "reasoning_gym for an item of it, else math",
    )
    arguments: Annotated[dict[str, Any], VERDICTS] = Field(
        default_factory=dict, description="given to the function by name, or to the class when it is made"
    )
    pass_at: Annotated[float, VERDICTS] = Field(
        default=1.0, description="a response passes with this score or more; below it the score is partial credit"
    )
    functions: Annotated[dict[str, NamedFunction], ROWS, NUMBERS, ANSWERS, VERDICTS] = Field(
        default_factory=dict,
        description="several verifiers by names of yours, in place of function: the score is their weighted mean, or "
        "with verify.by one of them judges a row",
    )
    by: Annotated[str | None, VERDICTS] = Field(
        default=None, description="the column, or the word source, whose value names the one of verify.functions"
    )
    completions: Annotated[Literal["auto", "text", "messages"], VERDICTS] = Field(
        default="auto",
        description="how a function gets prompts and completions: as text or as chat messages; auto: messages where "
        'its code reads ["content"]',
    )
    columns: Annotated[dict[str, str], VERDICTS] = Field(
        default_factory=dict,
        description="a function's parameter -> the column that it gets, where their names differ; data.columns is "
        "taken in",
    )
    deadline_s: Annotated[float, VERDICTS] = Field(
        default=10.0, gt=0, description="one call of a function of your own; later it is ended and the row fails"
    )
    call_memory_gib: Annotated[float, VERDICTS] = Field(
        default=4.0, gt=0, description="what a function of your own may take, beyond what its imports take"
    )
    by_source: Annotated[dict[str, str], VERDICTS] = Field(
        default_factory=dict,
        description="a source's name -> the verifier that judges its rows alone, filled in from data.sources",
    )
    sources: Annotated[dict[str, str], VERDICTS] = Field(
        default_factory=dict,
        description="the text of the files that functions are in, filled in when a recipe is read: it travels with "
        "the run, and a run that goes on keeps it",
    )

    @field_validator("function")
    @classmethod
    def _names_a_verifier(cls, function: str | None) -> str | None:
        return named_function(function) if function is not None else None

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> "FunctionKeys":
        if self.function and self.functions:
            raise ValueError(
                "names both function and functions: leave function out, and write it as one of verify.functions"
            )
        if self.by and not self.functions:
            raise ValueError("by chooses among functions, and there are none: set verify.functions")
        if self.functions and not self.by and not any(one.weight for one in self.functions.values()):
            raise ValueError("functions all have weight 0, so there is no score: give one of them a weight")
        if self.arguments and not BUILT_IN.get(self.function or "math", True):
            raise ValueError(
                f"arguments are for a function of your own, but the built-in verifier {self.function or 'math or code'}"
                " takes none: leave them out"
            )
        return self

    @property
    def chosen(self) -> dict[str, NamedFunction]:
        """The verifiers that are named, by their names in verify.functions; "" is the name of verify.function."""
        if self.function:
            return {"": NamedFunction(function=self.function, arguments=self.arguments)}
        return self.functions

    @property
    def has_own(self) -> bool:
        """Whether a user's function judges any row."""
        return any(is_own(one.function) for one in self.chosen.values())

    def is_judge(self, name: str) -> bool:
        """Whether the verifier of this name, one of functions or one that is built in, is the judge."""
        named = self.chosen.get(name)
        return (named.function if named else name) == JUDGE

    @property
    def has_usual_rows(self) -> bool:
        """Whether rows whose source names no verifier go to the built-in ones, though others are named."""
        return bool(self.by_source and self.functions and not self.by)

    def may_ask_judge(self, source: str | None) -> bool:
        """Whether the judge may be asked about a row of this source."""
        if name := self.by_source.get(source or ""):
            return self.is_judge(name)
        return not self.has_usual_rows and any(map(self.is_judge, self.chosen))

    @property
    def names_judge(self) -> bool:
        """Whether the judge may be asked about some row."""
        return any(map(self.is_judge, [*self.chosen, *self.by_source.values()]))

    @property
    def reads_columns(self) -> bool:
        """Whether columns of the data that are none of ours say anything to what judges."""
        return self.has_own or bool(self.by)

    @property
    def may_take_ids(self) -> bool:
        """Whether a function may ask for a response's token ids: one in a file that says so, or one in a package."""
        own = [own_parts(one.function)[0] for one in self.chosen.values() if is_own(one.function)]
        in_package = any(not place.endswith(".py") for place in own)
        return in_package or (bool(own) and any(IDS in text for text in self.sources.values()))

    @property
    def asks_a_person(self) -> bool:
        """Whether a person judges any row (verify.function: review)."""
        return REVIEW in self.by_source.values() or any(one.function == REVIEW for one in self.chosen.values())

    @property
    def needs_answers(self) -> bool:
        """Whether every problem must say what its responses are compared with, by its answer or its tests."""
        return not self.has_own and not self.asks_a_person and not self.names_judge

    @property
    def usual_task(self) -> Literal["math", "code", "plain"]:
        """Whose default wordings fit. A function of one's own says nothing about the form of an answer."""
        return _task_of({one.function for one in self.chosen.values()} or {"math"})

    def named_for(self, source: str | None) -> set[str]:
        """The verifiers of which some judge a row of this source; none: the built-in one that its row calls for."""
        if name := self.by_source.get(source or ""):
            return {self.chosen[name].function if name in self.chosen else name}
        if self.has_usual_rows:
            return set()
        return {one.function for one in self.chosen.values()}

    def task_of(self, source: str | None, is_item: bool) -> Literal["math", "code", "plain"]:
        """`usual_task` for a row of this source; an item of reasoning_gym says itself what its scorer reads."""
        return _task_of(self.named_for(source) or {"reasoning_gym" if is_item else "math"})


class VerifyConfig(FunctionKeys):
    """How answers are judged. By default a problem with tests is code and runs in the sandbox, any other is maths."""

    timeout_s: Annotated[float, VERDICTS] = Field(default=5.0, gt=0, description="math, reasoning_gym: a single answer")
    answer_in_prose: Annotated[bool, VERDICTS] = Field(
        default=False, description="math: accept a stated answer where no \\boxed{} is"
    )
    answer_in_formula: Annotated[bool, VERDICTS] = Field(
        default=False, description="math, beside answer_in_prose: the last formula where nothing is stated"
    )
    sandbox: Annotated[Literal["auto", "bubblewrap", "unshare", "unsafe_no_sandbox"], MACHINES] = Field(
        default="auto", description="code: auto takes bubblewrap, else util-linux's unshare, and refuses without them"
    )
    time_limit_s: Annotated[float, ROWS, VERDICTS] = Field(
        default=10.0, gt=0, description="code: a test case whose data names no limit"
    )
    memory_mib: Annotated[int, ROWS, VERDICTS] = Field(
        default=1024, ge=64, description="code: a program whose data names no limit"
    )
    program_timeout_s: Annotated[float, ROWS, VERDICTS] = Field(
        default=120.0, gt=0, description="code: all test cases of a program"
    )
    max_tests: Annotated[int | None, ROWS, VERDICTS] = Field(
        default=None, ge=1, description="code: only a problem's first test cases"
    )
    concurrency: Annotated[int, MACHINES] = Field(
        default=1,
        ge=1,
        description="calls of a function of your own at once in a verifier task, each in a process of its own; raise "
        "it for a function that waits for a server",
    )
    cpus: Annotated[float, MACHINES] = Field(default=1.0, gt=0, description="Ray CPUs a verifier task reserves")
    max_tasks: Annotated[int, MACHINES] = Field(default=8, ge=1)

    def built_in(self) -> "VerifyConfig":
        """The same without functions: tests are run, answers compared."""
        without = {"function": None, "arguments": {}, "functions": {}, "by": None, "by_source": {}}
        return self.model_copy(update=without)

    def without_judge(self) -> "VerifyConfig":
        """The same for rows that can be judged without engines, and for the others what is left without the judge."""
        functions = {name: one for name, one in self.functions.items() if not self.is_judge(name)}
        return self.model_copy(
            update={
                "function": None if self.function == JUDGE else self.function,
                "functions": functions,
                "by": self.by if functions else None,
                "by_source": {source: name for source, name in self.by_source.items() if not self.is_judge(name)},
            }
        )

    @property
    def may_run_code(self) -> bool:
        """Whether programs run for problems that have tests."""
        named = [one.function for one in self.chosen.values()] + list(self.by_source.values())
        return not self.chosen or self.has_usual_rows or "code" in named
