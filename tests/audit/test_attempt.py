"""What an attack may claim, and what becomes of a claim that is none."""

import dataclasses
import json

import pytest
import torch

from fedsim.audit import attempt
from fedsim.exchange import Finding, Trajectory, View
from fedsim.federation.engine import train

GREY = torch.full((1, 3, 32, 32), 0.5)

VIEW = View.of_update(1, 0)


@pytest.fixture
def made(tiny_plan, run_folder, monkeypatch):
    """Return a function: what an attack returns, or a function that it calls for that -> its attempt, as it is stored."""
    import stubs

    plan = tiny_plan(attacks=[{"name": "stubs:Claims"}], federation={"clients": 1, "rounds": 1})
    folder = run_folder(plan)
    train(plan, folder)
    planned = plan.attacks[0]

    def make(finding):
        monkeypatch.setattr(stubs.Claims, "run", lambda *_: finding() if callable(finding) else finding)
        attempt.finding_path(folder, VIEW, planned).unlink(missing_ok=True)
        attempt.store(folder, VIEW, planned, attempt.make(plan, folder, VIEW, planned).content)
        return attempt.read(plan, folder, VIEW, planned)

    return make


def claim(kind=Finding, **fields):
    """Return a finding with any fields; those of an attack are not checked as they are under pytest."""
    finding = object.__new__(kind)
    for name, value in {field.name: getattr(Finding(), field.name) for field in dataclasses.fields(Finding)}.items():
        object.__setattr__(finding, name, fields.get(name, value))
    return finding


def assert_failures(made, cases):
    for finding, said in cases:
        tried = made(finding)
        assert tried.status == "failed" and tried.finding == Finding(), said
        assert tried.message.split(": ", 1)[1].startswith(f"the attack returned {said}"), tried.message


def test_images_that_are_none_are_a_failed_attempt(made):
    cases = [
        (GREY[0], "images as a tensor of shape (3, 32, 32), not (number, channel, height, width)"),
        (torch.tensor(0.5), "images as a tensor of shape (), not"),
        (GREY[None], "images as a tensor of shape (1, 1, 3, 32, 32), not"),
        (GREY.to(torch.complex64), "images as complex64, not as floats"),
        ((255 * GREY).byte(), "images as uint8, not as floats"),
        (GREY > 0, "images as bool, not as floats"),
        (GREY.to_sparse(), "images as a sparse or nested tensor"),
        (GREY.numpy(), "images as ndarray, not as a tensor"),
        ([], "images as list, not as a tensor"),
        (torch.rand(0, 3, 8, 8), "images of shape (3, 8, 8), not (3, 32, 32)"),
        (GREY / 0, "pixels that are not finite"),
    ]
    assert_failures(made, [(claim(images=images), said) for images, said in cases])


def test_images_of_any_float_type_and_number_are_stored_as_pixels(made):
    for images in (
        GREY.half(),
        GREY.bfloat16(),
        GREY.double() + 9,
        GREY.requires_grad_(),
        GREY[:0],
        GREY.expand(4, -1, -1, -1),
    ):
        stored = made(claim(images=images)).finding.images
        assert stored.dtype == torch.float32 and torch.equal(stored, images.detach().float().clamp(0, 1))


def test_labels_that_are_none_are_a_failed_attempt(made):
    cases = [
        (torch.tensor(3), "labels as int64 of shape (), not integers in one row, or rows of 10 probabilities"),
        (torch.zeros(1, 1, 10), "labels as float32 of shape (1, 1, 10), not"),
        (torch.zeros(1, 10).long(), "labels as int64 of shape (1, 10), not"),
        (torch.tensor([1.0, 2.0]), "labels as float32 of shape (2,), not"),
        (torch.zeros(2).to(torch.complex64), "labels as complex64 of shape (2,), not"),
        (torch.zeros(2, 10).to(torch.complex64), "labels as complex64 of shape (2, 10), not"),
        (torch.tensor([True]), "labels as bool of shape (1,), not"),
        (torch.tensor([3, 10]), "labels from 3 to 10; the classes are 0 to 9"),
        (torch.tensor([-1, 2]), "labels from -1 to 2; the classes are 0 to 9"),
        (torch.zeros(2, 9), "labels over 9 classes, not 10"),
        (torch.full((1, 10), 1e30), "probabilities of up to 1e+30 as labels"),
        (torch.full((1, 10), torch.inf), "labels that are not finite"),
        ([3], "labels as list, not as a tensor"),
    ]
    assert_failures(made, [(claim(labels=labels), said) for labels, said in cases])


@pytest.mark.parametrize(
    "labels", [torch.tensor([9, 0, 9]), torch.tensor([9, 0], dtype=torch.uint8), torch.tensor([]).int()]
)
def test_hard_labels_of_any_integer_type_and_number_are_stored(made, labels):
    assert torch.equal(made(claim(labels=labels)).finding.labels, labels.long())


def test_features_that_are_none_are_a_failed_attempt(made):
    cases = [
        (torch.zeros(8), "features as a tensor of shape (8,), not one row an image"),
        (torch.zeros(1, 8, 1), "features as a tensor of shape (1, 8, 1), not"),
        (torch.zeros(1, 8).to(torch.complex64), "features as complex64, not as floats"),
        (torch.zeros(1, 8).long(), "features as int64, not as floats"),
        (torch.full((1, 8), 1e300, dtype=torch.float64), "features that are not finite"),
    ]
    assert_failures(made, [(claim(features=features), said) for features, said in cases])


def nested(levels):
    value = {}
    for _ in range(levels - 1):
        value = {"inner": value}
    return value


def test_a_trace_that_is_none_is_a_failed_attempt(made):
    circle = {}
    circle["inner"] = [circle]
    cases = [
        (None, "NoneType as a trace, not a mapping"),
        ([("loss", 1)], "list as a trace, not a mapping"),
        (circle, "a trace of more than 64 levels, or one that holds itself"),
        (nested(65), "a trace of more than 64 levels"),
        (nested(100_000), "a trace of more than 64 levels"),
        ({"losses": ["a" * 9] * 100_000}, "a trace of 1,300,012 characters, of 1,000,000 allowed"),
        ({"count": 10**5000}, "a trace with a whole number of more than 64 bits"),
    ]
    assert_failures(made, [(claim(trace=trace), said) for trace, said in cases])


def test_a_trace_of_plain_values_is_stored_as_it_is(made):
    for trace in (nested(64), {"a": [1, 2.5, None, True, {"b": 2**63}], "": ""}):
        assert made(claim(trace=trace)).finding.trace == trace
    odd = {"\ud800": "\udfff", 2: (1j,)}
    assert made(claim(trace=odd)).finding.trace == {"\\ud800": "\\udfff", "2": ["1j"]}


def test_cautions_that_are_none_are_a_failed_attempt(made):
    cases = [
        (None, "NoneType as cautions, not a tuple of sentences"),
        ("one", "str as cautions"),
        ({"a": 1}, "dict as cautions"),
        (("one", None), "NoneType as a caution, not text"),
        ((b"one",), "bytes as a caution, not text"),
        (("one",) * 101, "101 cautions, of 100 allowed"),
    ]
    assert_failures(made, [(claim(cautions=cautions), said) for cautions, said in cases])


def test_texts_are_encodable_and_cut_with_their_length_said(made):
    found = made(claim(cautions=("a\ud800b", "x" * 5_000_000))).finding
    assert found.cautions == ("a\\ud800b", "x" * 2000 + "... (cut, of 5,000,000 characters)")


def test_a_trajectory_with_odd_parts_is_a_failed_attempt(made):
    def trajectory(**fields):
        kept = object.__new__(Trajectory)
        for name, value in {"steps": (0,), "images": GREY[None], "losses": (1.0,), **fields}.items():
            object.__setattr__(kept, name, value)
        return claim(images=GREY, trajectory=kept)

    assert made(trajectory()).status == "found"
    assert_failures(
        made,
        [
            (trajectory(images=GREY[None].to(torch.complex64)), "frames as complex64, not as floats"),
            (trajectory(images=None), "frames as NoneType, not as a tensor"),
            (trajectory(steps=(2**70,)), "a trajectory with a step of more than 64 bits"),
        ],
    )
    for odd in ({"steps": None}, {"losses": None}, {"losses": ("low",)}, {"steps": (0.5,)}):
        assert made(trajectory(**odd)).status == "failed"


def test_fields_are_read_once_and_one_that_raises_is_a_failed_attempt(made):
    class Raises(Finding):
        @property
        def images(self):
            raise SystemExit("no images")

    class Changes(Finding):
        asked = 0

        @property
        def labels(self):
            Changes.asked += 1
            return torch.tensor([1]) if Changes.asked == 1 else torch.tensor(1j)

    raising, changing = object.__new__(Raises), object.__new__(Changes)
    for finding in (raising, changing):
        finding.__dict__.update(images=None, labels=None, features=None, trace={}, cautions=(), trajectory=None)
    assert made(raising).message.startswith("SystemExit: no images (test_attempt.py:")
    assert torch.equal(made(changing).finding.labels, torch.tensor([1])) and Changes.asked == 1


def test_tensors_that_share_their_memory_are_stored(made):
    shared = torch.rand(2, 10)
    found = made(claim(labels=shared, features=shared)).finding
    assert torch.equal(found.labels, shared) and torch.equal(found.features, shared)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("interrupts", "KeyboardInterrupt: by itself (faulty_attacks.py:"),
        ("leaves a generator", "GeneratorExit:  (faulty_attacks.py:"),
        ("ends", "End: of all (faulty_attacks.py:"),
        ("raises without a text", "UnspeakableError: its text cannot be read, as that raises RuntimeError (faulty_"),
        ("raises a surrogate", "ValueError: a\\ud800b (faulty_attacks.py:"),
        ("raises a long text", f"ValueError: {'x' * 2000}... (cut, of 5,000,000 characters) (faulty_attacks.py:"),
    ],
)
def test_whatever_an_attack_raises_is_a_failed_attempt(made, fault, message):
    from faulty_attacks import FAULTS

    tried = made(FAULTS[fault])
    assert tried.status == "failed" and tried.message.startswith(message), tried.message
    json.dumps(tried.message).encode()


def test_a_refusal_without_a_text_is_a_refusal(made):
    from fedsim.errors import AttackRefusedError

    class Unspeakable(AttackRefusedError):
        def __str__(self):
            raise RuntimeError

    def refuse():
        raise Unspeakable

    tried = made(refuse)
    assert tried.status == "refused" and tried.message == "its text cannot be read, as that raises RuntimeError"
