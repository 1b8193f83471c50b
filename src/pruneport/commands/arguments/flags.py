"""The flags of each verb, made from its configuration: grouped, explained, and read with errors of our own."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn

import tyro

from pruneport.commands import configs
from pruneport.commands.arguments.flag_groups import grouped, wanted, with_defaults
from pruneport.commands.arguments.flag_names import with_flags
from pruneport.commands.arguments.slips import check_words
from pruneport.errors import InputError

__all__ = ["EXAMPLES", "VERBS", "parse", "root_help"]

VERBS: dict[str, type[Any]] = {
    "ship": configs.ShipConfig,
    "inspect": configs.InspectConfig,
    "compress": configs.CompressConfig,
    "export": configs.ExportConfig,
    "verify": configs.VerifyConfig,
    "bench": configs.BenchConfig,
    "sweep": configs.SweepConfig,
    "latency": configs.LatencyConfig,
    "finetune": configs.FinetuneConfig,
    "transfer": configs.TransferConfig,
    "push": configs.PushConfig,
}
EXAMPLES = {
    "ship": "pruneport ship torchvision:resnet50 --checkpoint r50.pth --flops 0.5 --calibration photos/ --out half",
    "inspect": "pruneport inspect torchvision:resnet50",
    "compress": "pruneport compress torchvision:resnet50 --checkpoint r50.pth --flops 0.5 --out half",
    "export": "pruneport export half",
    "verify": "pruneport verify half --images test-photos/ --resize 256",
    "bench": "pruneport bench half --batches 1 8",
    "sweep": "pruneport sweep torchvision:resnet50 --checkpoint r50.pth --flops 0.9 0.75 0.6 --images photos --out r50",
    "latency": "pruneport latency torchvision:resnet50 --threads 4 --out table.json",
    "finetune": "pruneport finetune half --task birds/ --epochs 10 --out birds-half",
    "transfer": "pruneport transfer study.yaml --out study",
    "push": "pruneport push half me/resnet50-half",
}
_MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)


def parse(verb: str, arguments: Sequence[str], defaults: Mapping[str, Any] | None = None) -> tuple[Any, bool]:
    """Read a verb's flags; where they ask for help, it is printed and ``SystemExit`` raised.

    Args:
        verb: Which.
        arguments: What was typed behind it.
        defaults: Values in place of the options' own defaults, for a verb that needs no flag.

    Returns:
        The verb's configuration, and whether the result is printed as JSON.

    Raises:
        InputError: There is no such flag, one is missing, or a value is not of the kind that its flag takes.
    """
    check_words(verb, arguments, *wanted(VERBS[verb]), EXAMPLES[verb])
    groups = grouped(verb, VERBS[verb], EXAMPLES[verb])
    default = {} if defaults is None else {"default": with_defaults(groups, defaults)}
    given = tyro.cli(groups, prog=f"pruneport {verb}", args=arguments, config=_MARKERS, **default)
    values = {name: value for group in vars(given).values() for name, value in vars(group).items()}
    json = values.pop("json")
    return VERBS[verb](**values), json


def root_help(arguments: Sequence[str]) -> NoReturn:
    """Print the help that lists the verbs, and exit.

    Raises:
        InputError: The first argument asks for no help.
    """
    word = arguments[0]
    if word not in ("-h", "--help"):
        near = difflib.get_close_matches(word.lower(), VERBS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        if ":" in word:
            meant = f" A verb comes before the source: pruneport inspect {word}, say."
        wrong = "flags come after a verb" if word.startswith("-") else f"there is no verb {word!r}"
        raise InputError(f"{wrong}; expected one of {', '.join(VERBS)}.{meant} See pruneport --help.")
    verbs = [
        Annotated[
            dataclasses.make_dataclass(verb, [], namespace={"__doc__": _summary(config)}),
            tyro.conf.subcommand(verb, prefix_name=False),
        ]
        for verb, config in VERBS.items()
    ]
    version = Annotated[bool, tyro.conf.arg(help="print the version and exit", help_behavior_hint="")]
    fields: list[Any] = [
        ("version", version, dataclasses.field(default=False)),
        ("verb", Annotated[typing.Union[*verbs], tyro.conf.arg(name="")]),
    ]
    tyro.cli(
        dataclasses.make_dataclass("pruneport", fields, kw_only=True),
        prog="pruneport",
        description=(
            "From a trained checkpoint to a verified, benchmarked ONNX artifact.\n\n"
            f"Example: {EXAMPLES['ship']}\n\nThe flags of a verb: pruneport ship --help"
        ),
        args=arguments,
        config=_MARKERS,
    )
    raise SystemExit(2)


def _summary(config: type[Any]) -> str:
    return with_flags((config.__doc__ or "").partition("\n\n")[0])
