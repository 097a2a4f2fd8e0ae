"""The exception tree, split by who can act on the error.

    SftError
    ├── OptionsError     the command line or API call is wrong: change the call
    ├── DataError        images, labels or weight files are wrong: change the files
    ├── TrialError       one trial cannot go on (a NaN loss): the study goes on without it
    └── TrackingError    MLflow or the study's storage refuses: look at the server

Only the command line turns these into an exit code and a message without a traceback.
A bug keeps its traceback.
"""

from __future__ import annotations

# Some hold a whole chain of errors in one line.
_SHORT = 200


class SftError(Exception):
    """Root of every error that a user can act on."""

    exit_code = 1


class OptionsError(SftError):
    """The options are wrong, alone or together; the message lists every problem found."""

    exit_code = 2


class DataError(SftError):
    """Images, labels, tables or weight files are missing, broken or contradictory."""


class TrialError(SftError):
    """A single trial cannot go on; the study can."""


class TrackingError(SftError):
    """MLflow or the study's storage does not hold or accept what is needed."""


def first_line(error: BaseException) -> str:
    """What another library's error says in short, or its kind where it says nothing."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) <= _SHORT else f"{line[: _SHORT - 1]}…"
