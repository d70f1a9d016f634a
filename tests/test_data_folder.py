"""Class folders on disk."""

import numpy as np
import pytest
from PIL import Image

from fedsim.data.folder import Folder
from fedsim.errors import ScenarioError


@pytest.fixture
def tree(tmp_path):
    """Three classes of four pictures; the first pixel tells class and picture."""
    for label, name in enumerate(["ant", "bee", "cat"]):
        for picture in range(4):
            _save(tmp_path / name / f"{picture}.png", (40 * label, 40 * picture, 9))
    return tmp_path


def _save(path, color, size=(10, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def _seen(pool):
    return [(int(p[0, 0, 0]) // 40, int(p[1, 0, 0]) // 40) for p in pool.fetch(range(len(pool)))]


def test_classes_are_the_folders_in_alphabetical_order(tree):
    found = Folder(path=str(tree), image_size=8).load(0)
    assert found.class_names == ("ant", "bee", "cat")
    for pool in (found.train, found.test, found.auxiliary):
        assert [label for label, _ in _seen(pool)] == pool.labels.tolist()
    everything = _seen(found.train) + _seen(found.test) + _seen(found.auxiliary)
    assert sorted(everything) == [(label, picture) for label in range(3) for picture in range(4)]


def test_the_same_seed_holds_the_same_pictures_out(tree):
    once, again, other = (Folder(path=str(tree), image_size=8).load(seed) for seed in (1, 1, 2))
    assert _seen(once.train) == _seen(again.train)
    assert _seen(once.train) != _seen(other.train)


def test_exactly_one_picture_a_class_can_be_dealt(tmp_path):
    for label in range(16):
        _save(tmp_path / f"class{label:02d}" / "0.png", (label, label, label))
    found = Folder(path=str(tmp_path), image_size=None).load(0)
    assert (len(found.train), len(found.test), len(found.auxiliary)) == (13, 1, 2)
    assert len(found.class_names) == 16
    assert found.train.fetch([0]).shape == (1, 3, 10, 10)


def test_a_test_folder_may_lack_classes_but_not_add_any(tree, tmp_path_factory):
    tested = tmp_path_factory.mktemp("tested")
    _save(tested / "cat" / "x.jpg", (80, 0, 0))
    found = Folder(path=str(tree), test_path=str(tested)).load(0)
    assert found.test.labels.tolist() == [2]
    assert len(found.train) + len(found.auxiliary) == 12
    _save(tested / "bees" / "x.jpg", (80, 0, 0))
    with pytest.raises(ScenarioError, match=r"^data\.test_path: .*bees.* Did you mean 'bee'\?"):
        Folder(path=str(tree), test_path=str(tested)).load(0)


def test_pictures_lie_at_any_depth_and_other_files_do_not_count(tree):
    _save(tree / "ant" / "more" / "deep.JPEG", (0, 200, 0))
    (tree / "ant" / "notes.txt").write_text("no picture")
    (tree / ".cache").mkdir()
    found = Folder(path=str(tree)).load(0)
    assert len(found.train) + len(found.test) + len(found.auxiliary) == 13


def test_a_corrupt_picture_is_refused_with_its_path_when_it_is_read(tree):
    broken = tree / "bee" / "2.png"
    broken.write_bytes(broken.read_bytes()[:45])
    found = Folder(path=str(tree), image_size=8).load(0)
    with pytest.raises(ScenarioError, match=r"^data\.path: .*bee/2\.png is no readable picture"):
        for pool in (found.train, found.test, found.auxiliary):
            pool.fetch(range(len(pool)))


def test_a_picture_that_vanished_is_refused_with_its_path(tree):
    found = Folder(path=str(tree), image_size=8).load(0)
    for picture in tree.rglob("*.png"):
        picture.unlink()
    with pytest.raises(ScenarioError, match=r"^data\.path: .*\.png is no readable picture"):
        found.train.fetch([0])


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"^data\.path: no folder .*nowhere"):
        Folder(path=str(tmp_path / "nowhere")).load(0)


def test_pictures_without_class_folders_are_refused(tmp_path):
    _save(tmp_path / "0.png", (0, 0, 0))
    with pytest.raises(ScenarioError, match=r"^data\.path: .*no sub-folders"):
        Folder(path=str(tmp_path)).load(0)


def test_a_class_without_pictures_is_refused(tree):
    (tree / "dog").mkdir()
    with pytest.raises(ScenarioError, match=r"^data\.path: no picture in .*dog"):
        Folder(path=str(tree)).load(0)


def test_the_center_of_a_wide_picture_is_kept(tmp_path):
    for name in ("a", "b", "c"):
        pixels = np.zeros((20, 60, 3), dtype=np.uint8)
        pixels[:, 20:40] = 255
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
    assert int(Folder(path=str(tmp_path), image_size=10).load(0).train.fetch([0]).min()) == 255
