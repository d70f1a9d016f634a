"""Whose update is the wrong one: the client whose finding is the control of another client's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim.exchange import View
from fedsim.metrics import likeness
from fedsim.metrics.likeness import Others, Thumbnails
from fedsim.planning.plan import Plan
from fedsim.recording.run_folder import RunFolder


class Partners:
    """The partners of the clients of one round.

    Args:
        plan: the run's plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._thumbnails: dict[int, Thumbnails] = {}

    def of(self, round: int, client: int, clients: Sequence[int]) -> int | None:
        """Return the client whose finding is the wrong-update control: the next one, the last one's being the first.

        One with equal defenses goes before any other, since an attack may find less in a defended update whosever it is. But
        first of all come those whose images do not show the same: of a copy the attack finds as much.
        """
        others = [other for other in clients if other != client]
        alike = [other for other in others if self._carried(other) == self._carried(client)]
        for candidates in (alike, others):
            after = sorted(candidates, key=lambda other: (other < client, other))
            found = next((other for other in after if not self._shows_same(round, client, other)), None)
            if found is not None:
                return found
        chosen = alike or others
        return next((other for other in chosen if other > client), chosen[0] if chosen else None)

    def _shows_same(self, round: int, client: int, other: int) -> bool:
        if not self._plan.has_truth:
            return False
        for one in (client, other):
            if one not in self._thumbnails:
                truth = self._plan.truth([(round, one)])
                self._thumbnails[one] = likeness.thumbnails(truth.images)
        return _is_no_control(self._thumbnails[client], self._thumbnails[other])

    def _carried(self, client: int) -> list[tuple[str, dict[str, Any]]]:
        return [(planned.info.name, planned.params) for planned in self._plan.defenses_of(client)]


def _is_no_control(own: Thumbnails, other: Others) -> bool:
    """Return whether images show the same as others, or are none at all: of such an update nothing is found."""
    return not len(other) or likeness.alike(own, other) > 0


class ViewPartners:
    """The partners of views of several updates.

    Args:
        plan: the run's plan.
        folder: the run.
    """

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        self._plan, self._folder = plan, folder
        self._thumbnails: dict[View, Thumbnails] = {}

    def of(self, view: View, others: Sequence[View]) -> View | None:
        """Return the view of the same scope that shows none of the same images, the next one first; None without any."""
        place = others.index(view)
        after = [*others[place + 1 :], *others[:place]]
        return next((other for other in after if not self._shows_same(view, other)), None)

    def _shows_same(self, view: View, other: View) -> bool:
        if not self._plan.has_truth:
            return False
        # Augmented copies of one image do not look alike.
        is_shared = self._plan.captured is None and bool(self._used(view) & self._used(other))
        return is_shared or _is_no_control(self._shown(view), self._shown(other))

    def _used(self, view: View) -> set[int]:
        """Return the numbers of the images behind a view, partners that mixup blends in included."""
        plan = self._plan
        inputs = (
            one
            for round, client in self._folder.captures_of(view)
            for step in plan.data.client_inputs(client, round, plan.scenario.training)
            for one in step
        )
        return {sample for one in inputs for sample in (one.sample, one.partner)}

    def _shown(self, view: View) -> Thumbnails:
        if view not in self._thumbnails:
            truth = self._plan.truth(self._folder.captures_of(view))
            self._thumbnails[view] = likeness.thumbnails(truth.images)
        return self._thumbnails[view]
