"""What a scenario can name: the rows of `fedsim list`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple

from fedsim import plugins
from fedsim.attack import Attack
from fedsim.data.source import Source
from fedsim.defense import Defense
from fedsim.errors import PluginError
from fedsim.plugins import Kind


class Row(NamedTuple):
    """One name, one line on it, and its parameters with their defaults."""

    name: str
    summary: str
    parameters: str


def sections() -> dict[str, Callable[[], list[Row]]]:
    """Return the kinds in the order of the scenario; each is computed when asked for."""
    return {
        "data": lambda: _plugins("data", Source),
        "models": _models,
        "strategies": _strategies,
        "defenses": lambda: _plugins("defenses", Defense),
        "attacks": lambda: _plugins("attacks", Attack),
        "metrics": _metrics,
    }


def _plugins(kind: Kind, contract: type) -> list[Row]:
    rows = []
    for name, info in plugins.installed(kind).items():
        try:
            cls = plugins.load(info, contract, name)
        except PluginError as error:
            rows.append(Row(name, f"broken: {error}", ""))
            continue
        module = inspect.getmodule(cls)
        # A plug-in module opens with one line that says what it is.
        summary = _first_line(inspect.getdoc(module) if module else None)
        listed = ", ".join(p.name if p.required else f"{p.name}={p.default!r}" for p in plugins.parameters(cls))
        needs: frozenset[str] = getattr(cls, "needs", frozenset())
        rows.append(Row(name, summary + (f" Needs {', '.join(sorted(needs))}." if needs else ""), listed or "none"))
    return rows


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n\n")[0].replace("\n", " ")


def _models() -> list[Row]:
    import timm

    from fedsim.models import PRESETS

    rows = [
        Row(n, preset.summary, ", ".join(f"{k}={v}" for k, v in preset.kwargs.items())) for n, preset in PRESETS.items()
    ]
    names = timm.list_models(["vit_*", "deit_*"])
    any_vit = f"{len(names)} names, e.g. vit_small_patch16_224"
    return [*rows, Row("any timm ViT", any_vit, "the model's kwargs; first_block=standard, or april as in its paper")]


def _strategies() -> list[Row]:
    from fedsim.federation.strategy import STRATEGIES, strategy_parameters

    rows = []
    for name, cls in STRATEGIES.items():
        parameters = strategy_parameters(name).values()
        listed = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
        rows.append(Row(name, _first_line(inspect.getdoc(cls)), listed or "none"))
    return rows


def _metrics() -> list[Row]:
    from fedsim.metrics.scoring import METRICS

    return [Row(n, f"{m.summary} ({m.worse} means more leakage)", "none") for n, m in METRICS.items()]
