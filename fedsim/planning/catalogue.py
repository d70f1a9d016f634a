"""What a scenario can name: the rows and pages of `fedsim list`."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from fedsim import plugins, shipped
from fedsim.coercion import describe
from fedsim.errors import PluginError, ScenarioError, nearest
from fedsim.plugins import Kind, Parameter
from fedsim.presets import PRESETS
from fedsim.scenario import METRICS, ModelPart
from fedsim.validation import shown


@dataclass(frozen=True)
class Entry:
    """One thing that a scenario can name.

    Args:
        name: in YAML.
        summary: one line on it.
        parameters: in order.
        text: all of its documentation.
        facts: what else is known of it, as JSON can hold it.
    """

    name: str
    summary: str
    parameters: tuple[Parameter, ...] = ()
    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def listed(self) -> str:
        """The parameters with their defaults in one line, numbers to four digits."""
        return ", ".join(p.name if p.required else f"{p.name}={_short(p.default)}" for p in self.parameters) or "none"

    def as_data(self) -> dict[str, Any]:
        """Return the entry as JSON holds it; the documentation is left to the page."""
        parameters = [
            {"name": p.name, "type": p.type, "required": p.required, **({} if p.required else {"default": p.default})}
            for p in self.parameters
        ]
        return {"name": self.name, "summary": self.summary, "parameters": parameters, **self.facts}


def _short(default: Any) -> str:
    if isinstance(default, tuple):
        return f"[{', '.join(map(_short, default))}]"
    return min(f"{default:.4g}", repr(default), key=len) if isinstance(default, float) else repr(default)


class Section(NamedTuple):
    """All things of one kind.

    Args:
        names: returns their names.
        entry: name -> the entry; raises ScenarioError where there is none of this name, PluginError where it is broken.
    """

    names: Callable[[], Sequence[str]]
    entry: Callable[[str], Entry]

    def entries(self) -> list[Entry]:
        """Return all entries; one that is broken says so in its summary."""
        found = []
        for name in self.names():
            try:
                found.append(self.entry(name))
            except PluginError as error:
                found.append(Entry(name, f"broken: {error}"))
        return found


def sections() -> dict[str, Section]:
    """Return the kinds in the order of a scenario; nothing is imported before it is asked for."""
    return {
        "data": _section("data"),
        "models": Section(_model_names, _model),
        "strategies": Section(_strategy_names, _strategy),
        "defenses": _section("defenses"),
        "attacks": _section("attacks"),
        "evaluators": _section("evaluators"),
        "metrics": Section(_metric_names, _metric),
        "scenarios": Section(shipped.names, _scenario),
    }


def find(kind: str) -> Section:
    """Return the section of a kind.

    Raises:
        ScenarioError: there is no such kind.
    """
    known = sections()
    if kind not in known:
        raise ScenarioError("list", f"no kind {shown(kind)}.{nearest(kind, known)} Known: {', '.join(known)}.")
    return known[kind]


def _section(kind: Kind) -> Section:
    return Section(lambda: list(plugins.installed(kind)), lambda name: _plugin(kind, name))


def _contract(kind: Kind) -> type:
    from fedsim.attack import Attack
    from fedsim.defense import Defense
    from fedsim.evaluator import Evaluator
    from fedsim.source import Source

    return {"attacks": Attack, "defenses": Defense, "evaluators": Evaluator, "data": Source}[kind]


def _plugin(kind: Kind, name: str) -> Entry:
    info = plugins.find(kind, name, f"list {kind}")
    cls = plugins.load(info, _contract(kind), name)
    module = inspect.getmodule(cls)
    opening = (inspect.getdoc(module) if module else None) or ""
    # Parameters may be those of a base, which then documents them.
    classes = [base for base in cls.__mro__ if base is cls or "Args:" in (vars(base).get("__doc__") or "")]
    own = [inspect.getdoc(base) or "" for base in classes]
    facts: dict[str, Any] = {"citation": getattr(cls, "citation", None)}
    if kind == "attacks":
        facts |= _facts_of_attack(cls)
    facts |= {"target": info.target, "distribution": info.distribution, "version": info.version}
    text = "\n\n".join(part for part in (opening, *own) if part)
    # A plug-in module opens with one line that says what it is.
    return Entry(name, _first_line(opening), _parameters(cls), text, facts)


def _facts_of_attack(cls: Any) -> dict[str, Any]:
    applies = cls.applies
    return {
        "needs": sorted(cls.needs),
        "recovers": sorted(cls.recovers),
        "scope": cls.scope,
        "applies": None if applies is None else dataclasses.asdict(applies),
        "is_cheap": cls.is_cheap,
        "is_control": cls.is_control,
    }


def _parameters(cls: type) -> tuple[Parameter, ...]:
    """Return the parameters of a plug-in with their types in words, or as written where these do not resolve."""
    listed = plugins.parameters(cls)
    try:
        hints = typing.get_type_hints(cls)
    except NameError:
        return tuple(listed)
    return tuple(dataclasses.replace(one, type=describe(hints[one.name])) for one in listed)


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n\n")[0].replace("\n", " ")


_ANY_MODEL = "any model of timm"
_MODEL_KEYS = {
    "kwargs": "a mapping",
    "first_block": "one of 'standard', 'april'",
    "pretrained": "true, false, the path of a weights file or of a run, or a mapping (file, patches; central)",
    "normalization": "mean and std, a value a channel each",
}


def _model_names() -> list[str]:
    return [*PRESETS, _ANY_MODEL]


def _model(name: str) -> Entry:
    keys = tuple(
        Parameter(key, _MODEL_KEYS[key], field.get_default(call_default_factory=True))
        for key, field in ModelPart.model_fields.items()
        if key in _MODEL_KEYS
    )
    if name in PRESETS:
        preset = PRESETS[name]
        of_timm = "" if ":" in preset.target else " of timm"
        text = f"{preset.target}{of_timm} with these kwargs, which model.kwargs changes and adds to:"
        given = "\n".join(f"    {key}: {value}" for key, value in preset.kwargs.items())
        facts = {"target": preset.target, "kwargs": dict(preset.kwargs)}
        return Entry(name, preset.summary, keys, f"{text}\n\n{given}", facts)
    return _timm_model(name, keys)


def _timm_model(name: str, keys: tuple[Parameter, ...]) -> Entry:
    import timm

    from fedsim import models

    known = timm.list_models()
    text = f"Kwargs of a Vision Transformer: {', '.join(models.KWARGS)}."
    if name == _ANY_MODEL:
        vits = len(timm.list_models(["vit_*", "deit_*"]))
        summary = f"{len(known)} names, {vits} of them Vision Transformers; e.g. vit_small_patch16_224, resnet18"
        return Entry(name, summary, keys, text)
    if not timm.is_model(name):
        raise ScenarioError("list models", f"no model {shown(name)}.{nearest(name, [*PRESETS, *known])}")
    config = timm.get_pretrained_cfg(name)
    weights = config.hf_hub_id if config is not None and config.has_weights else None
    text = text if models.is_vit(name) else ""
    summary = f"a {'Vision Transformer' if text else 'model'} of timm" + (
        f", weights {weights} on the Hugging Face hub" if weights else ""
    )
    text = f"{inspect.getdoc(timm.model_entrypoint(name)) or ''}\n\n{text}".strip()
    return Entry(name, summary, keys, text, {"timm_name": name, "weights": weights})


def _strategy_names() -> list[str]:
    from fedsim.strategies.listing import STRATEGIES

    return list(STRATEGIES)


def _strategy(name: str) -> Entry:
    from fedsim.strategies.listing import STRATEGIES, strategy_parameters

    if name not in STRATEGIES:
        raise ScenarioError(
            "list strategies", f"no strategy {shown(name)}.{nearest(name, STRATEGIES)} Known: {', '.join(STRATEGIES)}."
        )
    found = strategy_parameters(name).values()
    parameters = tuple(
        Parameter(p.name, _annotated(p.annotation), None if p.default is p.empty else p.default, p.default is p.empty)
        for p in found
    )
    text = inspect.getdoc(STRATEGIES[name]) or ""
    return Entry(name, _first_line(text), parameters, text)


def _annotated(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else describe(annotation)


def _metric_names() -> list[str]:
    return list(METRICS)


def _metric(name: str) -> Entry:
    from fedsim.metrics import image
    from fedsim.metrics.table import METRICS

    if name not in METRICS:
        raise ScenarioError(
            "list metrics", f"no metric {shown(name)}.{nearest(name, METRICS)} Known: {', '.join(METRICS)}."
        )
    metric = METRICS[name]
    facts = {"worse": metric.worse, "scores": metric.kind.name}
    summary = f"{metric.summary} ({metric.worse} means more leakage)"
    return Entry(name, summary, text=inspect.getdoc(getattr(image, name, metric.function)) or "", facts=facts)


def _scenario(name: str) -> Entry:
    path = shipped.path(name)
    return Entry(name, shipped.summary(name), text=path.read_text(encoding="utf-8"), facts={"path": str(path)})
