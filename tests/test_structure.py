"""The rooms as their imports draw them: one way, no cycle, few files a folder, and each file named where one looks."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_ROOMS = ("models", "compress", "export", "bench", "commands")
_MOST_MODULES = 13

# From what is imported to what imports it; what stands in one line has no order. A module's place is its own name's or
# that of the nearest folder named here.
_ORDER = """
errors files progress text documents arrays sequences units versions
models.options models.record models.digits models models.preparation models.checkpoints models.images
compress.options compress.group_records compress.records compress.hooks
compress.sizes
compress.resize
compress.graph.tracing.channel_ids compress.graph.tracing.dataflow
compress.graph.tracing.trace compress.graph.tracing.weight_views
compress.graph.tracing.labels
compress.graph.tracing.tracer compress.graph.tracing
compress.graph.operators
compress.graph
compress.surgery
compress.activations
compress.devices
compress.calibration_inputs
compress.importance
compress.allocation
compress.state_file compress.finetune.optimizers compress.finetune.state compress.finetune.steps
compress.recovery
compress.structure compress.assessment compress.removal compress.prune compress.further compress.pipeline
compress.finetune
export.options
export.bundle
export.onnx
export
export.card
bench.options bench.gpu_state bench.nvml bench.devices
bench.latency
bench.timings
bench.report
bench.sweep
bench.transfer
commands
cli
bench.experiments
"""
_RANKS = {name: rank for rank, line in enumerate(_ORDER.split("\n")) for name in line.split()}


def find_modules(root: Path) -> dict[str, Path]:
    """All modules of the package in the checkout ``root``: dotted name below ``pruneport`` -> file."""
    base = root / "src" / "pruneport"
    folders = [(root, root / room) for room in _ROOMS] + [(base, base / room) for room in _ROOMS]
    files = [(base, file) for file in sorted(base.glob("*.py")) if file.stem != "__init__"]
    for start, folder in folders:
        if folder.is_dir() and not folder.is_symlink():
            files += [(start, file) for file in sorted(folder.rglob("*.py"))]
    names = [".".join(file.relative_to(start).with_suffix("").parts) for start, file in files]
    return {name.removesuffix(".__init__"): file for name, (_, file) in zip(names, files, strict=True)}


def imports_of(name: str, modules: Mapping[str, Path]) -> Iterator[str]:
    """The modules that a module imports, anywhere in it; those for type checkers count, too."""
    for node in ast.walk(ast.parse(modules[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            continue
        for target in targets:
            found = target.removeprefix("pruneport.")
            while target.startswith("pruneport.") and found and found not in modules:
                found = found.rpartition(".")[0]  # a name in a module
            if found in modules:
                yield found


def place_of(name: str) -> str:
    """The name in the order that a module stands under, or ""."""
    while name and name not in _RANKS:
        name = name.rpartition(".")[0]
    return name


def find_back_arrows(modules: Mapping[str, Path]) -> list[str]:
    """Imports of what comes later, and modules without a place in the order."""
    placeless = [name for name in modules if not place_of(name)]
    faults = [
        f"{name} has no place in the order"
        for name in placeless
        if modules[name].stem != "__init__" or [*imports_of(name, modules)]  # a room's docstring needs none
    ]
    for name in modules:
        for target in imports_of(name, modules):
            if place_of(name) and place_of(target) and _RANKS[place_of(target)] > _RANKS[place_of(name)]:
                faults.append(f"{name} imports {target}, which comes after it")
    return faults


def find_cycle(modules: Mapping[str, Path]) -> str:
    """One cycle of imports in words, or ""."""
    try:
        TopologicalSorter({name: set(imports_of(name, modules)) - {name} for name in modules}).prepare()
    except CycleError as error:
        return " < ".join(error.args[1])
    return ""


def find_crowded(modules: Mapping[str, Path]) -> list[str]:
    """Folders with too many modules, sub-folders and ``__init__`` not counted."""
    folders = [file.parent for file in modules.values() if file.stem != "__init__"]
    crowds = {folder: folders.count(folder) for folder in folders}
    return [f"{folder.name} has {count} modules" for folder, count in crowds.items() if count > _MOST_MODULES]


def find_unnamed(modules: Mapping[str, Path]) -> list[str]:
    """Files that no line of their folder's ``__init__`` names, and lines that name no file, or name one again."""
    faults = []
    for name, file in modules.items():
        if file.stem != "__init__":
            if "." in name and name.rpartition(".")[0] not in modules:
                faults.append(f"{name} is in a folder without __init__")
            continue
        there = {f"{path.parent.name}/" for path in file.parent.glob("*/*.py")}
        there |= {path.stem for path in file.parent.glob("*.py") if path != file}
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines = re.findall(r"^- ``([\w/]+)``: \S", docstring, re.MULTILINE)
        named = set(lines)
        faults += [f"{name} names {again} twice" for again in sorted(named) if lines.count(again) > 1]
        faults += [f"{name} does not name {missing}" for missing in sorted(there - named)]
        faults += [f"{name} names {gone}, which is not there" for gone in sorted(named - there)]
    return faults


@pytest.fixture(scope="module")
def modules() -> dict[str, Path]:
    found = find_modules(_ROOT)
    assert {"models.source", "compress.graph.tracing.tracer", "export", "commands.compressing", "cli"} <= found.keys()
    return found


def test_imports_go_one_way(modules: dict[str, Path]) -> None:
    assert find_back_arrows(modules) == []


def test_imports_have_no_cycle(modules: dict[str, Path]) -> None:
    assert find_cycle(modules) == ""


def test_folders_hold_few_modules(modules: dict[str, Path]) -> None:
    assert find_crowded(modules) == []


def test_every_file_is_named_by_its_folder_and_no_other(modules: dict[str, Path]) -> None:
    assert find_unnamed(modules) == []


# The checks themselves, on small trees


def write_tree(root: Path, **files: str) -> dict[str, Path]:
    """Modules by name, with two underscores for a dot; every folder names what it holds."""
    base = root / "src" / "pruneport"
    for name, text in {"models": "", "compress__graph": "", "commands": "", **files}.items():
        folder = base if name.split("__")[0] in ("commands", "cli") else root
        path = folder.joinpath(*name.split("__"))
        file = path.with_suffix(".py") if text else path / "__init__.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    (root / "compress" / "__init__.py").write_text('"""\n- ``graph/``: which channels depend on each other\n"""\n')
    (base / "models").symlink_to(root / "models")
    return find_modules(root)


def name_files(folder: Path, *names: str) -> None:
    lines = "\n".join(f"- ``{name}``: what it is for" for name in names)
    (folder / "__init__.py").write_text(f'"""A folder.\n\n{lines}\n"""\n')


def test_a_tree_in_order_has_no_faults(tmp_path: Path) -> None:
    modules = write_tree(
        tmp_path,
        models__source="import torch\nfrom pruneport.errors import ModelError\n",
        compress__graph__tracer="from pruneport.models.source import open_source\n",
        commands__compressing="import pruneport.compress.graph.tracer\n",
    )
    name_files(tmp_path / "models", "source")
    name_files(tmp_path / "compress" / "graph", "tracer")
    name_files(tmp_path / "src" / "pruneport" / "commands", "compressing")
    assert set(imports_of("commands.compressing", modules)) == {"compress.graph.tracer"}
    assert find_back_arrows(modules) == find_crowded(modules) == find_unnamed(modules) == []
    assert find_cycle(modules) == ""


@pytest.mark.parametrize(
    "line",
    [
        "from pruneport.commands.compressing import compress",
        "from pruneport.commands import compressing",
        "import pruneport.commands.compressing as compressing",
        "if TYPE_CHECKING:\n    from pruneport.commands.compressing import compress",
        "def late():\n    from pruneport.commands import compressing",
    ],
)
def test_an_arrow_that_runs_back_is_found(line: str, tmp_path: Path) -> None:
    modules = write_tree(tmp_path, commands__compressing="compress = 1\n", models__source=f"{line}\n")
    assert find_back_arrows(modules) == ["models.source imports commands.compressing, which comes after it"]


def test_an_arrow_that_runs_back_inside_a_room_is_found(tmp_path: Path) -> None:
    modules = write_tree(
        tmp_path,
        compress__graph__tracer="from pruneport.compress.prune import prune\n",
        compress__prune="from pruneport.cli import main\n",
        cli="main = 1\n",
    )
    assert find_back_arrows(modules) == [
        "compress.graph.tracer imports compress.prune, which comes after it",
        "compress.prune imports cli, which comes after it",
    ]


def test_a_module_without_a_place_is_found(tmp_path: Path) -> None:
    modules = write_tree(tmp_path, compress__unheard_of="import torch\n")
    assert find_back_arrows(modules) == ["compress.unheard_of has no place in the order"]
    (tmp_path / "compress" / "__init__.py").write_text("from pruneport.compress.unheard_of import torch\n")
    assert "compress has no place in the order" in find_back_arrows(modules)


def test_a_cycle_is_found_also_where_there_is_no_order(tmp_path: Path) -> None:
    modules = write_tree(
        tmp_path,
        models__source="from pruneport.models.names import known\n",
        models__names="from pruneport.models import files\n",
        models__files="import pruneport.models.source\n",
    )
    assert find_back_arrows(modules) == []
    for name in ("source", "names", "files"):
        assert f"models.{name}" in find_cycle(modules)


def test_a_folder_of_too_many_modules_is_found(tmp_path: Path) -> None:
    files = {f"models__part{number}": "part = 1\n" for number in range(_MOST_MODULES)}
    write_tree(tmp_path, **files, models__images__found="found = 1\n")
    assert find_crowded(find_modules(tmp_path)) == []
    (tmp_path / "models" / "more.py").write_text("more = 1\n")
    assert find_crowded(find_modules(tmp_path)) == ["models has 14 modules"]


def test_files_that_are_not_named_and_lines_without_a_file_are_found(tmp_path: Path) -> None:
    modules = write_tree(
        tmp_path, models__source="source = 1\n", models__names="names = 1\n", models__images__found="found = 1\n"
    )
    name_files(tmp_path / "models", "source", "checkpoint", "source", "zoo/")
    assert find_unnamed(modules) == [
        "models names source twice",
        "models does not name images/",
        "models does not name names",
        "models names checkpoint, which is not there",
        "models names zoo/, which is not there",
        "models.images.found is in a folder without __init__",
    ]
