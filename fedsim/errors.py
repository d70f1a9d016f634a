"""What a user can do something about: printed without a traceback, exit code 2.

Every message says, in this order: where (the YAML path or the file), what was given, what is allowed, what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_LONGEST_PLACE = 300  # characters of a YAML path or a file's path
_LONGEST_LINE = 2000  # characters of one line in the terminal


class FedsimError(Exception):
    """Any error that the user can mend; the command line prints the message alone and exits with 2."""


class ScenarioError(FedsimError):
    """A scenario that cannot mean what it says; the message starts with the YAML path.

    Args:
        where: YAML path, dots between the parts, as in `attacks.0.params.steps`.
        message: what was given, what is allowed, what to do.
    """

    def __init__(self, where: str, message: str) -> None:
        # A key of the file may be of any length, and hold line breaks and escape codes.
        super().__init__(f"{printable(where, _LONGEST_PLACE)}: {message}" if where else message)
        self.where = where
        self.message = message

    def __reduce__(self) -> tuple[type[ScenarioError], tuple[str, str]]:
        """Pickle by the two arguments, so that the error survives the way back from a worker process."""
        return type(self), (self.where, self.message)


class PluginError(FedsimError):
    """An installed plug-in that breaks the contract or clashes with another."""


class RunFolderError(FedsimError):
    """A run folder that is missing, damaged or of another schema; the message starts with the file."""


class AttackRefusedError(FedsimError):
    """Raised by an attack whose precondition this observation does not meet.

    The audit records the attempt with `status: refused` and this message; it is not a failure of the run.
    """


class EvaluationRefusedError(FedsimError):
    """Raised by an evaluator that cannot be asked of this model; recorded with `status: refused` and this message."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest allowed word, whatever its case, or nothing when none is close."""
    by_lower = {word.lower(): word for word in allowed}
    matches = difflib.get_close_matches(given[:_LONGEST_PLACE].lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[matches[0]]!r}?" if matches else ""


def message_of(error: BaseException) -> str:
    """Return what other people's exception says, or nothing where its `str` raises as well."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (boundary: the exception may be of a plug-in or of a client)
        return ""


def told(error: BaseException, longest: int = 300) -> str:
    """Return class and message of other people's exception in one line of printable text, even where its `str` raises."""
    text = " ".join(message_of(error).split()).rstrip(".")
    name = type(error).__name__
    return printable(f"{name}: {text}" if text else name, longest)


def printable(text: str, longest: int) -> str:
    """Return a text with everything escaped that a terminal would obey or cannot show, cut at `longest` characters."""
    cut = text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def printable_line(text: str) -> str:
    """Return a text as one line for a terminal, of a length that can be read."""
    return printable(text, _LONGEST_LINE)


def printable_lines(text: str) -> str:
    """Return a text of several lines for a terminal, each of a length that can be read."""
    return "\n".join(map(printable_line, text.split("\n")))


def without_numbers(text: str) -> str:
    """Return a sentence with # for each number, so that sentences which differ in numbers alone are one."""
    return _NUMBER.sub("#", text)
