"""What a user is told without a traceback."""


class UserError(Exception):
    """A mistake that the user can mend: one sentence saying what, where and what to do."""

    exit_code = 2


class DiskError(UserError):
    """A disk that is full, or a folder that cannot be written, before a run or in the middle of it."""

    exit_code = 1
