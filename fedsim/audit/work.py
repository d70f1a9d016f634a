"""What each task does: an attack, its assessment, a calibration or an evaluation. Plug-ins run in the process for attacks.

The run folder is where findings wait for their assessment, whichever process made them.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace

from fedsim import plugins
from fedsim.audit import assessment, attempt, calibration, evaluation
from fedsim.audit.assessment import Task
from fedsim.audit.attack_process import AttackLimitError, AttackProcess
from fedsim.audit.attempt import Attempt, Made
from fedsim.audit.evaluation import Question
from fedsim.exchange import Finding, View
from fedsim.planning.plan import Plan
from fedsim.progress import Step
from fedsim.recording.records import AnyRecord, Calibration, EvaluationRecord
from fedsim.recording.run_folder import RunFolder

Tell = Callable[[Task, Step], None]
"""What is done with each step of the attack that a task runs."""


class Work:
    """Does tasks one after another, in whatever process holds it.

    Args:
        plan: the run's plan.
        folder: the run.
        attacks: the process for attacks, of this plan and folder.
        tell: called with each step of an attack; None where nobody watches.
    """

    def __init__(self, plan: Plan, folder: RunFolder, attacks: AttackProcess, tell: Tell | None = None) -> None:
        self._plan, self._folder, self._attacks, self._tell = plan, folder, attacks, tell

    def attack(self, task: Task) -> None:
        """Run one attack on one update, and store its finding, or that it went beyond a limit.

        Raises:
            AttackDiedError: its process died, of the attack or for want of memory.
        """
        plan, folder, planned = self._plan, self._folder, self._plan.attacks[task.attack]
        if attempt.stored(folder, task.view, planned) is not None:
            return
        with self._telling(task) as tell:
            try:
                made = self._attacks.call(_made, task, is_own=plugins.is_own(planned.info), tell=tell)
            except AttackLimitError as error:
                attempt.store_failure(plan, folder, task.view, planned, str(error), error.seconds)
            else:
                attempt.store(folder, task.view, planned, made.content)

    @contextlib.contextmanager
    def _telling(self, task: Task) -> Iterator[Callable[[Step], None] | None]:
        """Give whom to tell the steps of a task's attack; what that raises is raised at the end, since the attack goes on."""
        if self._tell is None:
            yield None
            return
        tell: Callable[[Step], None] = functools.partial(self._tell, task)
        failed: list[Exception] = []

        def told(step: Step) -> None:
            try:
                if not failed:
                    tell(step)
            except Exception as error:  # noqa: BLE001  (a listener's fault is none of the attack: raised once that has ended)
                failed.append(error)

        yield told
        if failed:
            raise failed[0]

    def assess(self, task: Task, partner: View | None) -> AnyRecord:
        """Return the record of a stored finding, with the partner's as the wrong-update control.

        Where a finding is gone, or an edited plug-in has made it one of another version, it is made again first.

        Raises:
            AttackDiedError: the process of that attack died.
        """
        self._folder.refresh()
        for view in (task.view, partner):
            if view is not None:
                self.attack(replace(task, view=view))
        return assessment.assess(self._plan, self._folder, task, partner)

    def calibrate(self, task: Task) -> Calibration:
        """Return the line of the calibration of an attack in a round, at the global weights of the task's client.

        Raises:
            AttackDiedError: the attack's process died.
        """
        self._folder.refresh()
        planned = self._plan.attacks[task.attack]

        def attack(index: int) -> Attempt:
            try:
                made = self._attacks.call(_tried, task, index, is_own=plugins.is_own(planned.info))
            except AttackLimitError as error:
                return Attempt("failed", Finding(), str(error), error.seconds, 0)
            tried: Attempt = pickle.loads(made.content)
            return tried

        return calibration.calibrate(self._plan, self._folder, task.view.round, task.view.clients[0], planned, attack)

    def evaluate(self, question: Question) -> EvaluationRecord:
        """Return the line of an evaluation; one that goes beyond a limit has failed.

        Raises:
            AttackDiedError: its process died.
        """
        self._folder.refresh()
        is_own = plugins.is_own(self._plan.evaluators[question.evaluator].info)
        try:
            made = self._attacks.call(_evaluated, question, is_own=is_own)
        except AttackLimitError as error:
            return evaluation.failure(self._plan, self._folder, question, str(error), error.seconds)
        asked: evaluation.Asked = pickle.loads(made.content)
        return evaluation.stored(self._folder, asked)


# In the process for attacks


def _made(plan: Plan, folder: RunFolder, task: Task) -> Made:
    return attempt.make(plan, folder, task.view, plan.attacks[task.attack])


def _tried(plan: Plan, folder: RunFolder, task: Task, index: int) -> Made:
    tried = calibration.attack(plan, folder, task.view.round, task.view.clients[0], plan.attacks[task.attack], index)
    return Made(tried.status, pickle.dumps(tried))


def _evaluated(plan: Plan, folder: RunFolder, question: Question) -> Made:
    asked = evaluation.evaluate(plan, folder, question)
    return Made(asked.line.status, pickle.dumps(asked))
