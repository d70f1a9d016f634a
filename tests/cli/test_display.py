import io

from rich.console import Console

from fedsim.audit.auditor import Running
from fedsim.cli.display import Display
from fedsim.exchange import View
from fedsim.progress import Step

GRADVIT = Running(View.of_update(1, 0), "gradvit", Step(120, 4800, 0.0123456, 3700.4))
OTHER = Running(View.of_update(2, 3), "[bold]odd", Step(1, 800, None, None))


def drawn(*running: Running) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    display = Display(console, rounds=2)
    heard = display.progress.on_running
    assert heard is not None
    heard((GRADVIT,))
    heard(running)
    console.print(display)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_attacks_under_way_are_drawn_with_iteration_loss_and_time_left() -> None:
    lines = drawn(GRADVIT, OTHER).splitlines()
    (first,) = (line for line in lines if line.startswith("gradvit"))
    for text in ("round 1 client 0", "120/4800", "loss 0.01235", "ETA 1:01:40"):
        assert text in first
    (second,) = (line for line in lines if line.startswith("[bold]odd"))
    assert "round 2 client 3" in second and "1/800" in second
    assert "loss" not in second and "ETA" not in second


def test_an_attack_that_has_ended_is_drawn_no_more() -> None:
    assert "gradvit" not in drawn()


def test_any_step_can_be_drawn() -> None:
    for step in (
        Step(0, 0, float("nan"), None),
        Step(9, 3, float("inf"), 0.0),
        Step(1, 10**18, -1.0, 1e30),
        Step(-2, -1, 0.0, 0.0),
    ):
        assert f"{step.done}/{step.total}" in drawn(GRADVIT._replace(step=step))


def test_a_plain_stream_gets_one_line_a_minute_at_most() -> None:
    now = [0.0]
    console = Console(file=io.StringIO(), width=40)
    heard = Display(console, rounds=2, clock=lambda: now[0]).progress.on_running
    assert heard is not None
    for second in range(0, 300, 7):
        now[0] = float(second)
        heard((GRADVIT, OTHER))
    now[0] = 400.0
    heard(())
    assert isinstance(console.file, io.StringIO)
    line = "round 1 client 0 gradvit: 120/4800, loss 0.01235, ETA 1:01:40; round 2 client 3 [bold]odd: 1/800\n"
    assert console.file.getvalue() == 4 * line


def test_names_that_a_terminal_would_obey_are_drawn_escaped() -> None:
    odd = Running(View.of_update(1, 0), "\x1b[2Jred\u202e[/x]:smile:", Step(1, 8, None, None))
    assert "\\x1b[2Jred\\u202e[/x]:smile:" in drawn(odd)
    assert "\x1b[2J" not in drawn(odd)
