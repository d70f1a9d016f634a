"""The gradient at the classifier: which labels an update holds, and which head inputs."""

from fedsim_attacks.head.classifier import HeadGradient, References, read_head, reference_images
from fedsim_attacks.head.counts import (
    BLUNT,
    DOUBTFUL,
    UNSCALED,
    count_labels,
    counted,
    fitting_references,
    image_count,
    is_single_step,
    observed_cautions,
    rescaled,
    sharpness,
)
from fedsim_attacks.head.features import RecoveredFeatures, recover_features
from fedsim_attacks.head.inputs import head_input, read_head_inputs
from fedsim_attacks.head.label_bounds import FEW, side_by_side
from fedsim_attacks.head.label_rules import RULES, Counts, PublishedRule, evidence
from fedsim_attacks.head.label_search import Candidate, Family, applicable, judge, search
from fedsim_attacks.head.labels import KnownLabels, known_labels
from fedsim_attacks.head.nearest import NearestStarts
from fedsim_attacks.head.shared_head import ClassVector, Direction, FeatureNorm, RankOne, SharedHead, read_shared_head

__all__ = [
    "BLUNT",
    "Candidate",
    "ClassVector",
    "Counts",
    "DOUBTFUL",
    "Direction",
    "FEW",
    "Family",
    "FeatureNorm",
    "HeadGradient",
    "KnownLabels",
    "NearestStarts",
    "PublishedRule",
    "RULES",
    "RankOne",
    "RecoveredFeatures",
    "References",
    "SharedHead",
    "UNSCALED",
    "applicable",
    "count_labels",
    "counted",
    "evidence",
    "fitting_references",
    "head_input",
    "is_single_step",
    "judge",
    "known_labels",
    "observed_cautions",
    "image_count",
    "read_head",
    "read_head_inputs",
    "read_shared_head",
    "recover_features",
    "reference_images",
    "rescaled",
    "search",
    "sharpness",
    "side_by_side",
]
