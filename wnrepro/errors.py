"""The one exception for a user's mistake."""


class UserError(Exception):
    """A mistake that the user can mend: one sentence saying what, where and what to do. Exit code 2."""
