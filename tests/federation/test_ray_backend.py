"""Flower's Ray backend with actors of ours, and Ray in the place of which a test stands."""

import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from flwr.app import Context, Message, RecordDict
from ray.exceptions import ActorUnavailableError, RayActorError

from fedsim.federation import ray_backend
from fedsim.federation._flwr_private import identify_process


class Pool:
    """One actor; `back` is set once it can be given another message."""

    def __init__(self):
        self.busy, self.back = {}, threading.Event()
        ready = types.SimpleNamespace(remote=lambda: "ready")
        self.actor = types.SimpleNamespace(__ray_ready__=ready, run=types.SimpleNamespace(remote=lambda *given: given))

    @property
    def _future_to_actor(self):
        return self.busy

    def submit(self, function, job):
        assert function(self.actor, *job) == job
        self.busy["future"] = self.actor
        return "future"

    def add_actor_back_to_pool(self, future):
        del self.busy[future]
        self.back.set()

    def terminate_all_actors(self):
        pass


class Ray:
    """Answers `get` with what it is told, in turn."""

    def __init__(self, **answers):
        self.answers, self.killed, self.asked, self.is_asked = answers, [], [], threading.Event()

    def get(self, reference, timeout=None):
        self.asked.append(reference)
        self.is_asked.set()
        answer = self.answers[reference].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    def kill(self, actor):
        self.killed.append(actor)

    def shutdown(self):
        self.killed.append("Ray")


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.setattr(ray_backend, "_PAUSE", 0.0)

    def make(ray):
        monkeypatch.setattr(ray_backend, "ray", ray)
        monkeypatch.setattr(ray_backend.raybackend, "ray", ray)
        made = object.__new__(ray_backend.RayBackend)
        made.pool, made.app_fn = Pool(), None
        return made

    return make


identify_process(1)  # or Flower makes no Message
MESSAGE = Message(RecordDict(), 1, "train")
REPLY = Message(RecordDict(), reply_to=MESSAGE)
CONTEXT = Context(1, 1, {"partition-id": 0}, RecordDict(), {})


def test_an_actor_that_is_lost_is_back_before_it_gets_another_message(backend):
    ray = Ray(future=[RayActorError()], ready=[ActorUnavailableError("not yet", b"0" * 16)] * 2)
    made = backend(ray)
    ray.answers["ready"].append(lambda: not made.pool.back.is_set() or pytest.fail("given away too early"))
    with pytest.raises(RayActorError):
        made.process_message(MESSAGE, CONTEXT)
    assert ray.asked == ["future", "ready", "ready", "ready"] and made.pool.back.is_set()


def test_a_reply_and_any_other_fault_free_the_actor_at_once(backend):
    made = backend(Ray(future=[(0, REPLY, CONTEXT)]))
    assert made.process_message(MESSAGE, CONTEXT) == (REPLY, CONTEXT) and made.pool.back.is_set()
    made = backend(Ray(future=[ZeroDivisionError()]))
    with pytest.raises(ZeroDivisionError):
        made.process_message(MESSAGE, CONTEXT)
    assert made.pool.back.is_set()


def test_at_the_end_actors_at_work_are_ended_before_ray_so_that_no_thread_waits_for_ever(backend):
    killed = threading.Event()

    def lost():
        assert killed.wait(10)
        raise RayActorError

    ray = Ray(future=[lost], ready=[])
    made = backend(ray)
    ray.kill = lambda actor: (ray.killed.append(actor), killed.set())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(made.process_message, MESSAGE, CONTEXT)
        assert ray.is_asked.wait(10)
        made.terminate()
        assert isinstance(waiting.exception(10), RayActorError)
    assert ray.killed == [made.pool.actor, "Ray"] and ray.asked == ["future"]


def test_flower_uses_it_for_as_long_as_it_is_asked_to():
    own = ray_backend.raybackend.RayBackend
    with ray_backend.used():
        assert ray_backend.raybackend.RayBackend is ray_backend.RayBackend
    assert ray_backend.raybackend.RayBackend is own
