"""Images that show the same, and images that do not."""

import pytest
import torch

from fedsim.data.photos import Photos
from fedsim.data.shapes import Shapes
from fedsim.metrics.likeness import alike, thumbnails
from fedsim.seeds import torch_generator


def pictures(source, count=24):
    pool = source(samples=count, test_samples=4, auxiliary_samples=4).load(3).train
    return pool.read(range(count)).images


@pytest.fixture(scope="module", params=[Shapes, Photos], ids=["shapes", "photos"])
def images(request):
    return pictures(request.param)


def test_a_copy_a_noisy_copy_and_a_shifted_one_show_the_same(images):
    noise = 0.02 * torch.randn(images.shape, generator=torch_generator(0))
    darker = images * 0.95
    for other in (images, images + noise, darker):
        assert alike(thumbnails(images), thumbnails(other)) == len(images)


def test_other_images_of_the_same_kind_do_not(images):
    small = thumbnails(images)
    seen = [alike(small[i : i + 1], torch.cat([small[:i], small[i + 1 :]])) for i in range(len(small))]
    assert sum(seen) <= 2


def test_how_many_are_counted_and_not_how_often(images):
    small = thumbnails(images)
    assert alike(small[:3], small[[0, 0, 1, 5]]) == 2
    assert small.shape[1] <= 3 * 16 * 16
