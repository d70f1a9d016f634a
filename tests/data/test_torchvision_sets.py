"""torchvision's sets, from tiny files in their layout."""

import pickle

import numpy as np
import pytest
import torchvision

from fedsim.data.decoding import GRAY
from fedsim.data.torchvision_sets import TorchvisionSet
from fedsim.errors import ScenarioError
from fedsim.plugins import configure


def _write_mnist(root, train=24, test=6, classes=10):
    """MNIST's idx files; every pixel of image i is i, its class is i modulo 10."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        images = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28)
        header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (
            (np.arange(count) % classes).astype(np.uint8) if prefix == "train" else np.arange(count, dtype=np.uint8)
        )
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, count], dtype=">i4").tobytes() + labels.tobytes()
        )


def _write_cifar(root):
    """CIFAR-10's pickles with four images each, red in the first channel."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name in names:
        data = np.zeros((4, 3, 32, 32), dtype=np.uint8)
        data[:, 0] = 200
        (folder / name).write_bytes(pickle.dumps({"data": data.reshape(4, -1), "labels": [0, 1, 2, 3]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{label}" for label in range(10)]}))


def test_gray_digits_become_three_equal_channels(tmp_path):
    _write_mnist(tmp_path)
    found = TorchvisionSet(dataset="MNIST", root=str(tmp_path), image_size=28).load(0)
    assert len(found.class_names) == 10 and found.class_names[3] == "3 - three"
    pictures = found.train.fetch(range(len(found.train)))
    assert pictures.shape == (21, 3, 28, 28)
    assert (pictures[:, 0] == pictures[:, 2]).all()
    assert (pictures[:, 0, 0, 0] % 10).tolist() == found.train.labels.tolist()
    held = found.auxiliary.fetch(range(len(found.auxiliary)))[:, 0, 0, 0].tolist()
    assert sorted(pictures[:, 0, 0, 0].tolist() + held) == list(range(24))
    assert len(found.test) == 6


def test_digits_are_said_to_be_gray(tmp_path):
    _write_mnist(tmp_path)
    found = TorchvisionSet(dataset="MNIST", root=str(tmp_path)).load(0)
    assert found.test.conversions(0) == (GRAY,)


def test_test_labels_that_training_lacks_are_refused(tmp_path):
    _write_mnist(tmp_path, classes=3)
    with pytest.raises(ScenarioError, match=r"^data\.dataset: 3 of 6 test images have labels .*: 3 \(3 - three\), 4"):
        TorchvisionSet(dataset="MNIST", root=str(tmp_path)).load(0)


def test_digits_are_brought_to_the_image_size(tmp_path):
    _write_mnist(tmp_path)
    found = TorchvisionSet(dataset="MNIST", root=str(tmp_path), image_size=32).load(0)
    assert found.test.fetch([0, 1]).shape == (2, 3, 32, 32)


def test_cifar_pickles_are_read(tmp_path, monkeypatch):
    _write_cifar(tmp_path)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: True)
    found = TorchvisionSet(dataset="CIFAR10", root=str(tmp_path)).load(0)
    assert found.class_names[1] == "class1"
    assert found.train.fetch([0])[0, :, 5, 5].tolist() == [200, 0, 0]
    assert (len(found.train) + len(found.auxiliary), len(found.test)) == (20, 4)


def test_a_set_that_is_not_there_is_refused_with_its_root(tmp_path):
    with pytest.raises(
        ScenarioError, match=r"^data\.root: .*CIFAR100 \(train\) cannot be read: .*data\.download: true"
    ):
        TorchvisionSet(dataset="CIFAR100", root=str(tmp_path)).load(0)


def test_a_damaged_set_is_refused(tmp_path):
    _write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ScenarioError, match=r"^data\.root: .*MNIST \(train\) cannot be read"):
        TorchvisionSet(dataset="MNIST", root=str(tmp_path)).load(0)


def test_a_failing_download_is_refused(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)
    with pytest.raises(ScenarioError, match=r"^data\.root: .*Error downloading .*network"):
        TorchvisionSet(dataset="MNIST", root=str(tmp_path), download=True).load(0)


def test_an_unknown_set_is_refused_with_the_nearest():
    with pytest.raises(
        ScenarioError, match=r"^data\.dataset: no 'CIFAR' here\. Did you mean 'CIFAR10'\? Known: CIFAR10,"
    ):
        configure(TorchvisionSet, {"dataset": "CIFAR", "root": "."}, "data")


def test_the_root_has_no_default():
    with pytest.raises(ScenarioError, match=r"^data\.root: missing"):
        configure(TorchvisionSet, {}, "data")
