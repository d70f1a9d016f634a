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


def test_a_column_that_holds_no_pictures_is_refused(tmp_path):
    path = write(tmp_path / "x.parquet", [0, 1] * 5)
    with pytest.raises(ScenarioError, match=r"^data\.image_column: column 'label' of .* holds int64"):
        Parquet(path=path, image_column="label", label_column="label").load(0)


@pytest.mark.parametrize("labels", [["a", "b"] * 5, [0, None] * 5, [0.5, 1.0] * 5])
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path, labels):
    pq.write_table(pa.table({"img": [_png((0, 0, 0))] * 10, "label": labels}), tmp_path / "x.parquet")
    with pytest.raises(ScenarioError, match=r"^data\.label_column: .*whole numbers"):
        Parquet(path=str(tmp_path / "x.parquet")).load(0)


@pytest.mark.parametrize("encoded", [b"no picture", b"", None, _png((1, 2, 3))[:40]])
def test_an_undecodable_picture_is_refused_with_file_and_row(tmp_path, encoded):
    path = tmp_path / "x.parquet"
    pictures = [{"bytes": _png((0, 0, 0)), "path": ""} for _ in range(9)] + [{"bytes": encoded, "path": "x"}]
    pq.write_table(pa.table({"img": pictures, "label": [0, 1] * 5}), path, row_group_size=4)
    found = Parquet(path=str(path), image_size=8).load(0)
    with pytest.raises(ScenarioError, match=r"^data\.path: .*x\.parquet, row 9, is no readable picture"):
        for pool in (found.train, found.test, found.auxiliary):
            pool.fetch(range(len(pool)))
