"""The drawing of the coupled groups: what it shows, by Graphviz and by matplotlib."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import VisionTransformer, resnet18

from pruneport.bench.report import graph_graphviz
from pruneport.bench.report.graph import check_graph, graph_svg, write_graph
from pruneport.bench.report.graph_colours import HUES, group_colours, tint
from pruneport.bench.report.graph_content import DrawnLayer, GraphContent, content_of_plan, content_of_views
from pruneport.bench.report.graph_layout import PILL_INK, arrange
from pruneport.bench.report.graph_rows import find_lanes, find_rows
from pruneport.cli import main
from pruneport.compress.allocation.cost import Cost
from pruneport.compress.assessment import GroupView
from pruneport.compress.graph.coupled_units import find_coupling
from pruneport.compress.graph.coupling import Coupling
from pruneport.compress.graph.groups import group_units
from pruneport.errors import OutputError
from pruneport.export.card.words import clean

_SVG = "{http://www.w3.org/2000/svg}"
_REASONS = {
    "stream": "a residual stream, outside `scope=filters`",
    "representation": "the representation keeps its width",
    "output": "the network's outputs always stay",
}


def _inspected(network: nn.Module, size: int) -> tuple[Coupling, GraphContent]:
    coupling = find_coupling(network.eval(), torch.randn(1, 3, size, size))
    views = [
        GroupView(group=group, cost=Cost(macs=0, params=0), reason=_REASONS.get(group.role, ""))
        for group in group_units(network, coupling)
    ]
    return coupling, content_of_views("a network", views)


def _resnet() -> tuple[Coupling, GraphContent]:
    return _inspected(resnet18(), 32)


def _vit() -> tuple[Coupling, GraphContent]:
    network = VisionTransformer(32, 16, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=10)
    return _inspected(network, 32)


@pytest.fixture(scope="module", params=[_resnet, _vit], ids=["resnet18", "vit"])
def network(request: pytest.FixtureRequest) -> tuple[Coupling, GraphContent]:
    found: tuple[Coupling, GraphContent] = request.param()
    return found


@pytest.fixture(params=["graphviz", "matplotlib"])
def drawn_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to draw; without a program ``dot`` on the path it is matplotlib."""
    if request.param == "matplotlib":
        monkeypatch.setenv("PATH", "")
    elif shutil.which("dot") is None:
        pytest.skip("Graphviz is not installed")
    return str(request.param)


def _plan(*groups: tuple[str, Sequence[tuple[str, str]]], reason: str = "") -> dict[str, Any]:
    """What a drawing takes of a plan: groups of eight units, of which six stay, or all where there is a reason."""
    entries = [
        {
            "name": name,
            "scope": "filters",
            "width": 8,
            "kept": None if reason else [0, 1, 2, 3, 4, 5],
            "reason": reason,
            "members": [{"module": module, "axis": axis} for module, axis in members],
        }
        for name, members in groups
    ]
    return {"source": {"spec": "torchvision:net"}, "groups": entries}


def _file(content: GraphContent, folder: Path) -> ElementTree.Element:
    write_graph(folder / "graph.svg", content)
    return ElementTree.fromstring((folder / "graph.svg").read_bytes())


def _texts(root: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()).strip() for element in root.iter(f"{_SVG}text")]


def _tips(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{_SVG}title")]


def test_every_layer_comes_once_and_in_the_order_in_which_they_run(network: tuple[Coupling, GraphContent]) -> None:
    coupling, content = network
    names = [layer.name for layer in content.layers]
    assert sorted(names) == sorted({name for axes in coupling.units.values() for name, _ in axes})
    places = [coupling.order[layer.name] for layer in content.layers if layer.name in coupling.order]
    assert places == sorted(places)
    assert len(places) > 15


def test_layers_groups_and_reasons_are_all_there(
    network: tuple[Coupling, GraphContent], drawn_by: str, tmp_path: Path
) -> None:
    _, content = network
    root = _file(content, tmp_path)
    tips, texts = _tips(root), _texts(root)
    told = Counter(tip.partition(":")[0] for tip in tips)
    for layer in content.layers:
        # matplotlib's boxes and the texts in them are two elements.
        assert told[layer.name] == {"graphviz": 1, "matplotlib": 2}[drawn_by]
    for group in content.groups:
        mine = [tip for tip in tips if tip.startswith(f"group {group.name}: {group.width} units")]
        assert mine
        assert all(("not prunable" in tip) == bool(group.reason) for tip in mine)
        assert all(group.reason.replace("`", "") in tip for tip in mine)
    for role in {group.role for group in content.groups} - {"filters"}:
        assert any(text.startswith(_REASONS[role].replace("`", "")) for text in texts)


def test_a_colour_stands_for_one_group(network: tuple[Coupling, GraphContent], drawn_by: str, tmp_path: Path) -> None:
    _, content = network
    colours: dict[str, set[str]] = {}
    for element in _file(content, tmp_path).iter():
        title = element.find(f"{_SVG}title")
        found = re.match(r"group (\S+):", "" if title is None else title.text or "")
        outlines = re.findall(r'stroke(?:="|: )(#[0-9a-f]{6})', ElementTree.tostring(element, encoding="unicode"))
        if found and outlines:
            colours.setdefault(found[1], set()).update(outlines)
    assert set(colours) == {group.name for group in content.groups}
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == len(colours)


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_both_ways_show_the_same(
    network: tuple[Coupling, GraphContent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, content = network
    by_graphviz = _file(content, tmp_path)
    monkeypatch.setenv("PATH", "")
    by_matplotlib = _file(content, tmp_path)
    assert [by_graphviz.tag, by_matplotlib.tag] != [_SVG + "polyline", _SVG + "path"]
    assert sorted(_texts(by_graphviz)) == sorted(_texts(by_matplotlib))
    assert set(_tips(by_graphviz)) == set(_tips(by_matplotlib))
    sizes = [[float(part) for part in root.attrib["viewBox"].split()] for root in (by_graphviz, by_matplotlib)]
    assert sizes[0] == pytest.approx(sizes[1], abs=1.5)


@pytest.mark.parametrize("script", ["exit 1", "exit 0", "echo '<svg'; exit 3", "sleep 30"])
def test_where_graphviz_fails_matplotlib_draws(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "dot"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(graph_graphviz, "_SECONDS", 0.3)
    root = _file(content_of_plan(_plan(("conv1", [("conv1", "out"), ("fc", "in")]))), tmp_path)
    assert "6/8" in _texts(root)


def test_a_plan_says_what_was_kept_and_what_was_left_dense(plan: Any, drawn_by: str, tmp_path: Path) -> None:
    content = content_of_plan(plan)
    root = _file(content, tmp_path)
    texts = _texts(root)
    for group in plan["groups"]:
        if group["kept"] is not None:
            assert f"{len(group['kept'])}/{group['width']}" in texts
    dense = [group for group in plan["groups"] if group["kept"] is None]
    shown = {int(text.split()[0]) for text in texts if re.fullmatch(r"\d+ [a-z]", text)}
    assert shown == {group["width"] for group in dense}
    pruned = len(plan["groups"]) - len(dense)
    counted = f"{len(plan['groups'])} coupled groups ({pruned} pruned, {len(dense)} left dense)"
    assert any(text.startswith(counted) for text in texts)


def test_strange_names_are_shown_as_they_are(drawn_by: str, tmp_path: Path) -> None:
    names = ['a"b\\', "\\N \\G", "&amp; <b>", "]; x [", "卷积層", "$x_1$", "a\x00\nb\u202ec"]
    content = content_of_plan(_plan(*((name, [(name, "out")]) for name in names), reason='"; \\l <script>'))
    texts = _texts(_file(content, tmp_path))
    for name in names:
        assert clean(name) in texts
    assert any(text.startswith('"; \\l <script> (7 groups)') for text in texts)
    assert "<script" not in graph_svg(content)


def test_in_a_page_the_colours_of_text_and_lines_are_the_pages(plan: Any, drawn_by: str) -> None:
    svg = graph_svg(content_of_plan(plan))
    root = ElementTree.fromstring(svg)
    assert root.attrib["class"] == "plot graph"
    assert root.attrib["role"] == "img"
    assert root.attrib["width"]
    assert not list(root.iter(f"{_SVG}style"))
    assert not re.findall(r'(?:fill|stroke)="#', svg)
    assert "var(--plot-page, #ffffff)" in svg
    inks = [element for element in root.iter(f"{_SVG}text") if "var(--plot-ink" in element.get("style", "")]
    assert inks
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert graph_svg(content_of_plan(plan)) == svg
    assert graph_svg(content_of_plan(_plan())) == ""


def test_lists_that_contradict_each_other_still_give_each_layer_once() -> None:
    plan = _plan(
        ("a", [("a", "out"), ("b", "in"), ("c", "in")]),
        ("c", [("c", "out"), ("b", "channels"), ("a", "in")]),
        ("d", [("d", "dim0")]),
    )
    assert sorted(layer.name for layer in content_of_plan(plan).layers) == ["a", "b", "c", "d"]


def test_parameters_stand_with_their_block_or_behind_the_first_layer() -> None:
    plan = _plan(
        (
            "stem",
            [("stem", "out"), ("b.0.fc", "out"), ("b.1.fc", "out"), ("b.0.scale", "dim0"), ("e.pos", "dim2")],
        )
    )
    assert [layer.name for layer in content_of_plan(plan).layers] == ["stem", "e.pos", "b.0.fc", "b.0.scale", "b.1.fc"]


def test_a_row_holds_a_block() -> None:
    _, content = _resnet()
    rows = find_rows(content.layers)
    blocks = [f"layer{stage}.{place}" for stage in range(1, 5) for place in range(2)]
    assert [row.block for row in rows] == ["", *blocks, ""]
    assert [rows[3].shown_name(layer) for layer in rows[3].layers] == [
        *("conv1", "bn1", "conv2", "bn2", "downsample.0", "downsample.1")
    ]


def test_lines_that_overlap_have_places_of_their_own() -> None:
    _, content = _resnet()
    rows = find_rows(content.layers)
    lanes = find_lanes(rows)
    streams = {number for number, group in enumerate(content.groups) if group.role in ("stream", "representation")}
    assert {lane.group for lane in lanes} == streams
    for lane in lanes:
        for other in lanes:
            if lane.group != other.group and lane.place == other.place:
                assert lane.rows[-1] < other.rows[0] or other.rows[-1] < lane.rows[0]


def _chain(blocks: int, layers: Callable[[int], Sequence[str]]) -> list[DrawnLayer]:
    return [DrawnLayer(name=name, reads=(0,), makes=(0,)) for block in range(blocks) for name in layers(block)]


def test_blocks_alike_are_folded_where_there_are_too_many_and_it_is_said() -> None:
    layers = _chain(120, lambda block: [f"body.{block}.{name}" for name in ("norm", "conv", "act")])
    rows = find_rows(layers)
    assert [row.block for row in rows if not row.folded] == ["body.0", "body.1", "body.119"]
    assert [row.folded for row in rows if row.folded] == [
        "117 blocks with the same layers are folded: body.2 to body.118"
    ]
    assert len(find_rows(layers[: 3 * 80])) == 80


def test_a_drawing_of_thousands_of_groups_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(*((f"m{i}.conv{i}", [(f"m{i}.conv{i}", "out")]) for i in range(5000)))
    scene = arrange(content_of_plan(plan))
    assert scene.height < 3000
    flat = arrange(content_of_plan(_plan(*((f"conv{i}", [(f"conv{i}", "out")]) for i in range(5000)))))
    assert any(shape.text == "4940 more layers of this block are not drawn" for shape in flat.shapes)
    assert any(re.search(r"\d+ more rows are not drawn", shape.text) for shape in scene.shapes)
    deep = _plan(*((f"{'m.' * 2000}{i}", [(f"{'m.' * 2000}{i}", "out")]) for i in range(20)))
    assert arrange(content_of_plan(deep)).height < 500
    wide = _plan(*((f"g{i}", [(f"g{i}", "out"), ("fc", "in")]) for i in range(3000)))
    assert arrange(content_of_plan(wide)).width < 1500
    lanes = _plan(*((f"m.{i // 3}.{i}", [(f"m.{i // 3}.{i}", "out"), ("fc", "in")]) for i in range(180)))
    assert any("132 more without a line" in shape.text for shape in arrange(content_of_plan(lanes)).shapes)


def test_a_very_long_block_stays_within_the_pages_width() -> None:
    names = [f"conv{number}" for number in range(60)]
    plan = _plan(
        *((name, [(name, "out"), (after, "in")]) for name, after in zip(names, [*names[1:], "fc"], strict=True))
    )
    assert arrange(content_of_plan(plan)).width <= 820


def test_colours_are_told_apart_by_the_colour_blind_and_text_on_them_is_dark() -> None:
    seen = group_colours(300, [range(6)])
    assert len(set(seen)) == 300
    assert set(seen[:6]) == set(HUES)
    for cones in _CONES:
        places = [_lab((torch.tensor(cones) @ _linear(colour)).clamp(0, 1)) for colour in HUES]
        assert min(float((one - other).norm()) for one, other in itertools.combinations(places, 2)) > 15
    for page in ("#fcfcfb", "#14191d"):
        assert min(_contrast(colour, page) for colour in HUES) > 2.9  # WCAG asks 3 of lines
    assert min(_contrast(tint(colour), PILL_INK) for colour in seen) > 7


# What people see without red or without green cones, in linear RGB (Vienot, Brettel and Mollon 1999); and with all.
_CONES = (
    [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
)


def _lab(linear: torch.Tensor) -> torch.Tensor:
    """CIE Lab of linear sRGB; a distance of 2.3 is just seen."""
    to_xyz = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (to_xyz @ linear) / torch.tensor([0.9505, 1.0, 1.089])
    fx, fy, fz = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in (x, y, z))
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def _linear(colour: str) -> torch.Tensor:
    parts = torch.tensor([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return torch.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _contrast(one: str, other: str) -> float:
    """As WCAG defines it."""
    weights = torch.tensor([0.2126, 0.7152, 0.0722])
    darker, lighter = sorted(float(_linear(colour) @ weights) for colour in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf", ".PNG"])
def test_the_command_draws_and_says_where(
    suffix: str, drawn_by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"graph{suffix}"
    assert main(["inspect", "pruneport:digits_resnet", "--graph", str(path)]) == 0
    assert f"The groups, drawn: {path}" in capsys.readouterr().out
    assert path.read_bytes().startswith({".svg": b"<?xml", ".pdf": b"%PDF"}.get(suffix, b"\x89PNG"))
    if suffix.lower() == ".png":
        with Image.open(path) as image:
            assert image.width > 1000  # two dots for each pixel of a usual screen
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_json_is_the_same_with_a_drawing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for extra in ([], ["--graph", str(tmp_path / "graph.svg")]):
        assert main(["inspect", "pruneport:digits_resnet", "--json", *extra]) == 0
        outputs.append(json.loads(capsys.readouterr().out))
    assert outputs[0] == outputs[1]


def test_what_cannot_be_written_is_refused_before_anything_is_traced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.svg").mkdir()
    faults = {
        "graph.jpg": r"`graph` .*graph\.jpg: expected a file ending in \.svg or \.png or \.pdf",
        "gone/graph.svg": "there is no folder",
        "folder.svg": "is a folder",
        "x" * 300 + ".svg": "nothing can be written there",
    }
    for name, message in faults.items():
        with pytest.raises(OutputError, match=message):
            check_graph(tmp_path / name)
        assert main(["inspect", "nowhere.at:all", "--graph", str(tmp_path / name)]) == 2
        assert "--graph" in capsys.readouterr().err
    both = str(tmp_path / "same.svg")
    assert main(["inspect", "nowhere.at:all", "--graph", both, "--plot", both, "--sensitivity"]) == 2
    assert "both name" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]


def test_no_groups_are_met_by_name(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"graph\.svg: torchvision:net has no coupled groups"):
        write_graph(tmp_path / "graph.svg", content_of_plan(_plan()))
    assert list(tmp_path.iterdir()) == []
