"""What the clients trained on, for scores: `fedsim audit FOLDER --truth guarded_app.truth:batches`."""

from guarded_app.task import load_data


def batches(round, partition):
    """Return the image (1, 3, 32, 32), pixels in [0, 1], and the label (1)."""
    return load_data(partition)
