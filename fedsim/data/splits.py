"""Training, validation and test splits, told from classes by the names of folders and by what is in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from fedsim.errors import ScenarioError

Split = Literal["train", "test", "validation"]
_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
}


@dataclass(frozen=True)
class Child:
    """A folder inside a data folder.

    Args:
        path: where it lies.
        inner: names of the folders in it that hold images, at any depth.
        is_filled: whether it holds images, at any depth.
    """

    path: Path
    inner: frozenset[str]
    is_filled: bool

    @property
    def split(self) -> Split | None:
        """The split that its whole name stands for, in any case."""
        return split_of(self.path.name)

    @property
    def mentioned(self) -> Split | None:
        """The split that a word of its name stands for, as in `training_set` and `val2017`."""
        words = re.findall(r"[a-z]+", self.path.name.lower())
        return next((_WORDS[word] for word in words if word in _WORDS), None)


@dataclass(frozen=True)
class Splits:
    """The folders to train and to test on.

    Args:
        train: folder of the class folders to train on.
        test: the same for testing; None where there is none.
        notes: which folders are used, and which are left out.
    """

    train: Path
    test: Path | None
    notes: tuple[str, ...]


def split_of(name: str) -> Split | None:
    """Return the split that a name stands for, whatever its case."""
    return _WORDS.get(name.lower())


def divide(children: Sequence[Child], where: str, wants_test: bool = True) -> Splits | None:
    """Return the splits that the folders inside a data folder are; None where they are classes.

    A split is named after one and has class folders inside. A class may be called "train": its images lie directly in
    its folder, beside classes of other names.

    Args:
        children: the folders inside the data folder.
        where: YAML path of the parameter that names the data folder.
        wants_test: whether to test on a split inside it; False where the test images lie elsewhere.

    Raises:
        ScenarioError: they look like splits, but it is not clear which to use.
    """
    divided = {split: [one for one in children if one.split == split and one.inner] for split in _WORDS.values()}
    trains, tests = divided["train"], divided["test"] or divided["validation"]
    if not trains:
        _refuse_splits(children, where)
        return None
    for same in (trains, tests if wants_test else []):
        if len(same) > 1:
            raise ScenarioError(where, f"{listed(same)} have the same meaning. {_advice(trains[0], tests[:1], where)}")
    train, test = trains[0], tests[0] if tests and wants_test else None
    others = [one for one in children if one.is_filled and one.split is None]
    if others and not tests:
        raise ScenarioError(
            where,
            f"{train.path} looks like a split, since it has class folders inside, and {listed(others)} like classes. "
            f"{_advice(train, [], where)} If it is a class, put its images directly into it.",
        )
    notes = [f"{where}: {train.path} is used for training" + (f", {test.path} for testing." if test else ".")]
    if left_out := [one for one in children if one.is_filled and one not in (train, test)]:
        notes.append(f"{where}: not used: {listed(left_out)}.")
    return Splits(train.path, test.path if test else None, tuple(notes))


def _refuse_splits(children: Sequence[Child], where: str) -> None:
    filled = [one for one in children if one.is_filled]
    suspects = [one for one in filled if one.mentioned]
    alike = [
        pair
        for pair in combinations(filled, 2)
        if pair[0].inner & pair[1].inner and (any(one.split for one in pair) or all(one.mentioned for one in pair))
    ]
    exact = [one for one in filled if one.split]
    if alike:
        found = list(alike[0])
    elif suspects and len(suspects) == len(filled):
        found = suspects
    elif len(exact) > 1 and any(one.split == "train" for one in exact):
        found = exact
    else:
        return
    # What is to be trained on comes first; "images" beside "test" is.
    found.sort(key=lambda one: ("train", None, "test", "validation").index(one.mentioned))
    look = "look like splits, not like classes" if len(found) > 1 else "looks like a split, not like a class"
    tests = [one for one in found[1:] if one.inner]
    raise ScenarioError(where, f"{listed(found)} {look}. {_advice(found[0], tests, where)}")


def _advice(train: Child, tests: Sequence[Child], where: str) -> str:
    if not train.inner:
        return f"{train.path} has no class folders: give every class a folder of its own inside, with its images."
    tested = f", {where.replace('path', 'test_path')}: {tests[0].path}" if tests else ""
    return f"Give {where}: {train.path}{tested}."


def listed(folders: Sequence[Child]) -> str:
    """Return the paths of folders in words, at most three of them."""
    shown = [str(one.path) for one in folders[:3]] + ([f"{len(folders) - 3} more"] if len(folders) > 3 else [])
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
