"""The one exception a user is meant to read.

Raised for anything the user can mend: a recipe, a file, a placement. The command line prints its sentence alone
(no traceback) and exits with code 2.
"""


class UserError(Exception):
    """A sentence that says what was expected, what was found, and what to set or do."""
