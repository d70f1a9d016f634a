"""Class folders on disk."""

import numpy as np
import pytest
from PIL import Image

from fedsim.data.folder import Folder
from fedsim.errors import ScenarioError


@pytest.fixture
def tree(tmp_path):
    """Three classes of four images; the first pixel tells class and image."""
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


def test_the_same_seed_holds_the_same_images_out(tree):
    once, again, other = (Folder(path=str(tree), image_size=8).load(seed) for seed in (1, 1, 2))
    assert _seen(once.train) == _seen(again.train)
    assert _seen(once.train) != _seen(other.train)


def test_exactly_one_image_a_class_can_be_dealt(tmp_path):
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


def test_images_lie_at_any_depth_and_other_files_do_not_count(tree):
    _save(tree / "ant" / "more" / "deep.JPEG", (0, 200, 0))
    (tree / "ant" / "notes.txt").write_text("no image")
    (tree / ".cache").mkdir()
    found = Folder(path=str(tree)).load(0)
    assert len(found.train) + len(found.test) + len(found.auxiliary) == 13


def test_a_corrupt_image_is_refused_with_its_path_when_it_is_read(tree):
    broken = tree / "bee" / "2.png"
    broken.write_bytes(broken.read_bytes()[:45])
    found = Folder(path=str(tree), image_size=8).load(0)
    with pytest.raises(ScenarioError, match=r"^data\.path: .*bee/2\.png is no readable image"):
        for pool in (found.train, found.test, found.auxiliary):
            pool.fetch(range(len(pool)))


def test_a_image_that_vanished_is_refused_with_its_path(tree):
    found = Folder(path=str(tree), image_size=8).load(0)
    for picture in tree.rglob("*.png"):
        picture.unlink()
    with pytest.raises(ScenarioError, match=r"^data\.path: .*\.png is no readable image"):
        found.train.fetch([0])


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"^data\.path: no folder .*nowhere"):
        Folder(path=str(tmp_path / "nowhere")).load(0)


def test_images_without_class_folders_are_refused(tmp_path):
    _save(tmp_path / "0.png", (0, 0, 0))
    with pytest.raises(ScenarioError, match=r"^data\.path: .*no sub-folders"):
        Folder(path=str(tmp_path)).load(0)


def test_a_class_without_images_is_refused(tree):
    (tree / "dog").mkdir()
    with pytest.raises(ScenarioError, match=r"^data\.path: no image in .*dog"):
        Folder(path=str(tree)).load(0)


def test_the_center_of_a_wide_image_is_kept(tmp_path):
    for name in ("a", "b", "c"):
        pixels = np.zeros((20, 60, 3), dtype=np.uint8)
        pixels[:, 20:40] = 255
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
    assert int(Folder(path=str(tmp_path), image_size=10).load(0).train.fetch([0]).min()) == 255


def _splits(root, **splits):
    """Save images under split folders; the first pixel tells the split (by position), the class and the image."""
    for number, (split, classes) in enumerate(splits.items()):
        for label, name in enumerate(classes):
            for picture in range(4):
                _save(root / split / name / f"{picture}.png", (40 * label, 40 * picture, 100 * number))
    return root


def _split_of(pool):
    return {int(p[2, 0, 0]) // 100 for p in pool.fetch(range(len(pool)))}


@pytest.mark.parametrize(
    "train,test",
    [
        ("train", "val"),
        ("train", "test"),
        ("Train", "Validation"),
        ("TRAINING", "testing"),
        ("train", "valid"),
        ("train", "dev"),
    ],
)
def test_splits_inside_the_folder_are_used_and_said(tmp_path, train, test):
    _splits(tmp_path, **{train: ["ant", "bee"], test: ["ant", "bee"]})
    found = Folder(path=str(tmp_path), image_size=8).load(0)
    assert found.class_names == ("ant", "bee")
    assert (_split_of(found.train), _split_of(found.auxiliary), _split_of(found.test)) == ({0}, {0}, {1})
    assert found.notes == (f"data.path: {tmp_path / train} is used for training, {tmp_path / test} for testing.",)


def test_the_test_split_is_taken_before_the_validation_split(tmp_path):
    _splits(tmp_path, train=["ant", "bee"], val=["ant", "bee"], test=["bee"])
    found = Folder(path=str(tmp_path), image_size=8).load(0)
    assert _split_of(found.test) == {2}
    assert found.notes[1] == f"data.path: not used: {tmp_path / 'val'}."


def test_an_unlabeled_test_split_is_left_out_and_said(tmp_path):
    _splits(tmp_path, train=["ant", "bee"])
    _save(tmp_path / "test" / "0.png", (0, 0, 200))
    found = Folder(path=str(tmp_path), image_size=8).load(0)
    assert len(found.train) + len(found.test) + len(found.auxiliary) == 8
    assert found.notes == (
        f"data.path: {tmp_path / 'train'} is used for training.",
        f"data.path: not used: {tmp_path / 'test'}.",
    )


def test_a_given_test_folder_goes_before_the_split_inside(tmp_path):
    _splits(tmp_path / "a", train=["ant", "bee"], val=["ant"])
    _save(tmp_path / "b" / "bee" / "0.png", (40, 0, 200))
    found = Folder(path=str(tmp_path / "a"), test_path=str(tmp_path / "b"), image_size=8).load(0)
    assert found.test.labels.tolist() == [1]


def test_a_class_may_be_named_after_a_split(tmp_path):
    for name in ("bus", "car", "train"):
        for picture in range(4):
            _save(tmp_path / name / f"{picture}.png", (0, 0, 0))
    assert Folder(path=str(tmp_path)).load(0).class_names == ("bus", "car", "train")
    _save(tmp_path / "bus" / "old" / "0.png", (0, 0, 0))
    assert Folder(path=str(tmp_path)).load(0).class_names == ("bus", "car", "train")


@pytest.mark.parametrize(
    "paths,message",
    [
        (["train/0.png", "val/0.png"], r"train and .*val look like splits.*train has no class folders"),
        (["train/0.png", "test/0.png", "other/0.png"], r"train and .*test look like splits"),
        (
            ["training_set/ant/0.png", "test_set/ant/0.png"],
            r"Give data\.path: .*training_set, data\.test_path: .*test_set",
        ),
        (["train2017/ant/0.png", "val2017/ant/0.png"], r"Give data\.path: .*train2017, data\.test_path: .*val2017"),
        (["seg_train/a/0.png", "seg_test/a/0.png", "seg_pred/0.png"], r"data\.path: .*seg_train, .*seg_test"),
        (["images/ant/0.png", "test/ant/0.png"], r"Give data\.path: .*images, data\.test_path: .*/test\."),
        (["test/ant/0.png", "val/ant/0.png"], r"test and .*val look like splits"),
        (["train/ant/0.png", "car/0.png"], r"train looks like a split, .* If it is a class, put its images directly"),
        (["train/ant/0.png", "val/ant/0.png", "Val/ant/0.png"], r"have the same meaning"),
        (["test/ant/0.png"], r"test looks like a split, not like a class. Give data\.path: .*test"),
    ],
)
def test_folders_that_may_be_splits_are_refused_with_their_paths(tmp_path, paths, message):
    for path in paths:
        _save(tmp_path / path, (0, 0, 0))
    with pytest.raises(ScenarioError, match=message) as refusal:
        Folder(path=str(tmp_path)).load(0)
    assert refusal.value.where == "data.path"


def test_a_class_of_the_test_split_that_training_lacks_is_refused(tmp_path):
    _splits(tmp_path, train=["ant", "bee"], test=["ant", "cow"])
    with pytest.raises(ScenarioError, match=r"^data\.path: class folder .*cow is not in .*train, which is trained on"):
        Folder(path=str(tmp_path)).load(0)


def test_testing_on_the_training_images_is_refused(tree):
    with pytest.raises(ScenarioError, match=r"^data\.test_path: .* lies in .*, which is trained on"):
        Folder(path=str(tree), test_path=str(tree)).load(0)


def test_what_systems_leave_behind_is_no_class_and_no_image(tree):
    _save(tree / "__MACOSX" / "ant" / "0.png", (0, 0, 0))
    _save(tree / "ant" / ".ipynb_checkpoints" / "0-checkpoint.png", (0, 0, 0))
    _save(tree / "ant" / "._0.png", (0, 0, 0))
    found = Folder(path=str(tree)).load(0)
    assert found.class_names == ("ant", "bee", "cat")
    assert len(found.train) + len(found.test) + len(found.auxiliary) == 12
    assert found.notes == ()


def test_files_that_are_left_out_are_counted(tree):
    _save(tree / "loose.png", (0, 0, 0))
    (tree / "ant" / "0.txt").write_text("no image")
    _save(tree / "bee" / "test" / "9.png", (0, 0, 0))
    assert Folder(path=str(tree)).load(0).notes == (
        f"data.path: left out, being in no class folder: 1 in {tree} itself.",
        f"data.path: files in {tree} that are not read as images: 1 with .txt.",
        f"data.path: test inside class folders of {tree}: all images of a class are taken together.",
    )


def test_a_link_to_a_folder_above_is_followed_once(tree):
    (tree / "ant" / "again").symlink_to(tree / "ant", target_is_directory=True)
    found = Folder(path=str(tree)).load(0)
    assert len(found.train) + len(found.test) + len(found.auxiliary) == 12
