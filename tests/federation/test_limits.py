import contextlib
import signal
import sys
import threading

import pytest

from fedsim.federation.limits import ClientEndedError, ClientTimeoutError, contained


def wait():
    threading.Event().wait()


def spin():
    while True:
        pass


def swallow():
    """Ignore the first interruption, whatever it is."""
    try:
        wait()
    except BaseException:  # noqa: BLE001
        return "late"


def swallow_exceptions():
    while True:
        with contextlib.suppress(Exception):
            wait()


@pytest.mark.parametrize("work", [wait, spin, swallow, swallow_exceptions])
def test_work_that_takes_too_long_is_ended(work):
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(ClientTimeoutError, match=r"took longer than federation\.client_timeout, 0\.05 s"):
        contained(work, 0.05)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.getsignal(signal.SIGALRM) == before


def test_work_in_time_gives_its_result_and_leaves_no_alarm():
    assert contained(lambda: 7, 60.0) == 7
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def odd():
    raise BaseException("odd")


@pytest.mark.parametrize(("work", "text"), [(lambda: sys.exit(0), "SystemExit: 0"), (odd, "BaseException: odd")])
def test_work_that_would_end_the_process_fails(work, text):
    with pytest.raises(ClientEndedError, match=text):
        contained(work, 60.0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_other_exceptions_and_an_interruption_from_the_keyboard_pass(error):
    def fail():
        raise error

    with pytest.raises(error):
        contained(fail, 60.0)


def test_beside_the_main_thread_work_runs_without_an_alarm():
    found = []
    thread = threading.Thread(target=lambda: found.append(contained(lambda: 7, 0.01)))
    thread.start()
    thread.join()
    assert found == [7]
