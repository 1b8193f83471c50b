"""What a bundle holds is believed only as far as its manifest and formats allow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import pruneport
from pruneport.errors import BundleError, OutputError
from pruneport.export.bundle.bundle import check_hashes, open_bundle
from pruneport.export.bundle.writing import check_output


def _edit_plan(folder: Path, rehash: Any, **changes: Any) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | changes))
    rehash(folder)


def test_a_sound_bundle_opens(bundle: Path, digits: Any) -> None:
    opened = open_bundle(bundle)
    assert opened.plan.to_json() == digits.pruned.plan.to_json()
    assert check_hashes(opened) == "3 files match the manifest"


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
def test_a_changed_file_is_named(name: str, bundle: Path) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[-3] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was changed. Fetch the bundle again"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
def test_a_missing_file_is_named(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
def test_a_file_outside_the_manifest_is_not_believed(name: str, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"][name]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"{name} is not in the manifest"):
        open_bundle(bundle)


def test_every_fault_is_named_at_once(bundle: Path) -> None:
    (bundle / "plan.json").write_text("{}")
    (bundle / "weights.safetensors").unlink()
    with pytest.raises(BundleError, match=r"plan\.json was changed; weights\.safetensors is missing"):
        open_bundle(bundle)


def test_check_hashes_names_every_file(bundle: Path, rehash: Any) -> None:
    names = ("dense.onnx", "model.onnx", "report.html")
    for name in names:
        (bundle / name).write_text(name)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    rehash(bundle, files=files | {name: {"sha256": "", "bytes": 0} for name in names})
    rehash(bundle)
    opened = open_bundle(bundle)
    (bundle / "dense.onnx").write_text("other")
    (bundle / "model.onnx").unlink()
    (bundle / "report.html").write_text("report.htmL")
    with pytest.raises(BundleError, match=r"dense\.onnx was changed; model\.onnx is missing; report\.html was changed"):
        check_hashes(opened)


def test_a_file_is_checked_when_it_is_used(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.path("plan.json") == bundle / "plan.json"
    (bundle / "plan.json").write_text("{}")
    with pytest.raises(BundleError, match=r"plan\.json was changed"):
        opened.path("plan.json")
    with pytest.raises(BundleError, match=r"has no model\.onnx; make it with: pruneport export"):
        opened.path("model.onnx")


@pytest.mark.parametrize("version", [2, 99, "1", None])
def test_a_newer_manifest_is_refused(version: Any, bundle: Path, rehash: Any) -> None:
    rehash(bundle, format_version=version)
    with pytest.raises(BundleError, match=rf"manifest\.json has format {version}; .* pip install --upgrade pruneport"):
        open_bundle(bundle)


def test_a_newer_plan_is_refused(bundle: Path, rehash: Any) -> None:
    _edit_plan(bundle, rehash, format_version=99)
    with pytest.raises(BundleError, match=r"plan\.json .*99.* pip install --upgrade pruneport"):
        open_bundle(bundle)


@pytest.mark.parametrize("unit", [-1, 32, 10**9, 3])
def test_kept_indices_out_of_range_are_refused(unit: int, bundle: Path, rehash: Any) -> None:
    plan = json.loads((bundle / "plan.json").read_text())
    group = next(group for group in plan["groups"] if group["kept"] and group["width"] == 32)
    group["kept"] = [*([] if unit == -1 else [3]), unit]
    _edit_plan(bundle, rehash, groups=plan["groups"])
    with pytest.raises(BundleError, match=f"{group['name']} are not ascending numbers from 0 to 31"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", "{}", '{"format_version": 1}', '{"format_version": 1, "files": 3}']
)
def test_a_manifest_that_is_none_is_refused(text: str, bundle: Path) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="is not a manifest"):
        open_bundle(bundle)


@pytest.mark.parametrize("entry", [3, "x", None, [1], {"sha256": 3}])
def test_a_manifest_with_odd_entries_is_refused(entry: Any, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["plan.json"] = entry
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"plan\.json"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..", ".hidden", "sub/x", "C:\\x", "", "x\n"])
def test_a_path_outside_the_bundle_is_refused(name: str, bundle: Path, rehash: Any) -> None:
    (bundle.parent / "x").write_text("not yours")
    rehash(bundle, files=json.loads((bundle / "manifest.json").read_text())["files"] | {name: {}})
    with pytest.raises(BundleError, match=r"manifest\.json names .* outside the bundle; do not use it"):
        open_bundle(bundle)


def test_a_link_that_leaves_the_bundle_is_refused(bundle: Path) -> None:
    shutil.move(bundle / "weights.safetensors", bundle.parent / "elsewhere")
    (bundle / "weights.safetensors").symlink_to(bundle.parent / "elsewhere")
    with pytest.raises(BundleError, match=r"'weights\.safetensors', which lies outside the bundle"):
        open_bundle(bundle)


@pytest.mark.parametrize(("name", "message"), [("nowhere", "no bundle at"), ("plan.json", "no bundle at")])
def test_no_bundle_there(name: str, message: str, bundle: Path) -> None:
    with pytest.raises(BundleError, match=message):
        pruneport.load(bundle / name)
    (bundle / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        pruneport.load(bundle)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx"])
def test_a_link_to_itself_is_a_missing_file(name: str, bundle: Path, rehash: Any) -> None:
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    rehash(bundle, files=files | {name: {"sha256": "0" * 64, "bytes": 0}})
    (bundle / name).unlink(missing_ok=True)
    (bundle / name).symlink_to(bundle / name)
    with pytest.raises(BundleError, match=f"{name} is missing"):
        check_hashes(open_bundle(bundle))


def test_an_output_that_links_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "out")
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "out", overwrite=False)


def test_an_output_with_a_null_byte_in_its_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="has a null byte in its name; choose another folder"):
        check_output(tmp_path / "a\0b", overwrite=False)
