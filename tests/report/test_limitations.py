import json

from fedsim.report.limitations import limits
from fedsim.report.reading import read


def test_warnings_of_the_strategy_are_told_with_their_round(tmp_path):
    lines = [
        {"round": 0, "accuracy": 0.1, "loss": 2.3, "warnings": ["equivalent to FedAvg"]},
        {"round": 1, "accuracy": 0.1, "loss": 2.3},
        {"round": 2, "accuracy": 0.1, "loss": 2.3, "warnings": ["3 replies are too few"]},
    ]
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = [text for text in limits(read(tmp_path), ()) if text.startswith("Warning")]
    assert told == [
        "Warning of the strategy, before the training: equivalent to FedAvg",
        "Warning of the strategy, round 2: 3 replies are too few",
    ]
