"""What the clients trained on, for scores: `fedsim audit FOLDER --truth vit_head_app.truth:batches`."""

import os

from vit_head_app.task import load_data

IMAGES = int(os.environ.get("APP_IMAGES", "8"))  # as in the run configuration


def batches(round, partition):
    """Return images (count, 3, 224, 224), pixels in [0, 1], and labels (count)."""
    return load_data(partition, IMAGES)
