"""Deliberately broken plug-ins, each caught without being run. The paper of none of them: https://example.org"""

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest
import torch

from fedsim.attack import Attack
from fedsim.defense import Defense
from fedsim.testing import check_attack, check_defense
from fedsim.testing.contract import check_contract as check_with
from fedsim.testing.isolation import told_at_once

if TYPE_CHECKING:
    from fractions import Fraction

plugin = dataclass(frozen=True, kw_only=True)


def check_contract(checked: Any, contract: type, params: dict[str, Any]) -> Any:
    with told_at_once() as faults:
        return check_with(checked, contract, params, faults)


@plugin
class Sound(Defense):
    citation: ClassVar[str] = "Nobody. Nothing. https://example.org"

    share: float = 0.5
    rounds: int | None = None
    kind: Literal["a", "b", 3, None] = "a"
    layers: tuple[str, ...] = ("head",)
    weights: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {"x": [1e-5]})
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share: expected a number between 0 and 1, got {self.share}.")


class Undecorated(Sound):
    added: int = 3


@dataclass(frozen=True)
class Positional(Sound):
    added: int = 3


@plugin
class WithoutDefault(Sound):
    added: int


@plugin
class TensorField(Sound):
    added: torch.Tensor | None = None


@plugin
class PathField(Sound):
    added: Path = Path("x")


@plugin
class BareList(Sound):
    added: list = dataclasses.field(default_factory=list)


@plugin
class UnknownAnnotation(Sound):
    added: "Fraction | None" = None


@plugin
class RefusesDefaults(Sound):
    share: float = 1.0


@plugin
class AcceptsNaN(Sound):
    added: float = 0.5


@plugin
class NamesNoField(Sound):
    added: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.added < 0:
            raise ValueError(f"expected at least 0, got {self.added}.")


@plugin
class ListByDefault(Sound):
    added: tuple[int, ...] = dataclasses.field(default_factory=lambda: [1, 2])


@plugin
class NumberedKeys(Sound):
    added: dict[str, int] = dataclasses.field(default_factory=lambda: {1: 2})


@plugin
class Unpicklable(Sound):
    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle")


@plugin
class ForgetsWhenPickled(Sound):
    def __reduce__(self) -> Any:
        return ForgetsWhenPickled, ()


@plugin
class DriftsWhenCopied(Sound):
    def __deepcopy__(self, memo: dict[int, Any]) -> "DriftsWhenCopied":
        return DriftsWhenCopied(share=self.share / 2)


@plugin
class WithoutCitation(Defense):
    pass


@plugin
class CitesWithoutLink(Sound):
    citation: ClassVar[str] = "Somebody. Something. 2020."


@plugin
class Open(Attack):
    citation: ClassVar[str] = "Nobody. Nothing. https://example.org"


CAUGHT = {
    Undecorated: "is not decorated itself",
    Positional: "Positional.added is positional",
    WithoutDefault: "WithoutDefault.added has no default",
    TensorField: "TensorField.added: YAML cannot express",
    PathField: "PathField.added: YAML cannot express",
    BareList: "BareList.added: YAML cannot express",
    UnknownAnnotation: "annotations cannot be read at run time: name 'Fraction' is not defined",
    RefusesDefaults: "default values are refused: share: expected",
    AcceptsNaN: "accepts added=nan",
    NamesNoField: "refuses added=-1 with 'expected at least 0, got -1.'; begin the message with the field",
    ListByDefault: "a scenario file turns .*added=\\[1, 2\\].* into .*added=\\(1, 2\\)",
    NumberedKeys: "its parameters do not survive a scenario file: NumberedKeys.added.1: expected text, got 1",
    Unpicklable: "cannot be pickled",
    WithoutCitation: "citation must be a text with a link.*got None",
    CitesWithoutLink: "citation must be a text with a link.*got 'Somebody",
}


@pytest.mark.parametrize("broken", CAUGHT, ids=lambda cls: cls.__name__)
def test_a_class_outside_the_contract_is_caught(broken: type) -> None:
    with pytest.raises(AssertionError, match=CAUGHT[broken]):
        check_defense(broken)


@pytest.mark.parametrize(
    ("broken", "message"),
    [(ForgetsWhenPickled, "differs from itself after pickling"), (DriftsWhenCopied, "differs from its deep copy")],
)
def test_copies_are_compared_with_other_values_than_the_defaults(broken: type, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_defense(broken, share=0.25)


def test_an_abstract_class_is_caught() -> None:
    with pytest.raises(AssertionError, match="leaves abstract methods open: run"):
        check_attack(Open)


def test_a_defense_is_no_attack() -> None:
    with pytest.raises(AssertionError, match="Sound is not a subclass of Attack"):
        check_contract(Sound, Attack, {})


def test_a_module_without_a_link_to_the_paper_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "__doc__", "No paper here.")
    with pytest.raises(AssertionError, match="docstring of its module lacks a link"):
        check_defense(Sound)


def test_parameters_configure_a_class_and_change_an_instance() -> None:
    assert check_contract(Sound, Defense, {"share": 0.25}) == Sound(share=0.25)
    assert check_contract(Sound(share=0.25), Defense, {}) == Sound(share=0.25)
    assert check_contract(Sound(share=0.25), Defense, {"rounds": 3}) == Sound(share=0.25, rounds=3)


def test_values_that_the_class_refuses_stay_errors_of_the_caller() -> None:
    with pytest.raises(ValueError, match="share: expected"):
        check_defense(Sound, share=math.inf)


def test_a_sound_plugin_passes() -> None:
    check_defense(Sound)


@plugin
class WrongInEveryWay(Defense):
    added: Path = Path("x")
    share: float = 0.5
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("too few.")

    def cautions(self, model: Any) -> tuple[str, ...]:
        return ("no stop",)

    def protect_update(self, update: Any, context: Any, generator: torch.Generator) -> Any:
        return dataclasses.replace(update, tensors=dict(reversed(update.tensors.items())))


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(AssertionError) as caught:
        check_defense(WrongInEveryWay)
    first, *listed = str(caught.value).splitlines()
    assert first == f"{len(listed)} faults:"
    for fault in (
        "WrongInEveryWay.citation must be a text with a link",
        "WrongInEveryWay.added: YAML cannot express",
        "parameters do not survive a scenario file",
        "WrongInEveryWay accepts share=nan",
        "WrongInEveryWay refuses count=-1 with 'too few.'",
        "WrongInEveryWay.protect_update must keep the names",
        "each caution must be one sentence",
    ):
        assert sum(fault in line for line in listed) == 1, (fault, listed)


@plugin
class OwnIdea(Sound):
    citation: ClassVar[str] = "..."


def test_a_plugin_that_cites_no_paper_needs_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "__doc__", "Pruning: only the largest entries are sent.\n\nPaper: ...")
    check_defense(OwnIdea)


@plugin
class Nameless(Sound):
    citation: ClassVar[str] = " "


def test_an_empty_citation_is_caught() -> None:
    with pytest.raises(AssertionError, match="citation must be a text"):
        check_defense(Nameless)


@pytest.mark.parametrize("text", ["Somebody, 2020.", "Somebody et al.", "arXiv 1906.08935", "doi 10.1/2"])
def test_a_citation_that_names_a_paper_needs_a_link(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, "citation", text)
    with pytest.raises(AssertionError, match=r"with a link \(http\.\.\.\) where it names a paper"):
        check_defense(Sound)


def test_an_error_of_the_plugin_itself_carries_the_faults_found_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, "citation", "Somebody, 2020.")
    monkeypatch.setattr(Sound, "protect_update", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        check_defense(Sound)
    assert "citation must be a text with a link" in caught.value.__notes__[0]
