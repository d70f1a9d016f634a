"""Label columns of every kind."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from fedsim.data.class_labels import code_labels
from fedsim.errors import ScenarioError


def coded(*columns, names=None):
    found, classes = code_labels(columns, names, "data.label_column")
    return [column.tolist() for column in found], classes


def arrow(values, kind=None):
    return pa.chunked_array([pa.array(values, kind)])


def test_labels_without_names_are_those_of_training_in_order():
    assert coded(np.array([3, 9, 3]), np.array([9])) == ([[0, 1, 0], [1]], ("3", "9"))


@pytest.mark.parametrize(
    "values,kind,classes,expected",
    [
        (["dog", "cat", "dog"], pa.string(), ("cat", "dog"), [1, 0, 1]),
        (["dog", "cat", "dog"], pa.large_string(), ("cat", "dog"), [1, 0, 1]),
        (["dog", "cat", "dog"], pa.dictionary(pa.int8(), pa.string()), ("cat", "dog"), [1, 0, 1]),
        ([True, False, True], pa.bool_(), ("false", "true"), [1, 0, 1]),
        ([True, True, True], pa.bool_(), ("false", "true"), [1, 1, 1]),
        ([9, 3, 9], pa.uint8(), ("3", "9"), [1, 0, 1]),
        ([2.0, 0.0, 2.0], pa.float32(), ("0", "2"), [1, 0, 1]),
        ([Decimal(7), Decimal(5), Decimal(7)], pa.decimal128(5, 0), ("5", "7"), [1, 0, 1]),
        ([1, -1, 1], pa.int64(), ("-1", "1"), [1, 0, 1]),
    ],
)
def test_every_kind_of_label_becomes_a_class(values, kind, classes, expected):
    assert coded(arrow(values, kind)) == ([expected], classes)


def test_text_is_a_name_where_the_classes_have_names():
    assert coded(arrow(["dog", "cat"]), names=["dog", "cat", "owl"]) == ([[0, 1]], ("dog", "cat", "owl"))
    with pytest.raises(ScenarioError, match=r"label 'cow' is not one of the 2 classes: dog, cat"):
        coded(arrow(["dog", "cow"]), names=["dog", "cat"])


@pytest.mark.parametrize(
    "values,names,expected",
    [
        ([0, None, 1], None, [0, -1, 1]),
        ([0.0, float("nan"), 1.0], None, [0, -1, 1]),
        (["a", None, "b", ""], None, [0, -1, 1, -1]),
        ([0, -1, 1], ["cat", "dog"], [0, -1, 1]),
    ],
)
def test_a_missing_label_is_no_class(values, names, expected):
    found, classes = coded(arrow(values), names=names)
    assert found == [expected]
    assert len(classes) == 2


def test_unlabeled_test_images_are_no_class_of_their_own():
    found, classes = coded(np.arange(10), np.array([-1, -1, 4]))
    assert found[1] == [-1, -1, 4]
    assert len(classes) == 10
    assert coded(arrow(["a", "b"]), pa.chunked_array([pa.nulls(2)]))[0][1] == [-1, -1]


def test_minus_one_that_may_be_a_class_is_refused():
    with pytest.raises(
        ScenarioError, match=r"^data\.label_column: the training labels are -1, 0, 1, and no class names"
    ):
        coded(np.array([-1, 0, 1]))


def test_a_test_set_of_minus_one_alone_is_refused_where_that_is_a_class():
    said = r"^data\.label_column: all 3 test labels are -1, a class of the training set that also marks"
    with pytest.raises(ScenarioError, match=said):
        coded(np.array([-1, 1]), np.array([-1, -1, -1]))
    with pytest.raises(ScenarioError, match=said):
        coded(np.array([-1, 1]), arrow([-1, -1, -1]))


def test_minus_one_is_a_class_of_two_in_testing_as_in_training():
    found, classes = coded(np.array([-1, 1, 1]), np.array([1, -1]))
    assert [list(labels) for labels in found] == [[0, 1, 1], [1, 0]]
    assert classes == ("-1", "1")


@pytest.mark.parametrize("label", [-2, 2])
def test_a_label_outside_the_names_is_refused(label):
    with pytest.raises(ScenarioError, match=f"label {label} is outside the 2 classes, so 0 to 1"):
        coded(np.array([0, label]), names=["a", "b"])


@pytest.mark.parametrize(
    "train,test,names,shown",
    [
        ([0, 1], [0, 5, 5], None, "2 of 3 test images have labels that no training image has: 5"),
        ([0, 1], [2], ["a", "b", "owl"], r"1 of 1 test images .*: 2 \(owl\)"),
        (["a", "b"], ["c"], None, "1 of 1 test images .*: 'c'"),
        ([True, True], [False], None, r"1 of 1 test images .*: 0 \(false\)"),
    ],
)
def test_test_labels_that_training_lacks_are_refused(train, test, names, shown):
    with pytest.raises(ScenarioError, match=rf"^data\.label_column: {shown}"):
        coded(arrow(train), arrow(test), names=names)


def test_text_in_training_and_numbers_in_testing_are_refused():
    with pytest.raises(
        ScenarioError, match=r"^data\.label_column: the labels are text in one of .* numbers in the other"
    ):
        coded(arrow(["a", "b"]), arrow([0, 1]))


@pytest.mark.parametrize(
    "column",
    [
        np.array([0.5, 1.0]),
        arrow([[1, 0], [0, 1]]),
        arrow([b"cat", b"dog"]),
        arrow([2**63, 1], pa.uint64()),
        np.array([1, "a"], dtype=object),
    ],
)
def test_labels_of_other_kinds_are_refused(column):
    with pytest.raises(ScenarioError, match=r"^data\.label_column: the labels are neither whole numbers"):
        coded(column)
