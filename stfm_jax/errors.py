"""The error a person caused and a person can mend.

Raised on the host, before jit, wherever input from outside is read or checked. `run.py` prints its
message behind `error:` and exits with 2; any other exception is a bug and keeps its traceback.
"""


class InputError(ValueError):
    """Bad input. The message says what was expected, what was found, where, and what to do."""
