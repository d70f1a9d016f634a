"""Parts of plug-ins by name: built in, offered by an installed distribution, or "module:name" while developing.

A plug-in that is composed of exchangeable parts keeps one registry a kind of part. Anybody adds a part by an entry point of the
registry's group; the name is then used as a built-in one is. Listing names imports nothing.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from fedsim.errors import PluginError, nearest, told

Part = TypeVar("Part")


class Registry(Generic[Part]):
    """The parts of one kind.

    Args:
        noun: what a part is called in messages.
        group: of entry points.
        own: built-in parts by name, in the order in which they are listed.
        is_part: whether something that was imported is a part.
        wanted: what a part has to be, in words.
    """

    def __init__(
        self, noun: str, group: str, own: Mapping[str, Part], is_part: Callable[[Any], bool], wanted: str
    ) -> None:
        self.noun, self.group, self.own = noun, group, dict(own)
        self.is_part, self.wanted = is_part, wanted

    @property
    def names(self) -> list[str]:
        """Built-in names, then those of installed distributions."""
        return [*self.own, *self._offered]

    def find(self, name: str) -> Part:
        """Return the part called `name`, which may also be a "module:name".

        Raises:
            ValueError: there is none; the message names the nearest match and what there is.
            PluginError: a part that cannot be imported or is none, or a name that is offered twice.
        """
        offered = self._offered
        if name in self.own:
            return self.own[name]
        if name in offered:
            return self._import(offered[name].value, f"of {_distribution(offered[name])}")
        if ":" in name:
            return self._import(name, "with a colon, which means 'module:name', importable here")
        raise ValueError(f"no {self.noun} {name!r}.{nearest(name, self.names)} Known: {', '.join(self.names)}.")

    @cached_property
    def _offered(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            if point.name in self.own:
                raise PluginError(
                    f"{self.noun} {point.name!r} of {_distribution(point)} ({point.value}) is built in. Rename it."
                )
            other = found.setdefault(point.name, point)
            if other.value != point.value:
                raise PluginError(
                    f"{self.noun} {point.name!r} is offered twice, by {_distribution(other)} ({other.value}) and by "
                    f"{_distribution(point)} ({point.value}). Uninstall one of the two."
                )
        return found

    def _import(self, target: str, origin: str) -> Part:
        module, _, attribute = target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # noqa: BLE001  (boundary: other people's module)
            raise PluginError(f"cannot import the {self.noun} {target!r} {origin}: {told(error)}.") from None
        if not self.is_part(found):
            kind = "a class" if inspect.isclass(found) else type(found).__name__
            raise PluginError(f"the {self.noun} {target!r} {origin} is {kind}; expected {self.wanted}.")
        part: Part = found
        return part


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown distribution"
