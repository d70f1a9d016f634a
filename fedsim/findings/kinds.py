"""The kinds of what an attack can find: one table, from which claims are checked, scored, judged and named.

A new kind is an entry here and a row in `fedsim.metrics.table`; one that needs a new field of `Finding` adds that field in
`fedsim.exchange` and its name to `fedsim.attack.Recovers` too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from fedsim.attack import Recovers
from fedsim.exchange import Finding, Observation, Truth
from fedsim.findings import blind, checks, promises
from fedsim.findings.blind import Auxiliary

HeadInputs = Callable[[], Float[Tensor, "batch embed"]]
Guess = Callable[[Truth, Auxiliary | None], Tensor | None]


@dataclass(frozen=True)
class FindingField:
    """A field of `Finding`, which one kind or several are found in.

    Args:
        name: in `Finding`, and of its tensor in a stored one.
        checked: returns what an attack hands over as it is stored, or raises TypeError or ValueError.
        fault: returns what breaks an author's promise, for the conformance kit; None where nothing does.
    """

    name: Recovers
    checked: Callable[[Any, Observation], Tensor]
    fault: Callable[[Tensor, Observation], str | None]


@dataclass(frozen=True, eq=False, kw_only=True)
class FindingKind:
    """A kind of what an attack can find.

    Args:
        name: in verdicts, reports and the catalogue of metrics.
        field: where a finding holds it.
        holds: whether what the field holds is of this kind.
        truth: returns what a metric compares all that was found with.
        guesses: control -> the guess of somebody who never saw the update; None without the auxiliary data that it needs. A
            control that is new has its title in `fedsim.metrics.skill`.
        assigned: who assigns found items to true ones, so that more of them flatter. `once`: one assignment serves all metrics,
            which compare one found and one true item, and the best item of a batch is looked for. `by each metric`: as soft
            labels. None: nobody; found items count by their proportions.
        is_luck: whether a single blind guess may be right by chance, so that one attempt alone proves nothing.
        follows: which of a client's inputs, once a defense has changed them, are the truth to score against; `own images` where
            these remain it, whatever was made of them. None: the truth of changed images is not known.
    """

    name: str
    field: FindingField
    holds: Callable[[Tensor], bool] = lambda found: True
    truth: Callable[[Truth, HeadInputs], tuple[Any, ...]]
    guesses: Mapping[str, Guess] = dataclasses.field(default_factory=dict)
    assigned: Literal["once", "by each metric"] | None = None
    is_luck: bool = False
    follows: Literal["images", "labels", "own images"] | None = None

    @property
    def is_paired(self) -> bool:
        """Whether one assignment puts each found item beside a true one, for all metrics."""
        return self.assigned == "once"

    def held(self, finding: Finding) -> Tensor | None:
        """Return what a finding holds of this kind; None where it holds none."""
        found: Tensor | None = getattr(finding, self.field.name)
        return found if found is not None and self.holds(found) else None


def _other_mean_image(truth: Truth, auxiliary: Auxiliary | None) -> Tensor | None:
    if auxiliary is None or auxiliary.image is None:
        return None
    return blind.dataset_mean(truth.images, auxiliary.image)


def _other_mean_features(truth: Truth, auxiliary: Auxiliary | None) -> Tensor | None:
    if auxiliary is None or auxiliary.features is None:
        return None
    return auxiliary.features.expand(len(truth.images), -1)


def _frequencies(truth: Truth, auxiliary: Auxiliary | None) -> Tensor | None:
    if auxiliary is None:
        return None
    return blind.same_label(blind.frequencies(auxiliary.labels), len(truth.labels), auxiliary.num_classes)


def _even(truth: Truth, auxiliary: Auxiliary | None) -> Tensor | None:
    if auxiliary is None:
        return None
    classes = auxiliary.num_classes
    return blind.same_label(dict.fromkeys(range(classes), 1 / classes), len(truth.labels), classes)


_IMAGES = FindingField("images", checks.images, promises.images)
_LABELS = FindingField("labels", checks.labels, promises.labels)
_FEATURES = FindingField("features", checks.features, promises.features)
_MEMBERSHIP = FindingField("membership", checks.membership, promises.membership)

IMAGES = FindingKind(
    name="images",
    field=_IMAGES,
    truth=lambda truth, head_inputs: (truth.images,),
    guesses={
        "grey": lambda truth, auxiliary: blind.grey(truth.images),
        "own_mean": lambda truth, auxiliary: blind.own_mean(truth.images),
        "dataset_mean": _other_mean_image,
    },
    assigned="once",
    follows="images",
)
LABELS = FindingKind(
    name="labels",
    field=_LABELS,  # soft ones too: each stands for its most probable class
    truth=lambda truth, head_inputs: (truth.labels, truth.pictures),
    is_luck=True,
    follows="labels",
)
SOFT_LABELS = FindingKind(
    name="soft labels",
    field=_LABELS,
    holds=lambda found: found.ndim == 2,
    truth=lambda truth, head_inputs: (truth.labels,),
    guesses={"prior": _frequencies, "uniform": _even},
    assigned="by each metric",
    is_luck=True,
    follows="labels",
)
FEATURES = FindingKind(
    name="features",
    field=_FEATURES,
    truth=lambda truth, head_inputs: (head_inputs(),),
    guesses={"dataset_mean": _other_mean_features},
    assigned="by each metric",
)

MEMBERSHIP = FindingKind(
    name="membership",
    field=_MEMBERSHIP,
    truth=lambda truth, head_inputs: (truth.firsts,),
    is_luck=True,
    follows="own images",
)

_KINDS = {kind.name: kind for kind in (IMAGES, LABELS, SOFT_LABELS, FEATURES, MEMBERSHIP)}
KINDS: Mapping[str, FindingKind] = MappingProxyType(_KINDS)
"""Name -> kind, the gravest first."""


def fields() -> tuple[FindingField, ...]:
    """Return the fields of a finding that kinds are found in, that of the gravest kind first."""
    return tuple(dict.fromkeys(kind.field for kind in KINDS.values()))


def gravest(names: Collection[str]) -> FindingKind | None:
    """Return the gravest kind that is found in one of these fields; None where there is none."""
    return next((kind for kind in KINDS.values() if kind.field.name in names), None)
