"""The flags of each verb in groups, as tyro takes them: dataclasses made from the verb's configuration."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import docstring_parser
import tyro

from pruneport.bench.options import (
    SWITCHES,
    BenchOptions,
    ExecutorOptions,
    LatencyOptions,
    PlaceOptions,
    RuntimeOptions,
)
from pruneport.bench.transfer.options import StudyOptions
from pruneport.commands import configs
from pruneport.commands.arguments.flag_names import flag_of, with_flags
from pruneport.commands.arguments.flag_values import expected, kind_of, metavar, reader, takes
from pruneport.commands.arguments.slips import Flag
from pruneport.compress.options import (
    CalibrationImages,
    CalibrationOptions,
    ChoiceOptions,
    LatencyTarget,
    RecoveryOptions,
    TargetOptions,
    TrainOptions,
)
from pruneport.export.options import ExportOptions, ParityOptions
from pruneport.models.options import ImageOptions, PreparationOptions, SourceOptions

__all__ = ["grouped", "wanted", "with_defaults"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Display:
    """How the result is printed."""

    json: bool = False
    """Print the result as JSON on standard output, and nothing else."""


_TITLES = (
    "network",
    "grid",
    "target",
    "choice",
    "sensitivity",
    "calibration and recovery",
    "image preparation",
    "training",
    "checking",
    "timing",
    "GPU",
    "machines",
    "advice",
    "output",
)
# The class that declares an option gives its group, "output" where it is not here; some may stand in others.
_GROUPS: dict[type[Any], tuple[str, dict[str, str]]] = {
    SourceOptions: ("network", {}),
    configs.StartOptions: ("network", {}),
    configs.BundleOptions: ("network", {}),
    TargetOptions: ("target", {}),
    LatencyTarget: ("target", {}),
    ChoiceOptions: ("choice", {}),
    CalibrationImages: ("calibration and recovery", {}),
    CalibrationOptions: ("calibration and recovery", {}),
    RecoveryOptions: ("calibration and recovery", {}),
    PreparationOptions: ("image preparation", {}),
    TrainOptions: ("training", {"GPU": "precision accelerator devices"}),
    ImageOptions: ("checking", {}),
    ExportOptions: ("output", {}),
    ParityOptions: ("checking", {}),
    RuntimeOptions: ("timing", {"GPU": " ".join(("provider", "device", *SWITCHES))}),
    PlaceOptions: ("timing", {}),
    LatencyOptions: ("timing", {}),
    BenchOptions: ("timing", {}),
    ExecutorOptions: ("machines", {}),
    StudyOptions: (
        "training",
        {
            "grid": "networks tasks kept budgets seeds scopes recipes input_shape",
            "choice": "round_to",
            "calibration and recovery": "calibration calibration_images",
            "machines": "jobs",
        },
    ),
    configs.InspectConfig: ("output", {"choice": "scope round_to keep", "sensitivity": "sensitivity plot"}),
    configs.CompressConfig: ("output", {}),
    configs.ShipConfig: ("output", {"target": "max_drop"}),
    configs.SweepConfig: (
        "output",
        {"target": "flops params ratio latency max_drop min_speedup", "calibration and recovery": "memory"},
    ),
    configs.LatencyConfig: (
        "output",
        {"choice": "scope prune_representation attention max_pruning_ratio round_to keep"},
    ),
    configs.FinetuneConfig: ("output", {}),
    configs.PushConfig: ("output", {"network": "folder"}),
    configs.TransferConfig: ("output", {"advice": "advise budget task network"}),
    _Display: ("output", {}),
}


def grouped(verb: str, config: type[Any], example: str) -> type[Any]:
    """A dataclass of dataclasses, one for each group of flags, in the order that help shows them."""
    groups: dict[str, list[Any]] = {title: [] for title in _TITLES}
    for owner, field, hint in _options(config):
        flag = _flag(verb, field, hint, _helps(owner)[field.name])
        default = () if field.default is dataclasses.MISSING else (dataclasses.field(default=field.default),)
        groups[_title(owner, field.name)].append((field.name, flag, *default))
    fields: list[Any] = []
    for title, flags in groups.items():
        if flags:
            group = dataclasses.make_dataclass("group", flags, kw_only=True, namespace={"__doc__": ""})
            fields.append((f"group_{len(fields)}", Annotated[group, tyro.conf.arg(name=title)]))
    text = f"{with_flags(inspect.cleandoc(config.__doc__ or ''))}\n\nExample: {example}"
    return dataclasses.make_dataclass(verb, fields, kw_only=True, namespace={"__doc__": text})


def with_defaults(groups: type[Any], values: Mapping[str, Any]) -> Any:
    """The groups of a verb that needs no flag, with these values in place of the options' own defaults."""
    made = {}
    for name, hint in typing.get_type_hints(groups).items():
        mine = {field.name: values[field.name] for field in dataclasses.fields(hint) if field.name in values}
        made[name] = hint(**mine)
    return groups(**made)


def wanted(config: type[Any]) -> tuple[dict[str, Flag], tuple[str, ...], tuple[str, ...]]:
    """What each flag of a verb takes, what stands for the values without a flag, and what must be given."""
    flags: dict[str, Flag] = {}
    positional: list[str] = []
    required: list[str] = []
    for _, field, hint in _options(config):
        marks = getattr(hint, "__metadata__", ())
        name = flag_of(field.name, off=field.default is True)
        if tyro.conf.Positional in marks:
            name = metavar(field.name, kind_of(hint)) or "VALUE"
            positional.append(name)
        else:
            flags[name] = takes(field.name, hint, one_each=tyro.conf.UseAppendAction in marks)
        if field.default is dataclasses.MISSING:
            required.append(name)
    return flags, tuple(positional), tuple(required)


def _options(config: type[Any]) -> Iterator[tuple[type[Any], dataclasses.Field[Any], Any]]:
    """Every option of a verb: the class that declares it, its field and its type."""
    for options in (config, _Display):
        hints = typing.get_type_hints(options, include_extras=True)
        for field in dataclasses.fields(options):
            owner = next(cls for cls in options.__mro__ if field.name in inspect.get_annotations(cls))
            yield owner, field, hints[field.name]


def _title(owner: type[Any], name: str) -> str:
    usual, others = _GROUPS.get(owner, ("output", {}))
    return next((title for title, names in others.items() if name in names.split()), usual)


def _helps(owner: type[Any]) -> dict[str, str]:
    """What stands below each field in the class that declares it, in one line, with flags for options."""
    found = docstring_parser.parse_from_object(owner).params
    return {entry.arg_name: with_flags(" ".join((entry.description or "").split())) for entry in found}


def _flag(verb: str, field: dataclasses.Field[Any], hint: Any, text: str) -> Any:
    """The field's type as tyro takes it: with its help, a name for its value, and our own errors."""
    kind = kind_of(hint)
    shown: dict[str, Any] = {"help_behavior_hint": ""} if field.default is None or kind is bool else {}
    taken = Annotated[hint, tyro.conf.arg(help=text, metavar=metavar(field.name, kind), **shown)]
    if expected(kind) is None:
        return taken
    flag = flag_of(field.name)
    return Annotated[taken, reader(kind, flag, f"{flag}: {text} See pruneport {verb} --help.")]
