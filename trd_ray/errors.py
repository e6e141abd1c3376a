"""The package's own exceptions. `failures.kind_of` tells for any exception which of these it amounts to.

The text of two is for the person who started the job. The command line prints it without a traceback:

- UserError: something that the user can fix, such as a recipe, a file or a placement. Exit code 2.
- RunFailed: what ended a run that was started with everything right. Exit code 1.

Two are for the code that can go on after them:

- Lost: a process, a connection or a machine's patience is gone. The same work is done again.
- BadRow: one row cannot be made, and it is the row's own fault. The row is dropped.

Where several things are wrong, `Faults` gathers them, and all are told at once.
"""


class UserError(Exception):
    """One or more sentences that say what was expected, what was found, and what to set or do."""

    def __init__(self, *sentences: object):
        super().__init__(*sentences)
        self.sentences = tuple(map(str, sentences))

    def __str__(self) -> str:
        if len(self.sentences) == 1:
            return self.sentences[0]
        return "\n  - ".join([f"{len(self.sentences)} things are in the way:", *self.sentences])


class Faults:
    """Everything that is wrong, from checks that do not depend on one another.

    `with faults:` around each check keeps its UserError and goes on after the block. `require_none` raises all of them.
    """

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, UserError):
            return False
        self.add(*error.sentences)
        return True

    def add(self, *sentences: str) -> None:
        self.sentences += [sentence for sentence in sentences if sentence not in self.sentences]

    def require_none(self) -> None:
        """Raise UserError if anything is wrong."""
        if self.sentences:
            raise UserError(*self.sentences)


class RunFailed(RuntimeError):
    """The run cannot go on. The message says what failed and what to do."""


class Lost(RuntimeError):
    """What did the work is gone, for no fault of the work: it is to be done again, elsewhere if that can be."""


class BadRow(Exception):
    """A row cannot be made out of its own data; the message says why, and doing it again would say the same."""
