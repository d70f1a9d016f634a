"""The YAML of a run as data: its parts, how it is read and changed, which clients and rounds it names."""

from fedsim.scenario.audit import EXECUTION, METRICS, AuditPart, Variant
from fedsim.scenario.data import DataPart, PartitionPart
from fedsim.scenario.identity import identifying
from fedsim.scenario.model import CentralPart, LoRAPart, ModelPart, NormalizationPart, PrecodePart, StartPart
from fedsim.scenario.overrides import Assignment
from fedsim.scenario.parts import (
    AttackPart,
    DefensePart,
    EvaluatorPart,
    FederationPart,
    Grant,
    Scenario,
    ThreatPart,
)
from fedsim.scenario.reading import load, load_phase, parse, parse_attack, stated_phases
from fedsim.scenario.selection import select_clients, select_rounds
from fedsim.scenario.training import Sampling, SchedulePart, TrainingPart

__all__ = [
    "EXECUTION",
    "METRICS",
    "Assignment",
    "AttackPart",
    "AuditPart",
    "CentralPart",
    "DataPart",
    "DefensePart",
    "EvaluatorPart",
    "FederationPart",
    "Grant",
    "LoRAPart",
    "ModelPart",
    "NormalizationPart",
    "PartitionPart",
    "PrecodePart",
    "Sampling",
    "Scenario",
    "SchedulePart",
    "StartPart",
    "ThreatPart",
    "TrainingPart",
    "Variant",
    "identifying",
    "load",
    "load_phase",
    "parse",
    "parse_attack",
    "select_clients",
    "select_rounds",
    "stated_phases",
]
