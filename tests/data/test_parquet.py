"""Local parquet files in Hugging Face's image layout."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedsim.data.parquet import Parquet
from fedsim.errors import ScenarioError


def _png(color, size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, labels, first=0, names=("cat", "dog"), columns=("img", "label"), encode=_png, rows_per_group=5):
    """Rows whose red tells the row number, counted from `first`, and whose green tells the class."""
    pictures = [
        {"bytes": encode((first + row, 100 * label, 0)), "path": f"{row}.png"} for row, label in enumerate(labels)
    ]
    features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": list(names), "_type": "ClassLabel"}}
    table = pa.table({columns[0]: pictures, columns[1]: pa.array(labels, pa.int64())})
    if names:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return str(path)


def _seen(pool):
    pictures = pool.fetch(range(len(pool)))
    assert (pictures[:, 1, 0, 0] // 100).tolist() == pool.labels.tolist()
    return pictures[:, 0, 0, 0].tolist()


def test_one_file_is_divided_into_three_disjoint_pools(tmp_path):
    path = write(tmp_path / "train.parquet", [0, 1] * 16)
    found = Parquet(path=path, image_size=8).load(0)
    assert found.class_names == ("cat", "dog")
    assert [len(found.train), len(found.test), len(found.auxiliary)] == [25, 3, 4]
    assert sorted(_seen(found.train) + _seen(found.test) + _seen(found.auxiliary)) == list(range(32))


def test_a_folder_holds_shards_of_train_and_test(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", [0, 1, 0, 1, 0, 1, 1])
    write(tmp_path / "train-00001-of-00002.parquet", [1, 0, 0, 1, 0], first=7)
    write(tmp_path / "test-00000-of-00001.parquet", [1, 1, 0], first=50)
    found = Parquet(path=str(tmp_path), image_size=8).load(0)
    assert sorted(_seen(found.train) + _seen(found.auxiliary)) == list(range(12))
    assert _seen(found.test) == [50, 51, 52]
    assert len(found.auxiliary) == 1


def test_a_test_file_may_be_named_apart(tmp_path):
    train, tested = write(tmp_path / "a.parquet", [0, 1] * 5), write(tmp_path / "b.parquet", [1, 0], first=90)
    found = Parquet(path=train, test_path=tested, image_size=8).load(0)
    assert _seen(found.test) == [90, 91]


def test_sizes_are_upper_bounds(tmp_path):
    path = write(tmp_path / "train.parquet", [0, 1] * 16)
    found = Parquet(path=path, image_size=8, samples=6, test_samples=5, auxiliary_samples=2).load(0)
    assert [len(found.train), len(found.test), len(found.auxiliary)] == [6, 5, 2]
    assert np.bincount(found.train.labels).tolist() == [3, 3]


def test_a_plain_binary_column_without_class_names_is_read(tmp_path):
    table = pa.table({"image": [_png((row, 0, 0)) for row in range(8)], "y": pa.array([4, 7] * 4, pa.int32())})
    pq.write_table(table, tmp_path / "x.parquet")
    found = Parquet(path=str(tmp_path / "x.parquet"), image_column="image", label_column="y", image_size=8).load(0)
    assert found.class_names == ("4", "7")
    assert set(found.train.labels.tolist()) == {0, 1}


@pytest.mark.parametrize("kept", [0, 4, 0.5, -1])
def test_a_truncated_file_is_refused_with_its_path(tmp_path, kept):
    path = tmp_path / "train.parquet"
    write(path, [0, 1] * 16)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ScenarioError, match=r"^data\.path: .*train\.parquet is truncated, damaged or no parquet file"):
        Parquet(path=str(path)).load(0)


def test_a_truncated_test_file_is_refused_under_its_own_key(tmp_path):
    path = write(tmp_path / "train.parquet", [0, 1] * 16)
    (tmp_path / "other.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ScenarioError, match=r"^data\.test_path: .*other\.parquet is truncated"):
        Parquet(path=path, test_path=str(tmp_path / "other.parquet")).load(0)


def test_a_file_damaged_inside_is_refused(tmp_path):
    path = tmp_path / "train.parquet"
    write(path, [0, 1] * 16, encode=lambda color: np.random.default_rng(color[0]).bytes(400))
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[4:middle] = b"\xff" * (middle - 4)
    path.write_bytes(whole)
    with pytest.raises(ScenarioError, match=r"^data\.path: .*train\.parquet"):
        Parquet(path=str(path)).load(0).train.fetch(range(20))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"^data\.path: no file or folder .*none\.parquet"):
        Parquet(path=str(tmp_path / "none.parquet")).load(0)


def test_a_folder_without_train_files_is_refused(tmp_path):
    write(tmp_path / "test.parquet", [0, 1])
    with pytest.raises(ScenarioError, match=r"^data\.path: no train\*\.parquet in "):
        Parquet(path=str(tmp_path)).load(0)


def test_missing_columns_are_refused_with_the_nearest(tmp_path):
    path = write(tmp_path / "x.parquet", [0, 1] * 5, columns=("image", "labels"))
    with pytest.raises(ScenarioError, match=r"^data\.image_column: no column 'img' .*Columns: image, labels"):
        Parquet(path=path).load(0)
    with pytest.raises(ScenarioError, match=r"^data\.label_column: no column 'label' .*Did you mean 'labels'\?"):
        Parquet(path=path, image_column="image").load(0)


def test_a_column_that_holds_no_images_is_refused(tmp_path):
    path = write(tmp_path / "x.parquet", [0, 1] * 5)
    with pytest.raises(ScenarioError, match=r"^data\.image_column: column 'label' of .* holds int64"):
        Parquet(path=path, image_column="label", label_column="label").load(0)


@pytest.mark.parametrize("labels", [[[0], [1]] * 5, [0.5, 1.0] * 5])
def test_labels_of_other_kinds_are_refused(tmp_path, labels):
    pq.write_table(pa.table({"img": [_png((0, 0, 0))] * 10, "label": labels}), tmp_path / "x.parquet")
    with pytest.raises(ScenarioError, match=r"^data\.label_column: .*whole numbers"):
        Parquet(path=str(tmp_path / "x.parquet")).load(0)


@pytest.mark.parametrize("encoded", [b"no image", b"", None, _png((1, 2, 3))[:40]])
def test_an_undecodable_image_is_refused_with_file_and_row(tmp_path, encoded):
    path = tmp_path / "x.parquet"
    pictures = [{"bytes": _png((0, 0, 0)), "path": ""} for _ in range(9)] + [{"bytes": encoded, "path": "x"}]
    pq.write_table(pa.table({"img": pictures, "label": [0, 1] * 5}), path, row_group_size=4)
    found = Parquet(path=str(path), image_size=8).load(0)
    with pytest.raises(ScenarioError, match=r"^data\.path: .*x\.parquet, row 9, is no readable image"):
        for pool in (found.train, found.test, found.auxiliary):
            pool.fetch(range(len(pool)))


def _rows(count, first=0):
    return [{"bytes": _png((first + row, 0, 0)), "path": None} for row in range(count)]


def _save(path, images, labels, metadata=None):
    table = pa.table({"img": images, "label": labels})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata} if metadata is not None else None), path)
    return str(path)


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "not JSON",
        b"\xff\xfe",
        "null",
        "[]",
        "[" * 100_000,
        '{"info": null}',
        '{"info": {"features": null}}',
        '{"info": {"features": [{"name": "label", "names": ["cat", "dog"]}]}}',
        '{"info": {"features": {"label": ["cat", "dog"]}}}',
        '{"info": {"features": {"label": null}}}',
        '{"info": {"features": {"label": {"names": "cat"}}}}',
        '{"info": {"features": {"label": {"names": {"0": "cat"}}}}}',
        '{"info": {"features": {"label": {"names": [null, 3]}}}}',
        '{"info": {"features": {"label": {"names": ["cat", "cat"]}}}}',
        '{"info": {"features": {"label": {"names": []}}}}',
    ],
)
def test_metadata_of_another_form_is_ignored(tmp_path, metadata):
    path = _save(tmp_path / "x.parquet", _rows(8), [3, 5] * 4, metadata)
    assert Parquet(path=path, image_size=8).load(0).class_names == ("3", "5")


def test_class_names_that_differ_between_files_are_refused(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 5)
    write(tmp_path / "test.parquet", [0, 1], names=("dog", "cat"))
    with pytest.raises(
        ScenarioError, match=r"^data\.label_column: .*train\.parquet and .*test\.parquet state different"
    ):
        Parquet(path=str(tmp_path)).load(0)


@pytest.mark.parametrize("form", ["text", "category", "path alone", "bytes missing"])
def test_images_named_by_paths_are_read_relative_to_their_file(tmp_path, form, monkeypatch):
    (tmp_path / "data" / "images").mkdir(parents=True)
    for row in range(8):
        (tmp_path / "data" / "images" / f"{row}.png").write_bytes(_png((row, 0, 0)))
    paths = [f"images/{row}.png" for row in range(8)]
    images = {
        "text": pa.array(paths),
        "category": pa.array(paths).dictionary_encode(),
        "path alone": pa.array([{"path": path} for path in paths]),
        "bytes missing": pa.array([{"bytes": None, "path": path} for path in paths]),
    }[form]
    path = _save(tmp_path / "data" / "x.parquet", images, [0, 1] * 4)
    monkeypatch.chdir("/")
    found = Parquet(path=path, image_size=8).load(0)
    red = [int(p[0, 0, 0]) for pool in (found.train, found.test, found.auxiliary) for p in pool.fetch(range(len(pool)))]
    assert sorted(red) == list(range(8))


def test_a_path_without_a_file_is_refused_as_missing_bytes(tmp_path):
    path = _save(tmp_path / "x.parquet", ["gone.png"] * 8, [0, 1] * 4)
    with pytest.raises(
        ScenarioError, match=r"x\.parquet, row \d, is no .*its bytes are missing, .* no file .*gone\.png"
    ):
        Parquet(path=path, image_size=8).load(0).train.fetch([0])


def test_shards_may_store_their_images_in_different_ways(tmp_path):
    (tmp_path / "3.png").write_bytes(_png((3, 0, 0)))
    _save(tmp_path / "train-0.parquet", _rows(3), [0, 1, 0])
    _save(tmp_path / "train-1.parquet", ["3.png"], [1])
    found = Parquet(path=str(tmp_path), image_size=8).load(0)
    red = [int(p[0, 0, 0]) for pool in (found.train, found.test, found.auxiliary) for p in pool.fetch(range(len(pool)))]
    assert sorted(red) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "labels,names",
    [(["dog", "cat"] * 4, ("cat", "dog")), ([True, False] * 4, ("false", "true")), ([1.0, 0.0] * 4, ("0", "1"))],
)
def test_text_booleans_and_whole_floats_are_labels(tmp_path, labels, names):
    found = Parquet(path=_save(tmp_path / "x.parquet", _rows(8), labels), image_size=8).load(0)
    assert found.class_names == names
    pictures = found.train.fetch(range(len(found.train)))
    assert found.train.labels.tolist() == [1 - int(p[0, 0, 0]) % 2 for p in pictures]


def test_an_unlabeled_test_file_adds_no_class(tmp_path):
    _save(tmp_path / "train.parquet", _rows(20), list(range(10)) * 2)
    _save(tmp_path / "test.parquet", _rows(4), [-1] * 4)
    with pytest.raises(ScenarioError, match=r"^data\.path: none of the 4 test images has a label"):
        Parquet(path=str(tmp_path)).load(0)
    _save(tmp_path / "test.parquet", _rows(4), [-1, 3, 4, -1])
    found = Parquet(path=str(tmp_path), image_size=8).load(0)
    assert (len(found.class_names), found.test.labels.tolist()) == (10, [3, 4])
    assert found.notes == ("data.path: 2 of 4 test images have no label and are left out.",)
    _save(tmp_path / "test.parquet", _rows(4), [1, 2, 3, 11])
    with pytest.raises(ScenarioError, match=r"1 of 4 test images have labels that no training image has: 11"):
        Parquet(path=str(tmp_path)).load(0)


@pytest.mark.parametrize(
    "train,tests,used",
    [
        ("Train.parquet", ["VAL-0.parquet"], "validation"),
        ("training-0.parquet", ["test.parquet", "valid.parquet"], "test"),
        ("train/0000.parquet", ["validation/0000.parquet"], "validation"),
        ("train/0000.parquet", ["Test/0000.parquet"], "test"),
    ],
)
def test_test_files_are_found_by_the_name_of_their_split(tmp_path, train, tests, used):
    for number, name in enumerate([train, *tests]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [0, 1] * 4, first=100 * number)
    found = Parquet(path=str(tmp_path), image_size=8).load(0)
    assert _seen(found.test) == list(range(100, 108))
    assert len(found.train) + len(found.auxiliary) == 8
    assert all(f"the {used} files in {tmp_path} are used for testing" in note for note in found.notes)
    assert bool(found.notes) == any("val" in name.lower() for name in tests)


def test_a_folder_without_files_of_a_split_names_where_files_lie(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.parquet", [0, 1] * 4)
    with pytest.raises(ScenarioError, match=r"no train\*\.parquet in .*There are parquet files in .*data; give a file"):
        Parquet(path=str(tmp_path)).load(0)
