"""Strings that a scenario, a data set, a client or a plug-in may choose, in the place of every string of a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedsim.recording.records import Round, as_record

MARK = "document.documentElement.dataset.intruder=1"
TEXT = (
    f"=cmd|' /C calc'!A0\x1b]0;owned\x07\x1b[2J\x9b31m\u202e</script></title></style></textarea>--><script>{MARK}</script>"
    f"<img src=x onerror={MARK}><svg onload={MARK}>\"onmouseover={MARK} autofocus onfocus={MARK} x='"
    f"' onclick={MARK} javascript:{MARK} [a](javascript:{MARK}) ![b](http://e.invalid/i) `c` | d\n"
    '$\\frac$ # e https://e.invalid/"><b>'
)
"""Whatever any place of a page, a table, a terminal or a spreadsheet would obey."""


HARMLESS = "words"


def spoil(run: Path, text: str = TEXT) -> int:
    """Put a text in the place of every string in a run folder that may hold any, and return how many these were."""
    count = 0
    for name, check in (("records.jsonl", as_record), ("rounds.jsonl", Round.model_validate)):
        lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
        for line in lines:
            count += _spoil(line, text, check)
        (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = {text: text, "versions": {text: text}, "packages": {text: text}, "platform": text, "python": text}
    (run / "environment.json").write_text(json.dumps(environment))
    scenario = {"name": text, "data": {"name": text, "path": text}, "threat": {"grants": [text]}, text: text}
    scenario |= {"attacks": [{"name": text, "label": text, "params": {text: text}}], "defenses": [{"name": text}]}
    (run / "scenario.yaml").write_text(json.dumps(scenario))
    return count


def _spoil(line: dict[str, Any], text: str, check: Callable[[Any], object]) -> int:
    count = 0
    for holder, key in list(_strings(line)):
        kept = holder[key]
        holder[key] = text
        if _is_taken(line, check):
            count += 1
        else:
            holder[key] = kept
    for holder in list(_mappings(line)):
        for key in list(holder):
            holder[text] = holder[key]
            if _is_taken(line, check):
                count += 1
                break
            del holder[text]
    return count


def _is_taken(line: dict[str, Any], check: Callable[[Any], object]) -> bool:
    try:
        check(line)
    except ValueError:
        return False
    return True


def _strings(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each place that holds a text: the container and its key; files of the run, which the gallery opens, aside."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(item, str) and key != "run":
            yield value, key
        elif key != "artifacts":
            yield from _strings(item)


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict):
        yield value
    for item in items:
        yield from _mappings(item)
