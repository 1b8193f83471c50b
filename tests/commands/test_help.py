"""What a newcomer meets: help in groups, an example for each verb, and errors that say what was expected."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruneport.commands.arguments.flags import EXAMPLES, VERBS, parse
from pruneport.errors import CheckpointError
from pruneport.models.checkpoints.checkpoint import load_weights

_ORDER = ["target", "choice", "calibration and recovery", "checking", "timing", "GPU", "output"]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_grouped_and_has_an_example(verb: str, run: Any) -> None:
    done = run(verb, "--help")
    assert done.code == 0
    assert f"Example: {EXAMPLES[verb]}" in done.out
    for literal in ("[bold]", "{None}", "STR", "FLOAT", "(default: None)", "(default: False)", "(default: True)"):
        assert literal not in done.out
    for field in fields(VERBS[verb]):
        flag = f"--{'no-' if field.default is True else ''}{field.name.replace('_', '-')}"
        assert re.search(rf"│ {flag}\b", done.out) or field.name in ("source", "folder", "study", "repository")


def test_ships_groups_stand_in_the_order_of_the_work(run: Any) -> None:
    titles = re.findall(r"╭─ ([\w ]+?) options ─", run("ship", "--help").out)
    assert titles == ["network", *_ORDER[:3], "image preparation", *_ORDER[3:]]
    target = run("ship", "--help").out.partition("─ target options")[2].partition("╰")[0]
    targets = ["--flops", "--params", "--ratio", "--latency", "--latency-ms", "--max-drop"]
    assert re.findall(r"│ (--[\w-]+)", target) == targets


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_commands(verb: str) -> None:
    words = shlex.split(EXAMPLES[verb])
    assert words[:2] == ["pruneport", verb]
    config, as_json = parse(verb, words[2:])
    assert isinstance(config, VERBS[verb])
    assert as_json is False


def test_flags_become_the_configuration_a_caller_would_build() -> None:
    words = ["net.py:build", "--out", "o", "--flops", "5e-1", "--input-shape", "3", "8", "8", "--keep", "a", "--json"]
    config, as_json = parse("ship", [*words, "--batches", "1", "16", "--keep", "b*", "--mean", "0.5", "--tf32"])
    assert as_json is True
    expected = {"source": "net.py:build", "out": Path("o"), "flops": 0.5, "input_shape": (3, 8, 8)}
    assert config == VERBS["ship"](**expected, keep=("a", "b*"), batches=(1, 16), mean=(0.5,), tf32=True)


def test_the_list_of_verbs_names_the_version(run: Any) -> None:
    out = run("--help").out
    assert re.search(r"--version\s+print the version and exit", out)
    assert "(required)" in out
    for verb in VERBS:
        assert f"• {verb}" in out
    assert "What was verified and measured" not in out  # one line a verb
    assert run("--version", "ship").code == 0


_DIGITS = ("compress", "pruneport:digits_resnet", "--out", "out")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((*_DIGITS, "--flops", "0.5,0.7"), ("--flops is '0.5,0.7'; expected one number.", "in (0, 1)")),
        ((*_DIGITS, "--flops", "50%"), ("--flops is '50%'; expected one number.", "Did you mean --flops 0.5?")),
        ((*_DIGITS, "--flops", "0,5"), ("--flops is '0,5'; expected one number.", "Did you mean --flops 0.5?")),
        ((*_DIGITS, "--flops", "0.5", "0.7"), ("'0.7' is one value too many: --flops takes one NUMBER.",)),
        ((*_DIGITS, "--flops"), ("--flops has no value; expected NUMBER.", "See pruneport compress --help")),
        ((*_DIGITS, "--scope", "--json"), ("--scope has no value; expected one of filters, channels.",)),
        ((*_DIGITS, "--flop", "0.5"), ("there is no --flop.", "Did you mean --flops?")),
        ((*_DIGITS, "-flops", "0.5"), ("there is no -flops.", "Did you mean --flops?")),
        ((*_DIGITS, "--FLOPS", "0.5"), ("there is no --FLOPS.", "Did you mean --flops?")),
        ((*_DIGITS, "--calib", "x"), ("there is no --calib.", "Did you mean --calibration")),
        ((*_DIGITS, "--zzz"), ("there is no --zzz. See pruneport compress --help",)),
        ((*_DIGITS, "--criterion", "L1"), ("--criterion is 'L1'; expected one of auto, l1,", "Did you mean l1?")),
        ((*_DIGITS, "--criterion=taylr"), ("--criterion is 'taylr'", "Did you mean taylor?")),
        (("bench", "half", "--provider", "gpu"), ("expected one of cpu, cuda, tensorrt. See",)),
        (("transfer", "--scopes", "filters", "both"), ("--scopes is 'both'; expected one of filters, channels.",)),
        ((*_DIGITS, "--overwrite", "yes"), ("'yes' is one value too many: --overwrite takes none.",)),
        ((*_DIGITS, "--overwrite=yes"), ("--overwrite takes no value; leave out '=yes'.",)),
        (("compress", "a", "b"), ("'b' is one value too many: there is one SOURCE, 'a'.",)),
        (("compress",), ("pruneport compress lacks SOURCE and --out FOLDER.", f"Example: {EXAMPLES['compress']}")),
        (("bench",), ("pruneport bench lacks BUNDLE.", EXAMPLES["bench"])),
        (("torchvision:resnet18", "--flops", "0.5"), ("there is no verb", "pruneport inspect torchvision:resnet18")),
        (("export", "torchvision:resnet18"), ("names a network; expected the folder of a bundle", "compress torchv")),
        (("transfer",), ("there is no study", "pruneport transfer study.yaml")),
        (("--flops", "0.5"), ("flags come after a verb; expected one of ship, ",)),
        ((*_DIGITS, "--flops", "half"), ("--flops is 'half'; expected one number.", "See pruneport compress --help")),
        ((*_DIGITS, "--round-to", "8.0"), ("--round-to is '8.0'; expected one whole number.",)),
        (
            (*_DIGITS, "--input-shape", "224"),
            (
                "--input-shape is '224'; expected three whole numbers C H W with spaces between them",
                "such as 3 224 224.",
            ),
        ),
        (
            (*_DIGITS, "--input-shape", "3,224,224"),
            ("--input-shape is '3,224,224'; expected three", "Did you mean --input-shape 3 224 224?"),
        ),
        ((*_DIGITS, "--input-shape", "3x8x8"), ("Did you mean --input-shape 3 8 8?",)),
        (("bench", "half", "--batches", "1,8"), ("--batches is '1,8'; expected whole", "Did you mean --batches 1 8?")),
        ((*_DIGITS, "--mean", "0.5;0.5"), ("--mean is '0.5;0.5'; expected numbers", "Did you mean --mean 0.5 0.5?")),
        (("compres", "x"), ("there is no verb 'compres'", "Did you mean compress?")),
        (("inspect", "resnet18"), ("'resnet18' is not understood", "Did you mean torchvision:resnet18?")),
        (("inspect", "digits"), ("Did you mean pruneport:digits_resnet?",)),
        (("inspect", "ResNet-18"), ("torchvision:resnet18",)),
        (("inspect", "torchvision.resnet18"), ("Did you mean torchvision:resnet18?",)),
        (("inspect", "convnext_atto"), ("Did you mean timm:convnext_atto?",)),
        (("inspect", "digits_resnet"), ("Did you mean pruneport:digits_resnet?",)),
        (("inspect", "zzzz"), ("'zzzz' is not understood", "expected one of torchvision:NAME")),
        (("inspect", "resnet18.pth"), ("is a file of weights", "--checkpoint resnet18.pth")),
        (("inspect", "weights/r.safetensors"), ("--checkpoint weights/r.safetensors",)),
        (("inspect", "model.onnx"), ("is an ONNX file, which is what pruneport writes",)),
        (("inspect", "nets.py"), ("names no function; expected nets.py:FUNCTION",)),
        (("finetune", "resnet18", "--task", "t", "--out", "o"), ("no bundle at resnet18", "torchvision:resnet18?")),
        (("finetune", "r.pth", "--task", "t", "--out", "o"), ("no bundle at r.pth", "--checkpoint r.pth")),
    ],
)
def test_a_slip_is_answered_with_what_was_expected(
    arguments: tuple[str, ...], expected: tuple[str, ...], run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    for text in expected:
        assert text in done.err
    assert "error: " in done.err
    assert not re.search(r"\[/?bold|\{None\}|Traceback|│", done.err)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_network_lists_ten_keys_and_a_count() -> None:
    network = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(200)))
    state = {f"other.{index}": torch.zeros(1) for index in range(208)} | {"0.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError) as raised:
        load_weights(network, state, Path("wrong.pth"))
    lines = str(raised.value).splitlines()
    assert lines[1].startswith("  missing (199): 1.weight, 2.weight, ")
    assert lines[1].endswith("10.weight and 189 more")
    assert lines[2].startswith("  unexpected (208): other.0, ")
    assert lines[2].endswith("other.9 and 198 more")
    assert lines[3] == "  mis-shaped (1): 0.weight (network (1, 1), checkpoint (2, 2))"
    assert len(str(raised.value)) < 700


def test_inspect_has_a_line_for_each_group(run: Any) -> None:
    done = run("inspect", "pruneport:digits_resnet")
    assert done.code == 0
    table = done.out[: done.out.index("\n(1)")].splitlines()
    assert len(table) == 1 + 6
    assert max(map(len, done.out.splitlines())) <= 100
    rows = {line.split()[0]: line.split() for line in table[1:]}
    assert rows["stem.0"][-2:] == ["no", "(1)"]
    assert "(1) a residual stream, outside --scope filters" in done.out
    assert rows["blocks.0.conv1"][-1] == "yes"
    assert "blocks.0.bn1" not in done.out


def test_inspect_names_every_member_where_asked(run: Any) -> None:
    done = run("inspect", "pruneport:digits_resnet", "--members", "--scope", "channels")
    assert done.code == 0
    (stream,) = (line for line in done.out.splitlines() if line.startswith("stem.0: "))
    for member in ("stem.0 out", "stem.1 channels", "blocks.0.conv1 in", "blocks.0.conv2 out"):
        assert member in stream
    assert "more" not in stream
    assert "residual stream" not in done.out


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_figures_are_whole_at_every_width(columns: int, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = run("inspect", "torchvision:resnet18", "--input-shape", 3, 32, 32)
    assert done.code == 0
    last = next(line for line in done.out.splitlines() if line.startswith("fc"))
    assert last.split() == ["fc", "1000", "output", "512", "k", "513", "k", "1", "no", "(3)"]
    names = [line.split()[0] for line in done.out.splitlines() if line.startswith("layer")]
    assert len(names) == 11
    assert ("layer1.0.conv1" in names) is (columns > 60)


def test_long_names_do_not_break_the_line(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a_block_with_a_very_long_name" * 3
    (tmp_path / "users_long.py").write_text(
        "from collections import OrderedDict\nfrom torch import nn\ndef build():\n"
        f"    body = nn.Sequential(OrderedDict({name}=nn.Conv2d(3, 16, 3), last=nn.Conv2d(16, 8, 3)))\n"
        "    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))\n"
    )
    done = run("inspect", "users_long.py:build", "--input-shape", 3, 8, 8)
    assert done.code == 0
    table = done.out[: done.out.index("\n(1)")].splitlines()
    assert len(table) == 1 + 3
    assert all(len(line) <= 100 for line in table)
    assert "…" in table[1]
