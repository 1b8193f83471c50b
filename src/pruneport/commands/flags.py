"""The flags of each verb, made from its configuration: grouped, explained, and read with errors of our own."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import docstring_parser
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from pruneport.bench.options import BenchOptions
from pruneport.bench.transfer.options import StudyOptions
from pruneport.commands import configs
from pruneport.commands.flag_names import flag_of, with_flags
from pruneport.commands.slips import Flag, check_words
from pruneport.compress.options import CalibrationOptions, PruneOptions, RecoveryOptions, TrainOptions
from pruneport.errors import InputError
from pruneport.export.options import ExportOptions, ParityOptions
from pruneport.models.options import ImageOptions, PreparationOptions, SourceOptions

__all__ = ["EXAMPLES", "VERBS", "parse", "root_help"]

VERBS: dict[str, type[Any]] = {
    "ship": configs.ShipConfig,
    "inspect": configs.InspectConfig,
    "compress": configs.CompressConfig,
    "export": configs.ExportConfig,
    "verify": configs.VerifyConfig,
    "bench": configs.BenchConfig,
    "finetune": configs.FinetuneConfig,
    "transfer": configs.TransferConfig,
}
EXAMPLES = {
    "ship": "pruneport ship torchvision:resnet50 --checkpoint r50.pth --flops 0.5 --calibration photos/ --out half",
    "inspect": "pruneport inspect torchvision:resnet50",
    "compress": "pruneport compress torchvision:resnet50 --checkpoint r50.pth --flops 0.5 --out half",
    "export": "pruneport export half",
    "verify": "pruneport verify half --images test-photos/ --resize 256",
    "bench": "pruneport bench half --batches 1 8",
    "finetune": "pruneport finetune half --task birds/ --epochs 10 --out birds-half",
    "transfer": "pruneport transfer study.yaml --out study",
}


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
    configs.BundleOptions: ("network", {}),
    PruneOptions: ("choice", {"target": "flops params ratio"}),
    CalibrationOptions: ("calibration and recovery", {}),
    RecoveryOptions: ("calibration and recovery", {}),
    PreparationOptions: ("image preparation", {}),
    TrainOptions: ("training", {"GPU": "precision accelerator devices"}),
    ImageOptions: ("checking", {}),
    ExportOptions: ("output", {}),
    ParityOptions: ("checking", {}),
    BenchOptions: ("timing", {"GPU": "provider device tf32 nhwc cuda_graph"}),
    StudyOptions: (
        "training",
        {
            "grid": "networks tasks kept budgets seeds scopes recipes input_shape",
            "choice": "round_to",
            "calibration and recovery": "calibration calibration_images",
            "machines": "executor address jobs memory",
        },
    ),
    configs.InspectConfig: ("output", {"choice": "scope round_to keep", "sensitivity": "sensitivity plot"}),
    configs.CompressConfig: ("output", {}),
    configs.FinetuneConfig: ("output", {"network": "factory"}),
    configs.TransferConfig: ("output", {"advice": "advise budget task network"}),
    _Display: ("output", {}),
}
_NAMES = {  # what stands for the value; where it is not here, the type says it
    "source": "SOURCE",
    "folder": "BUNDLE",
    "study": "[STUDY.yaml]",
    "model_arg": "KEY=VALUE",
    "input_shape": "C H W",
    "keep": "PATTERN",
    "factory": "FILE.py:FUNCTION",
    "checkpoint": "FILE",
    "class_names": "FILE",
    "plot": "FILE.svg",
    "graph": "FILE.svg",
    "seeds": "INT ...",
}
_TYPES: dict[Any, str] = {
    str: "NAME",
    int: "INT",
    float: "NUMBER",
    Path: "FOLDER",
    tuple[str, ...]: "NAME ...",
    tuple[int, ...]: "INT ...",
    tuple[float, ...]: "NUMBER ...",
}
_EXPECTED: dict[Any, str] = {
    int: "one whole number",
    float: "one number",
    tuple[int, ...]: "whole numbers with spaces between them",
    tuple[float, ...]: "numbers with spaces between them",
    tuple[int, int, int]: "three whole numbers C H W with spaces between them, such as 3 224 224",
}
_MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)


def parse(verb: str, arguments: Sequence[str]) -> tuple[Any, bool]:
    """Read a verb's flags; where they ask for help, it is printed and ``SystemExit`` raised.

    Returns:
        The verb's configuration, and whether the result is printed as JSON.

    Raises:
        InputError: There is no such flag, one is missing, or a value is not of the kind that its flag takes.
    """
    check_words(verb, arguments, *_wanted(verb), EXAMPLES[verb])
    given = tyro.cli(_grouped(verb), prog=f"pruneport {verb}", args=arguments, config=_MARKERS)
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


@functools.cache
def _grouped(verb: str) -> type[Any]:
    """A dataclass of dataclasses, one for each group of flags, in the order that help shows them."""
    groups: dict[str, list[Any]] = {title: [] for title in _TITLES}
    for options in (VERBS[verb], _Display):
        hints = typing.get_type_hints(options, include_extras=True)
        for field in dataclasses.fields(options):
            owner = next(cls for cls in options.__mro__ if field.name in inspect.get_annotations(cls))
            flag = _flag(verb, field, hints[field.name], _helps(owner)[field.name])
            default = () if field.default is dataclasses.MISSING else (dataclasses.field(default=field.default),)
            groups[_title(owner, field.name)].append((field.name, flag, *default))
    fields: list[Any] = []
    for title, flags in groups.items():
        if flags:
            group = dataclasses.make_dataclass("group", flags, kw_only=True, namespace={"__doc__": ""})
            fields.append((f"group_{len(fields)}", Annotated[group, tyro.conf.arg(name=title)]))
    text = f"{with_flags(inspect.cleandoc(VERBS[verb].__doc__ or ''))}\n\nExample: {EXAMPLES[verb]}"
    return dataclasses.make_dataclass(verb, fields, kw_only=True, namespace={"__doc__": text})


@functools.cache
def _wanted(verb: str) -> tuple[dict[str, Flag], str, tuple[str, ...]]:
    """What each flag of a verb takes, what stands for the one value without a flag, and what must be given."""
    flags: dict[str, Flag] = {}
    positional, required = "", []
    for options in (VERBS[verb], _Display):
        hints = typing.get_type_hints(options, include_extras=True)
        for field in dataclasses.fields(options):
            marks = getattr(hints[field.name], "__metadata__", ())
            name = flag_of(field.name, off=field.default is True)
            if tyro.conf.Positional in marks:
                positional = name = _NAMES[field.name]
            else:
                flags[name] = _takes(field.name, hints[field.name], one_each=tyro.conf.UseAppendAction in marks)
            if field.default is dataclasses.MISSING:
                required.append(name)
    return flags, positional, tuple(required)


def _takes(name: str, hint: Any, one_each: bool) -> Flag:
    """What a flag takes; ``one_each`` says that it is given several times in place of several values."""
    kind = _kind(hint)
    if kind is bool:
        return Flag(takes="")
    inner = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
    choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
    takes = _NAMES.get(name) or _TYPES.get(kind) or "NAME"
    return Flag(takes=takes, several=inner is not kind and not one_each, choices=choices)


def _title(owner: type[Any], name: str) -> str:
    usual, others = _GROUPS.get(owner, ("output", {}))
    return next((title for title, names in others.items() if name in names.split()), usual)


def _helps(owner: type[Any]) -> dict[str, str]:
    """What stands below each field in the class that declares it, in one line, with flags for options."""
    found = docstring_parser.parse_from_object(owner).params
    return {entry.arg_name: with_flags(" ".join((entry.description or "").split())) for entry in found}


def _flag(verb: str, field: dataclasses.Field[Any], hint: Any, text: str) -> Any:
    """The field's type as tyro takes it: with its help, a name for its value, and our own errors."""
    kind = _kind(hint)
    shown: dict[str, Any] = {"help_behavior_hint": ""} if field.default is None or kind is bool else {}
    taken = Annotated[hint, tyro.conf.arg(help=text, metavar=_NAMES.get(field.name) or _TYPES.get(kind), **shown)]
    if kind not in _EXPECTED:
        return taken
    flag = flag_of(field.name)
    reader = _reader(kind, flag, f"{flag}: {text} See pruneport {verb} --help.")
    return Annotated[taken, reader]


def _kind(hint: Any) -> Any:
    """The type without None and without what is said beside it."""
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    given = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return given[0] if type(None) in typing.get_args(hint) and len(given) == 1 else hint


def _reader(kind: Any, flag: str, text: str) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads such a value, which says what was expected where it fails."""
    own = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, set()))
    assert isinstance(own, PrimitiveConstructorSpec)
    fixed = own.nargs if isinstance(own.nargs, int) and own.nargs > 1 else None

    def readable(words: list[str]) -> bool:
        try:
            own.instance_from_str(words)
        except ValueError:
            return False
        return own.nargs in ("*", len(words)) if fixed is None else fixed == len(words)

    def read(words: list[str]) -> Any:
        if readable(words):
            return own.instance_from_str(words)
        meant = next((f" Did you mean {flag} {' '.join(other)}?" for other in _likely(words) if readable(other)), "")
        raise InputError(f"{flag} is {' '.join(words)!r}; expected {_EXPECTED[kind]}.{meant} {text}")

    return dataclasses.replace(
        own,
        nargs="*" if fixed else own.nargs,  # where tyro counts, it does not say what was expected
        instance_from_str=read,
        is_instance=lambda value: value is None or own.is_instance(value),
        str_from_instance=lambda value: [] if value is None else own.str_from_instance(value),
    )


def _likely(words: list[str]) -> Iterator[list[str]]:
    """What may have been meant: numbers with something else than spaces between them, per cent, a decimal comma."""
    text = " ".join(words)
    yield re.split(r"[,;x×\s]+", text)
    if re.fullmatch(r"[\d.]+\s*%", text):
        yield [f"{float(text.rstrip('% ')) / 100:g}"]
    yield [text.replace(",", ".")]


def _summary(config: type[Any]) -> str:
    return with_flags((config.__doc__ or "").partition("\n\n")[0])
