"""The exceptions whose text is meant to be read by whoever started the job.

UserError is for anything the user can fix: a recipe, a file, a placement. RunFailed is for what ended a run that was
well asked for. The command line prints their sentence alone (no traceback), with exit code 2 and 1.
"""


class UserError(Exception):
    """A sentence that says what was expected, what was found, and what to set or do."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message says what failed and what to do."""
