"""Functions and classes that a user names as "module:name": a model's factory, a loss, what clients trained on."""

from __future__ import annotations

import importlib
import re
from typing import Any

from fedsim.errors import ScenarioError, printable
from fedsim.validation import shown

_LONGEST = 200  # characters
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def imported(target: str, where: str, wanted: str) -> Any:
    """Return what a "module:name" names, which can be called.

    Args:
        target: importable from the working directory, or installed.
        where: the YAML path of the text, for messages.
        wanted: what it is called in messages, such as 'module:factory'.

    Raises:
        ScenarioError: it is no such text, cannot be imported, or cannot be called.
    """
    if len(target) > _LONGEST or not _TARGET.fullmatch(target):
        raise ScenarioError(where, f"expected {wanted}, got {shown(target)}.")
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ScenarioError(
            where,
            f"cannot import {target!r}: {printable(str(error), 500)}. A name with a colon means {wanted.split()[-1]}, "
            f"importable here.{_advice(error)}",
        ) from None
    if not callable(found):
        raise ScenarioError(where, f"{target} is {type(found).__name__}, expected a function or a class.")
    return found


def _advice(error: Exception) -> str:
    missing = isinstance(error, ModuleNotFoundError)
    return " Work in the folder of your app, or install the app here." if missing else ""
