import sys

import pytest

from fedsim import ray_cluster
from fedsim.errors import FedsimError
from fedsim.ray_cluster import Share


@pytest.mark.parametrize(
    ("share", "fits"),
    [(Share(1.0, 0.0), 2), (Share(0.1, 0.0), 20), (Share(0.5, 0.25), 4), (Share(4.0, 0.0), 0), (Share(0.1, 2.0), 0)],
)
def test_as_many_tasks_fit_as_their_shares_allow(share, fits):
    assert share.fits({"CPU": 2.0, "GPU": 1.0}) == fits and share.fits({}) == 0


def test_without_an_address_nobody_joins_a_cluster_that_somebody_else_has_started_here(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_cluster.init_args(3) == {"address": "local", "num_cpus": 3}
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert ray_cluster.init_args(3) == {"address": "local"}


def test_without_ray_a_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FedsimError, match=r"^audit\.executor: ray: Ray is not installed here\. Install it with pip"):
        ray_cluster.require("audit.executor: ray", "audit.executor: processes")
