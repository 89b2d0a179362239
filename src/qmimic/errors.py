"""The one exception that a user is meant to read."""


class InputError(Exception):
    """Bad input: one sentence that names the culprit and the fix.

    The command line prints it and exits with code 2, without a traceback.
    """
