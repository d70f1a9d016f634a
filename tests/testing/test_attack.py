"""Deliberately broken attacks, each caught when it is run. The paper of none of them: https://example.org"""

import itertools
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.applicability import Applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Observation, Trajectory
from fedsim.progress import advance
from fedsim.seeds import torch_generator
from fedsim.testing import ALL_GRANTS, check_attack, observation, random_images

plugin = dataclass(frozen=True, kw_only=True)


@plugin
class Sound(Attack):
    """Random images, labels and features."""

    citation: ClassVar[str] = "Nobody. Nothing. https://example.org"
    needs: ClassVar[frozenset[Need]] = frozenset({"normalization"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"images", "labels", "features"})

    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}.")

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        return Finding(
            images=torch.rand(2, *observation.image_shape, generator=generator),
            labels=torch.randint(observation.num_classes, (2,), generator=generator),
            features=torch.randn(2, 64, generator=generator),
            trace={"loss": [1.0, 0.5], "steps": self.steps},
            cautions=("gamma is a guess.",),
        )


SOUND = Sound.run


def filmed(**changes: Any) -> Any:
    """Return a `run` whose finding has a trajectory of two frames with these fields exchanged."""

    def run(self: Attack, observation: Observation, generator: torch.Generator) -> Finding:
        finding = SOUND(self, observation, generator)
        assert finding.images is not None
        trajectory = Trajectory((0, 1), torch.stack([finding.images / 2, finding.images]), (1.0, 0.5))
        for name, change in changes.items():
            object.__setattr__(trajectory, name, change(getattr(trajectory, name)) if callable(change) else change)
        object.__setattr__(finding, "trajectory", trajectory)
        return finding

    return run


def altered(**changes: Any) -> Any:
    """Return a `run` whose finding has these fields exchanged; a function is called with the field's value."""

    def run(self: Attack, observation: Observation, generator: torch.Generator) -> Finding:
        finding = SOUND(self, observation, generator)
        for name, change in changes.items():
            # Past the shape check of Finding's constructor, which is active in these tests alone.
            object.__setattr__(finding, name, change(getattr(finding, name)) if callable(change) else change)
        return finding

    return run


def doing(act: Any) -> Any:
    """Return a sound `run` that also acts on what it is given."""

    def run(self: Attack, observation: Observation, generator: torch.Generator) -> Finding:
        act(observation)
        return SOUND(self, observation, generator)

    return run


def refusing(message: str) -> Any:
    def run(self: Attack, observation: Observation, generator: torch.Generator) -> Finding:
        raise AttackRefusedError(message)

    return run


def spoil_auxiliary(seen: Observation) -> None:
    if seen.auxiliary_data is not None:
        seen.auxiliary_data.images.zero_()


def spoil_labels(seen: Observation) -> None:
    if seen.labels is not None:
        seen.labels.zero_()


def forked_draw(images: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return torch.rand(images.shape)


calls = itertools.count()


def soft(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows)


BROKEN = {
    "update changed": (doing(lambda o: o.update.tensors["head.bias"].zero_()), r"changes head\.bias in place"),
    "update extended": (
        doing(lambda o: o.update.tensors.update(new=torch.zeros(1))),
        "changes the names in what it is given: new",
    ),
    "update watched": (doing(lambda o: o.update.tensors["head.bias"].requires_grad_()), "sets requires_grad of head"),
    "auxiliary changed": (doing(spoil_auxiliary), "changes the auxiliary images in place"),
    "labels changed": (doing(spoil_labels), "changes the labels in place"),
    "torch drawn": (doing(lambda o: torch.rand(())), "changes torch's global generator"),
    "torch seeded": (doing(lambda o: torch.default_generator.manual_seed(9)), "changes torch's global generator"),
    "numpy drawn": (doing(lambda o: np.random.rand()), "changes NumPy's global generator"),
    "gradients off": (doing(lambda o: torch.set_grad_enabled(False)), "changes torch's gradient mode"),
    "global generator read": (altered(images=forked_draw), "same generator state, but other images"),
    "labels remembered": (altered(labels=lambda x: torch.full_like(x, next(calls) % 10)), "but other labels"),
    "features remembered": (altered(features=lambda x: x + next(calls)), "but other features"),
    "clock in the trace": (altered(trace=lambda x: {"at": time.perf_counter()}), "trace or cautions differ"),
    "small images": (altered(images=lambda x: x[..., :16]), r"shape \(n, 3, 32, 32\); got float32 of shape \(2, 3,"),
    "one image without batch": (altered(images=lambda x: x[0]), r"shape \(n, 3, 32, 32\)"),
    "bytes for images": (altered(images=lambda x: (255 * x).byte()), "must be detached floats"),
    "complex images": (altered(images=lambda x: x.to(torch.complex64)), "images must be real, got complex64"),
    "sparse images": (altered(images=lambda x: x.to_sparse()), "images must be a dense tensor"),
    "images as an array": (altered(images=lambda x: x.numpy()), "images must be a tensor, got ndarray"),
    "images with a graph": (altered(images=lambda x: x.requires_grad_()), "detached floats .* requires_grad"),
    "pixels too bright": (altered(images=lambda x: x + 1), r"pixels must be finite and in \[0, 1\]"),
    "pixels not finite": (altered(images=lambda x: x.where(x > 0.5, torch.nan)), "pixels must be finite"),
    "labels too large": (altered(labels=lambda x: x + 10), "integers from 0 to 9"),
    "labels negative": (altered(labels=lambda x: x - 10), "integers from 0 to 9"),
    "labels in a column": (altered(labels=lambda x: x[:, None]), "one row of integers"),
    "a label without batch": (altered(labels=lambda x: x[0]), "one row of integers"),
    "complex labels": (altered(labels=lambda x: x.to(torch.complex64)), "labels must be real, got complex64"),
    "labels as a list": (altered(labels=[3]), "labels must be a tensor, got list"),
    "labels as truth values": (altered(labels=lambda x: x > 3), "one row of integers"),
    "soft labels unnormalized": (altered(labels=soft([[0.2] * 10])), "probabilities that sum to 1"),
    "soft labels negative": (altered(labels=soft([[-1.0, 2.0, *[0.0] * 8]])), "probabilities that sum to 1"),
    "soft labels too wide": (altered(labels=soft([[0.5, 0.5, *[0.0] * 9]])), "rows of 10 probabilities"),
    "soft labels not finite": (altered(labels=soft([[torch.nan] * 10])), "probabilities that sum to 1"),
    "features in a row": (altered(features=lambda x: x[0]), "features must be finite rows"),
    "features as a list": (altered(features=[[1.0]]), "features must be a tensor, got list"),
    "features not finite": (altered(features=lambda x: x / 0), "features must be finite rows"),
    "tensor in the trace": (altered(trace={"loss": torch.zeros(1)}), "mapping that JSON can express"),
    "nan in the trace": (altered(trace={"loss": float("nan")}), "without nan or infinity"),
    "no cautions": (altered(cautions=None), "cautions must be a tuple, got NoneType"),
    "no trace": (altered(trace=None), "the trace must be a mapping"),
    "cautions as a list": (altered(cautions=["It may be wrong."]), "cautions must be a tuple, got list"),
    "caution of one word": (altered(cautions=("Doubtful.",)), "must be one sentence"),
    "caution without stop": (altered(cautions=("this may be wrong",)), "ends with a full stop"),
    "caution on two lines": (altered(cautions=("This may\nbe wrong.",)), "on one line"),
    "trajectory as a list": (altered(trajectory=[1.0]), "the trajectory must be a Trajectory, got list"),
    "trajectory with a graph": (
        filmed(images=lambda x: x.requires_grad_()),
        "a trajectory must be detached floats .* requires_grad",
    ),
    "trajectory of other size": (
        filmed(images=lambda x: x[..., :16]),
        r"shape \(frames, 2, 3, 32, 32\), the finding's images",
    ),
    "trajectory of other count": (filmed(images=lambda x: x[:, :1]), r"shape \(frames, 2, 3, 32, 32\)"),
    "trajectory too bright": (filmed(images=lambda x: x + 1), r"pixels of a trajectory must be finite and in \[0, 1\]"),
    "trajectory not finite": (filmed(images=lambda x: x / 0), "pixels of a trajectory must be finite"),
    "complex trajectory": (filmed(images=lambda x: x.to(torch.complex64)), "frames must be real, got complex64"),
    "trajectory of no frames": (
        filmed(images=lambda x: x[:0], steps=(), losses=()),
        "a step and a loss for each frame",
    ),
    "trajectory of other length": (filmed(losses=(1.0,)), "got 2 and 1 for 2"),
    "trajectory that stands still": (filmed(steps=(3, 3)), r"iterations that increase, from 0; got \(3, 3\)"),
    "trajectory from before the start": (filmed(steps=(-1, 3)), "iterations that increase, from 0"),
    "trajectory of halves": (filmed(steps=(0.5, 1.5)), "iterations that increase, from 0"),
    "trajectory with a lost loss": (
        filmed(losses=(float("nan"), 1.0)),
        "losses of a trajectory must be finite numbers",
    ),
    "trajectory remembered": (
        filmed(losses=lambda x: (float(next(calls)), 0.0)),
        "same generator state, but another trajectory",
    ),
    "step beyond the last": (doing(lambda o: advance(3, 2)), "tells that 3 of 2 iterations lie behind it"),
    "no finding": (lambda self, observation, generator: {}, "must return a Finding, got dict"),
    "promise not kept": (altered(features=None), "recovers promises features, but no finding holds it"),
    "refuses everything": (refusing("No."), "refuses every observation"),
    "refuses without a reason": (refusing(" "), "refuses without saying why"),
}


@pytest.fixture(autouse=True)
def restored_gradient_mode():
    with torch.enable_grad():
        yield


@pytest.mark.parametrize(("run", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_attack_is_caught(run: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, "run", run)
    with pytest.raises(AssertionError, match=message):
        check_attack(Sound)


def test_a_sound_attack_passes() -> None:
    check_attack(Sound)


def test_a_trajectory_and_steps_that_are_told_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, "run", filmed())
    check_attack(Sound)
    monkeypatch.setattr(Sound, "run", doing(lambda seen: advance(1, 2, 0.5)))
    check_attack(Sound)


def test_a_trajectory_without_images_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Attack, observation: Observation, generator: torch.Generator) -> Finding:
        finding = filmed()(self, observation, generator)
        object.__setattr__(finding, "images", None)
        return finding

    monkeypatch.setattr(Sound, "run", run)
    with pytest.raises(AssertionError, match="returns a trajectory without images"):
        check_attack(Sound)


@pytest.mark.parametrize("soft_label", [[0.5, 0.5, *[0.0] * 8], [0.1] * 10])
def test_soft_labels_pass(soft_label: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, "run", altered(labels=soft([soft_label, soft_label])))
    check_attack(Sound)


def unchecked(**facts: Any) -> Applicability:
    """Return an Applicability of facts that no type checker has seen, as a plug-in may state them."""
    made = Applicability()
    for name, value in facts.items():
        object.__setattr__(made, name, value)
    return made


FACTS = {
    "unknown grant": ("needs", frozenset({"label"}), "needs must be a frozenset out of batch_size, labels"),
    "needs as a set": ("needs", {"labels"}, "needs must be a frozenset"),
    "unknown finding": ("recovers", frozenset({"pixels"}), "recovers must be a frozenset out of images, labels, feat"),
    "made for a mapping": (
        "applicability",
        {"pictures": 1},
        "applicability is faulty: expected an Applicability or None",
    ),
    "made for half an image": ("applies", unchecked(pictures=0.5), "pictures: expected None or a whole number"),
    "made for a model unheard of": ("applies", unchecked(model=("a head",)), "model: 'a head' is none of linear"),
    "plain as a text": ("plain", lambda self: "itself", r"plain\(\) must return None or an attack .*got 'itself'"),
    "nothing recovered": ("recovers", frozenset(), "recovers is empty"),
    "labels unannounced": ("recovers", frozenset({"images"}), "found features, labels, which Sound.recovers does not"),
}


@pytest.mark.parametrize(("fact", "value", "message"), FACTS.values(), ids=FACTS)
def test_wrong_class_facts_are_caught(fact: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, fact, value)
    with pytest.raises(AssertionError, match=message):
        check_attack(Sound)


def test_an_attack_sees_no_more_than_it_needs_in_some_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    granted = []

    def look(seen: Observation) -> None:
        granted.append(frozenset(grant for grant in ALL_GRANTS if getattr(seen, grant) is not None))

    monkeypatch.setattr(Sound, "run", doing(look))
    check_attack(Sound)
    assert set(granted) == {Sound.needs, ALL_GRANTS}


def test_an_observation_without_a_needed_grant_is_the_callers_fault() -> None:
    seen = observation(random_images(torch_generator(0)), grants=["labels"])
    with pytest.raises(AssertionError, match="needs normalization, which this observation does not grant"):
        check_attack(Sound, observations=[seen])


def steps_seen(monkeypatch: pytest.MonkeyPatch, *args: Any, **params: Any) -> set[int]:
    seen: set[int] = set()

    def run(self: Sound, observation: Observation, generator: torch.Generator) -> Finding:
        seen.add(self.steps)
        return SOUND(self, observation, generator)

    monkeypatch.setattr(Sound, "run", run)
    check_attack(*args, **params)
    return seen


def test_budgets_are_cut_down_and_the_smallest_allowed_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_seen(monkeypatch, Sound) == {3, 1}
    assert steps_seen(monkeypatch, Sound, steps=7) == {7, 1}
    assert steps_seen(monkeypatch, Sound(steps=8)) == {8, 1}
    assert steps_seen(monkeypatch, Sound, steps=1) == {1}


def test_an_attack_that_refuses_with_its_smallest_budget_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Sound, observation: Observation, generator: torch.Generator) -> Finding:
        if self.steps < 2:
            raise AttackRefusedError("too few steps.")
        return SOUND(self, observation, generator)

    monkeypatch.setattr(Sound, "run", run)
    with pytest.raises(AssertionError, match=r"smallest budget Sound\(steps=1\)"):
        check_attack(Sound)


def test_an_attack_that_refuses_by_mood_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    moods = itertools.cycle([False, True])

    def refuse_sometimes(seen: Observation) -> None:
        if next(moods):
            raise AttackRefusedError("not now.")

    monkeypatch.setattr(Sound, "run", doing(refuse_sometimes))
    with pytest.raises(AssertionError, match="refuses an observation in one run and answers it in the next"):
        check_attack(Sound)


def test_an_attack_may_refuse_some_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_deltas(seen: Observation) -> None:
        if seen.update.kind == "delta":
            raise AttackRefusedError("reads gradients.")

    monkeypatch.setattr(Sound, "run", doing(refuse_deltas))
    check_attack(Sound)


def test_errors_of_the_attack_itself_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, "run", doing(lambda seen: seen.update.tensors["no such tensor"]))
    with pytest.raises(KeyError, match="no such tensor"):
        check_attack(Sound)


def test_the_check_leaves_no_trace_in_the_global_generators() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    check_attack(Sound(steps=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
