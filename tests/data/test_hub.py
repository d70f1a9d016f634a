"""Data sets of the hub, with a local stub for the hub."""

import datasets
import numpy as np
import pytest
from PIL import Image

from fedsim.data.hub import Hub
from fedsim.errors import ScenarioError


def _table(count, first=0):
    """Images whose red tells their number, and whose class is its parity."""
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    rows = {
        "img": [Image.new("RGB", (8, 8), (first + row, 0, 0)) for row in range(count)],
        "label": [row % 2 for row in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture
def hub(monkeypatch):
    """A hub that holds one data set, `a/b`, with the splits train and test."""
    splits = {"train": _table(24), "test": _table(6, first=100)}

    def load_dataset(dataset, subset, split):
        if dataset != "a/b":
            raise ConnectionError(f"Couldn't reach {dataset!r} on the Hub")
        if split not in splits:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        return splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return splits


def _seen(pool):
    return pool.fetch(range(len(pool)))[:, 0, 0, 0].tolist()


def test_the_splits_become_pools(hub):
    found = Hub(dataset="a/b", image_size=8).load(0)
    assert found.class_names == ("even", "odd")
    assert sorted(_seen(found.train) + _seen(found.auxiliary)) == list(range(24))
    assert _seen(found.test) == list(range(100, 106))
    assert found.train.labels.tolist() == [number % 2 for number in _seen(found.train)]


def test_without_a_test_split_images_are_held_out(hub):
    found = Hub(dataset="a/b", image_size=8, test_split=None).load(0)
    assert sorted(_seen(found.train) + _seen(found.auxiliary) + _seen(found.test)) == list(range(24))


def test_an_unreachable_hub_is_refused_with_the_way_out(hub):
    with pytest.raises(ScenarioError, match=r"^data\.dataset: .*'uoft-cs/cifar10'") as refusal:
        Hub().load(0)
    assert "--set data.name=parquet --set data.path=" in str(refusal.value)


def test_an_unknown_split_is_refused(hub):
    with pytest.raises(ScenarioError, match=r"^data\.dataset: .*'validation'"):
        Hub(dataset="a/b", test_split="validation").load(0)


def test_missing_columns_are_refused_with_the_nearest(hub):
    with pytest.raises(ScenarioError, match=r"^data\.label_column: no column 'labels' .*Did you mean 'label'\?"):
        Hub(dataset="a/b", label_column="labels").load(0)
    with pytest.raises(ScenarioError, match=r"^data\.image_column: no column 'image' .*Columns: img, label"):
        Hub(dataset="a/b", image_column="image").load(0)


def test_a_column_that_is_no_image_column_is_refused(hub):
    with pytest.raises(ScenarioError, match=r"^data\.image_column: column 'label' of a/b"):
        Hub(dataset="a/b", image_column="label").load(0)


def test_a_damaged_image_is_refused_with_its_row(hub):
    plain = hub["train"].cast_column("img", datasets.Image(decode=False)).to_list()
    plain[3]["img"]["bytes"] = b"no image"
    hub["train"] = datasets.Dataset.from_list(plain, features=hub["train"].features)
    found = Hub(dataset="a/b", image_size=8).load(0)
    with pytest.raises(ScenarioError, match=r"^data\.dataset: a/b train, row 3, is no readable image"):
        for pool in (found.train, found.auxiliary):
            pool.fetch(range(len(pool)))


def test_images_kept_as_files_are_read(hub, tmp_path):
    paths = []
    for number in range(8):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(paths[-1])
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int32")})
    hub["train"] = datasets.Dataset.from_dict({"img": paths, "label": [0, 1] * 4}, features=features)
    found = Hub(dataset="a/b", image_size=8, test_split=None).load(0)
    assert sorted(_seen(found.train) + _seen(found.test) + _seen(found.auxiliary)) == list(range(8))
    assert found.class_names == ("0", "1")


def _labeled(labels, feature):
    features = datasets.Features({"img": datasets.Image(), "label": feature})
    rows = {"img": [Image.new("RGB", (8, 8), (row, 0, 0)) for row in range(len(labels))], "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize(
    "kind,labels,names",
    [
        ("string", ["owl", "ant"], ("ant", "owl")),
        ("bool", [True, False], ("false", "true")),
        ("int8", [9, 4], ("4", "9")),
    ],
)
def test_labels_of_every_kind_are_read(hub, kind, labels, names):
    hub["train"] = _labeled(labels * 8, datasets.Value(kind))
    found = Hub(dataset="a/b", image_size=8, test_split=None).load(0)
    assert found.class_names == names
    assert found.train.labels.tolist() == [1 - number % 2 for number in _seen(found.train)]


def test_a_hidden_test_set_is_refused_and_single_missing_labels_are_left_out(hub):
    hub["test"] = _labeled([-1] * 6, hub["train"].features["label"])
    with pytest.raises(ScenarioError, match=r"^data\.dataset: none of the 6 test images has a label"):
        Hub(dataset="a/b").load(0)
    hub["test"] = _labeled([1, -1, None], hub["train"].features["label"])
    found = Hub(dataset="a/b", image_size=8).load(0)
    assert _seen(found.test) == [0]
    assert found.notes == ("data.dataset: 2 of 3 test images have no label and are left out.",)


def test_test_labels_that_training_lacks_are_refused(hub):
    hub["train"] = _labeled([0] * 8, hub["train"].features["label"])
    with pytest.raises(ScenarioError, match=r"^data\.label_column: 3 of 6 test images have labels .*: 1 \(odd\)"):
        Hub(dataset="a/b").load(0)


def test_a_image_without_bytes_and_file_is_refused_as_missing(hub):
    plain = hub["train"].cast_column("img", datasets.Image(decode=False)).to_list()
    for row in plain:
        row["img"] = {"bytes": None, "path": "https://example.org/a.png"}
    hub["train"] = datasets.Dataset.from_list(plain, features=hub["train"].features)
    with pytest.raises(
        ScenarioError, match=r"row \d+, is no .*its bytes are missing, and https://example.org/a.png is an"
    ):
        Hub(dataset="a/b", image_size=8).load(0).train.fetch([0])
