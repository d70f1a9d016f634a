"""One table of kinds: every consumer reads it, and no other module knows a kind by its name."""

import ast
import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import torch

from fedsim.attack import Recovers
from fedsim.audit.claims import checked
from fedsim.exchange import Finding, Truth
from fedsim.findings import kinds
from fedsim.findings.blind import Auxiliary
from fedsim.findings.kinds import FEATURES, IMAGES, KINDS, LABELS, MEMBERSHIP, SOFT_LABELS, FindingKind, fields, gravest
from fedsim.metrics import ratings, table
from fedsim.metrics.metric import Metric
from fedsim.metrics.scoring import best_examples, control_scores, controls, score
from fedsim.metrics.skill import CONTROL_TITLES
from fedsim.metrics.table import METRICS
from fedsim.recording.records import Record
from fedsim.report import overview
from fedsim.report.summaries import by_client
from fedsim.seeds import torch_generator
from fedsim.testing.fixtures import observation, random_images
from fedsim.verdicts.judge import Judge, kind_of
from fedsim.verdicts.trained import changed_inputs

ROOT = Path(__file__).parents[2] / "fedsim"
GENERATOR = torch.Generator().manual_seed(0)
FIRSTS = torch.tensor([True, False, True])
TRUTH = Truth(torch.rand(3, 3, 16, 16, generator=GENERATOR), torch.tensor([1, 4, 4]), firsts=FIRSTS)
INPUTS = torch.rand(3, 8, generator=GENERATOR)
AUXILIARY = Auxiliary(TRUTH.images.mean(0), torch.arange(5), 5, INPUTS.mean(0))
# What an exact finding of each kind holds.
EXACT = {
    IMAGES: TRUTH.images,
    LABELS: TRUTH.labels,
    SOFT_LABELS: torch.nn.functional.one_hot(TRUTH.labels, 5).float(),
    FEATURES: INPUTS,
    MEMBERSHIP: FIRSTS.float() - 0.5,
}
EVERY = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


@pytest.fixture(scope="module")
def seen():
    return observation(random_images(torch_generator(0, "kinds"), 3), grants=["candidates"])


def finding_of(kind, found):
    return Finding(**{kind.field.name: found})


def claim(kind, value):
    """Return a finding that holds anything; those of an attack are not checked as they are under pytest."""
    finding = object.__new__(Finding)
    for name in (field.name for field in dataclasses.fields(Finding)):
        object.__setattr__(finding, name, getattr(Finding(), name))
    object.__setattr__(finding, kind.field.name, value)
    return finding


def metrics_of(kind):
    return [name for name, metric in METRICS.items() if metric.kind is kind and name != "lpips"]  # it needs weights


def test_the_fields_of_the_table_are_those_that_an_attack_may_name():
    assert tuple(field.name for field in fields()) == get_args(Recovers)
    assert {field.name for field in fields()} <= {field.name for field in dataclasses.fields(Finding)}


def test_every_kind_has_its_name_and_a_metric():
    assert {name: kind.name for name, kind in KINDS.items()} == {name: name for name in KINDS}
    assert {metric.kind for metric in METRICS.values()} == set(KINDS.values()) == set(EXACT)
    assert {kind_of(name) for name in METRICS} == set(KINDS)


def test_images_are_graver_than_labels_and_labels_than_features():
    assert gravest({"features", "labels", "images"}) is IMAGES
    assert gravest({"features", "labels"}) is LABELS
    assert gravest(("features",)) is FEATURES
    assert gravest(()) is None is gravest(("pixels",))


@EVERY
def test_what_replaces_changed_inputs_is_told_for_every_kind(kind):
    assert kind.is_paired == (kind.follows == "images"), "views of patches are of paired kinds"
    record = Record.model_validate(
        {"round": 1, "client": 0, "attack": {"name": "a"}, "status": "found", "trained_on": {"other_pictures": True}}
    )
    assert (changed_inputs(record, kind.name) is None) == (kind.follows is not None)


@EVERY
def test_a_claim_is_checked_by_the_entry_of_its_kind(kind, seen):
    shown = dataclasses.replace(seen, image_shape=(3, 16, 16), num_classes=5)
    found = checked(finding_of(kind, EXACT[kind].double() if kind is FEATURES else EXACT[kind]), shown)
    assert torch.equal(kind.held(found), EXACT[kind])
    assert kind.field.fault(EXACT[kind], shown) is None
    with pytest.raises(TypeError, match="the attack returned"):
        checked(claim(kind, [1]), shown)
    assert kind.field.fault(torch.full((2, 2), torch.nan), shown) is not None


@EVERY
def test_an_exact_finding_of_a_kind_leaks_by_each_of_its_rated_metrics_beside_its_own_controls(kind):
    names = metrics_of(kind)
    finding = finding_of(kind, EXACT[kind])
    scores = score(names, finding, TRUTH, lambda: INPUTS)
    beside = controls(names, TRUTH, AUXILIARY, None, lambda: INPUTS)
    assert list(scores) == names
    for name in names:
        blind = {control: values for control, values in beside.items() if name in values}
        assert set(blind) >= set(kind.guesses) and set(blind) <= set(CONTROL_TITLES), "each control has a title"
        worse = max if METRICS[name].worse == "higher" else min
        best = worse(values[name] for values in blind.values())
        level = ratings.rate(name, scores[name].value, best, METRICS[name].worse)
        assert level == ("leaks" if METRICS[name].partial is not None else "unrated")
    scored = control_scores(names, TRUTH, AUXILIARY, None, lambda: INPUTS)
    assert set(best_examples(scores, scored)) == (set(names) if kind.is_paired else set())


def record_of(kind, name, found, truth, attack="attack", head_inputs=lambda: INPUTS):
    scores = score([name], finding_of(kind, found), truth, head_inputs)
    plain = {
        name: {"value": one.value, "per_example": one.per_example, "worse": one.worse} for name, one in scores.items()
    }
    return Record.model_validate(
        {
            "round": 1,
            "client": 0,
            "attack": {"name": attack, "recovers": [kind.field.name]},
            "status": "found",
            "scores": plain,
            "controls": controls([name], truth, AUXILIARY, None, head_inputs),
        }
    )


@EVERY
def test_a_finding_of_a_kind_is_told_under_its_name_and_one_that_luck_explains_is_no_leak(kind):
    name = next(name for name in metrics_of(kind) if METRICS[name].partial is not None)
    one = Truth(TRUTH.images[:1], TRUTH.labels[:1], firsts=FIRSTS[:1])
    exact = record_of(kind, name, EXACT[kind][:1], truth=one, head_inputs=lambda: INPUTS[:1])
    (entry,) = overview.entries(by_client([exact]))
    assert entry.kind == kind.name
    assert entry.verdict == ("inconclusive" if kind.is_luck else "leaks")


# A kind that is new


def _hits(found, grouped):
    return tuple(float((row > 0.5) == bool(member)) for row, member in zip(found[:, 0].tolist(), grouped, strict=True))


GROUP = FindingKind(
    name="group",
    field=FEATURES.field,  # no field of its own in Finding yet: one column beside the images
    holds=lambda found: found.shape[1] == 1,
    truth=lambda truth, head_inputs: (truth.labels,),
    guesses={"all in": lambda truth, auxiliary: torch.ones(len(truth.labels), 1)},
    is_luck=True,
    follows="labels",
)
ACCURACY = Metric(
    title="Group accuracy",
    short="accuracy",
    kind=GROUP,
    summary="share of images that are rightly told to be of the group",
    function=_hits,
    worse="higher",
    partial=0.15,
    leaks=0.5,
    ceiling=1.0,
    chance=lambda truth, auxiliary: 0.5,
    counts_hits=True,
)


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setitem(kinds._KINDS, GROUP.name, GROUP)
    monkeypatch.setitem(table._METRICS, "accuracy", ACCURACY)
    ratings.scale.cache_clear()
    yield GROUP
    ratings.scale.cache_clear()


def test_a_new_kind_is_one_entry_and_its_metric_from_the_claim_to_the_verdict(group, seen):
    truth = Truth(torch.rand(12, 3, 16, 16, generator=GENERATOR), torch.tensor([0, 1] * 6))
    right = checked(Finding(features=truth.labels[:, None].double()), seen).features
    assert list(score([*METRICS], Finding(features=right), truth)) == ["feature_error", "accuracy"]
    assert list(score(["accuracy"], Finding(features=INPUTS), TRUTH)) == []  # of eight columns
    found = record_of(group, "accuracy", right, truth=truth)
    assert found.controls == {"all in": {"accuracy": 0.5}, "chance": {"accuracy": 0.5}}
    lucky = record_of(group, "accuracy", 1 - right, truth=truth, attack="inverted")
    told, silent = overview.entries(by_client([found, lucky], Judge.of_records([found, lucky])))
    assert (told.kind, told.verdict, told.judge.mean) == ("group", "leaks", 1.0)
    assert (silent.kind, silent.verdict) == ("group", "inconclusive")
    assert ratings.scale("accuracy").thresholds().startswith("Group accuracy: partial from 15%")


def test_two_right_guesses_of_a_new_kind_are_luck(group):
    truth = Truth(TRUTH.images[:2], torch.tensor([0, 1]))
    found = record_of(group, "accuracy", truth.labels[:, None].float(), truth=truth)
    (entry,) = overview.entries(by_client([found]))
    assert entry.verdict == "inconclusive" and "luck explains that" in entry.reason


# The table alone knows the kinds

NAMES = {*KINDS, *(field.name for field in fields())}
# Module -> the names that it compares or looks up, and that are no kinds there, or a schema of their own.
OTHERS = {
    "attack.py": {"images", "labels", "features", "membership"},  # types are written out
    "audit/assessment.py": {"features"},  # fields of a record
    "audit/scores.py": {"images", "labels"},  # which inputs a defense changed
    "audit/threat.py": {"labels"},  # a grant
    "data/parquet.py": {"features"},  # metadata of Hugging Face
    "federation/training.py": {"images", "labels"},  # a batch
    "metrics/metric.py": {"images", "labels"},  # which inputs a defense changed
    "report/view.py": {"features", "labels"},  # fields of a record; a grant
    "scenario/parts.py": {"labels"},  # a grant
    "simulation.py": {"labels"},  # a grant
    "testing/fixtures.py": {"labels"},  # a grant
}


def named(tree):
    """Return the names of kinds among the texts that a module looks up, compares, goes through or allows."""
    for node in ast.walk(tree):
        inside = []
        if isinstance(node, ast.Dict):
            inside = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Compare):
            inside = [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript):
            inside = [node.slice]
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            inside = [node]
        for part in inside:
            elements = part.elts if isinstance(part, ast.Tuple | ast.List | ast.Set) else [part]
            yield from (one.value for one in elements if isinstance(one, ast.Constant) and one.value in NAMES)


def test_no_other_module_knows_a_kind_by_its_name():
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        where = path.relative_to(ROOT)
        if where.parts[0] != "findings" and (names := set(named(ast.parse(path.read_text())))):
            found[where.as_posix()] = names
    assert found == OTHERS


@pytest.mark.parametrize(
    "source", ['{"soft labels": 1}', 'kind == "features"', 'x["images"]', 'kind in ("images", "labels")']
)
def test_the_check_sees_every_way_to_ask_for_a_kind(source):
    assert set(named(ast.parse(source)))
