"""Checkpoints: every usual wrapping is read, nothing in them is run, every fault is named."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pruneport.errors import CheckpointError
from pruneport.models.checkpoints.checkpoint import load_weights, read_checkpoint


class Recorder:
    """Touches a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state},
    "model": lambda state: {"model": state},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "beside scalars": lambda state: {"epoch": 3, "best": 0.5, "arch": "small", "state_dict": state, "lr": None},
    "beside an optimiser": lambda state: {"optimizer": {"state": {}, "param_groups": []}, "state_dict": state},
    "beside a tensor": lambda state: {"step": torch.tensor(7), "state_dict": state},
    "averaged alone": lambda state: {"state_dict_ema": state, "epoch": 3},
    "averaged, beside the last": lambda state: {"model_ema": prefixed(state, "wrong."), "model": state},
    "twice": lambda state: {"state_dict": {"model": state}},
    "module.": lambda state: prefixed(state, "module."),
    "_orig_mod.": lambda state: prefixed(state, "_orig_mod."),
    "module._orig_mod.": lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_and_prefixes_give_the_tensors(wrapping: str, tmp_path: Path) -> None:
    saved, fresh = small_network(1), small_network(2)
    path = tmp_path / "checkpoint.pth"
    torch.save(WRAPPINGS[wrapping](saved.state_dict()), path)
    load_weights(fresh, read_checkpoint(path), path)
    for key, value in saved.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


@pytest.mark.parametrize("suffix", [".pt", ".th", ".bin", ".ckpt", ""])
def test_torch_files_of_any_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save({"weight": torch.arange(3.0)}, path)
    assert torch.equal(read_checkpoint(path)["weight"], torch.arange(3.0))


def test_files_from_before_the_zip_format(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "old.pth")["weight"], torch.arange(3.0))


def test_safetensors(tmp_path: Path) -> None:
    saved, fresh = small_network(1), small_network(2)
    path = tmp_path / "weights.safetensors"
    save_file(prefixed(saved.state_dict(), "module."), path)
    load_weights(fresh, read_checkpoint(path), path)
    assert torch.equal(fresh[3].weight, saved[3].weight)


def test_the_content_says_what_a_file_is_whatever_its_name(tmp_path: Path) -> None:
    state = {"weight": torch.arange(3.0)}
    torch.save(state, tmp_path / "torch.safetensors")
    torch.save(state, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "safe.pth")
    names = {f"layer{number}": torch.zeros(1) for number in range(3)}
    for length in range(0x70, 0x90, 8):  # the first byte may be a pickle's
        save_file(names, tmp_path / f"{length}.bin", {"a": "x" * length})
        assert read_checkpoint(tmp_path / f"{length}.bin").keys() == names.keys()
    for name in ("torch.safetensors", "old.safetensors", "safe.pth"):
        assert torch.equal(read_checkpoint(tmp_path / name)["weight"], state["weight"])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_prefix_that_the_network_itself_has_stays(prefix: str, tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.model = small_network(seed)

    saved, fresh = Wrapper(1), Wrapper(2)
    path = tmp_path / "wrapper.pth"
    torch.save(prefixed(saved.state_dict(), prefix), path)
    load_weights(fresh, read_checkpoint(path), path)
    assert torch.equal(fresh.model[3].weight, saved.model[3].weight)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth does not exist; expected a \.safetensors or a torch"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="is a folder; expected"):
        read_checkpoint(tmp_path)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CheckpointError, match=r"empty\.pth is empty; download it again"):
        read_checkpoint(tmp_path / "empty.pth")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pth(share: float, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save(small_network().state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pth is truncated or damaged .*fetch it again"):
        read_checkpoint(path)


@pytest.mark.parametrize("place", range(12, 200, 7))
def test_a_damaged_byte_never_raises_anything_else(place: int, tmp_path: Path) -> None:
    path = tmp_path / "damaged.pth"
    torch.save(small_network().state_dict(), path, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):  # a changed number may go unnoticed
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_truncated_safetensors(share: float, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_file(small_network().state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors cannot be read as safetensors .*truncated"):
        read_checkpoint(path)


@pytest.mark.parametrize("start", ["<!DOCTYPE html>", "\n <html lang='en'>", "<?xml version='1.0'?>"])
@pytest.mark.parametrize("name", ["page.pth", "page.safetensors"])
def test_a_web_page_saved_as_a_checkpoint(start: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(start + "<body>Sign in to download</body></html>")
    with pytest.raises(CheckpointError, match=rf"{name} is a web page .*download the file itself"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    ["version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "hello, this is text\n", "Not Found", "weights"],
)
def test_plain_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text(text)
    with pytest.raises(CheckpointError, match=r"text\.pth is not a checkpoint; expected \.safetensors or a file writ"):
        read_checkpoint(tmp_path / "text.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(zipped: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"state_dict": small_network().state_dict(), "extra": Recorder(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"would run pathlib\.Path\.touch|would run \S*getattr") as caught:
        read_checkpoint(path)
    assert "nothing was run" in str(caught.value)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file was harmless: this test proves nothing"


def test_a_bare_pickle_is_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Recorder(marker)))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_pickled_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"would run torch\.nn\.modules\.linear\.Linear; nothing was run"):
        read_checkpoint(tmp_path / "whole.pth")


def test_every_fault_is_listed_at_once(tmp_path: Path) -> None:
    network = small_network()
    state = dict(network.state_dict())
    before = {key: value.clone() for key, value in state.items()}
    del state["0.bias"], state["1.running_mean"]
    state["extra.weight"] = torch.zeros(1)
    state["fc.bias"] = torch.zeros(1)
    state["3.weight"] = torch.zeros(7, 16)
    state["3.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as caught:
        load_weights(network, state, tmp_path / "other.pth")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("other.pth does not fit the network:")
    assert lines[1] == "  missing (2): 0.bias, 1.running_mean"
    assert lines[2] == "  unexpected (2): extra.weight, fc.bias"
    assert lines[3] == (
        "  mis-shaped (2): 3.weight (network (5, 16), checkpoint (7, 16)), 3.bias (network (5,), checkpoint (7,))"
    )
    assert "`model_arg` num_classes" in lines[4]
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} was changed"


def test_batch_counters_may_be_missing(tmp_path: Path) -> None:
    state = {key: value for key, value in small_network(1).state_dict().items() if "num_batches" not in key}
    network = small_network(2)
    load_weights(network, state, tmp_path / "old.pth")
    assert torch.equal(network[0].weight, state["0.weight"])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "note": "none"}, "a mapping of epoch, note"),
        ({"state_dict": {"a": 1}}, "a mapping of a"),
        ({1: torch.ones(2)}, "a mapping of 1"),
        ([torch.ones(2)], "a list"),
        ({}, "a dict"),
        (torch.ones(2), "a Tensor"),
    ],
)
def test_files_without_named_tensors(content: Any, found: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=rf"odd\.pth holds {found}; expected tensors by name, or these under"):
        read_checkpoint(tmp_path / "odd.pth")


# Tensors that are none, and files that never end


def _with(change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    state = dict(small_network().state_dict())
    return state | {"3.weight": change(state["3.weight"])}


ODD: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "meta": (lambda weight: weight.to("meta"), "without values, on the meta device"),
    "sparse": (Tensor.to_sparse, "of layout coo, sparse"),
    "sparse and huge": (
        lambda _: torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**9, 10**9)),
        "of layout coo, sparse",
    ),
    "compressed rows": (Tensor.to_sparse_csr, "of layout csr, sparse"),
    "quantised": (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "quantised"),
    "packed": (lambda w: torch.zeros(w.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "float4_e2m1fn_x2"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_cannot_be_copied(kind: str, tmp_path: Path) -> None:
    change, said = ODD[kind]
    torch.save(_with(change), tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=rf"odd\.pth holds tensors .* 3\.weight \(.*{said}\)\. Save the float32"):
        read_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.bool])
def test_values_that_a_copy_would_change(dtype: torch.dtype, tmp_path: Path) -> None:
    network = small_network()
    with pytest.raises(CheckpointError, match=r"of another kind \(1\): 3\.weight \(network float32, checkpoint \w+\)"):
        load_weights(network, _with(lambda weight: weight.to(dtype)), tmp_path / "odd.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_precisions_are_copied(dtype: torch.dtype, tmp_path: Path) -> None:
    network, path = small_network(2), tmp_path / "other.pth"
    state = {key: value.to(dtype) for key, value in small_network(1).state_dict().items()}
    torch.save(state, path)
    load_weights(network, read_checkpoint(path), path)
    assert torch.equal(network[3].weight, state["3.weight"].float())


def test_a_checkpoint_that_holds_itself(tmp_path: Path) -> None:
    inner: dict[str, Any] = {}
    outer = {"state_dict": inner}
    inner["model"] = outer
    torch.save(outer, tmp_path / "ring.pth")
    with pytest.raises(CheckpointError, match=r"ring\.pth holds a mapping that holds itself; expected tensors by name"):
        read_checkpoint(tmp_path / "ring.pth")


def _doubling(times: int) -> bytes:
    """A pickle of {..., i: (i-1, i-1)}, whose last tuple is a key: its hash takes 2**times steps."""
    steps = b"".join(b"K%ch%ch%c\x86q%cs" % (i, i, i, i + 1) for i in range(times))
    return b"\x80\x02}K\xffX\x01\0\0\0xq\0s" + steps + b"h%cK\x01s." % times


def _repacked(path: Path, change: Callable[[bytes], bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """The same torch file with another data.pkl."""
    changed = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w", method) as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith("data.pkl") else content)
    return changed


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hash_without_end(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        with pytest.raises(CheckpointError, match="holds a mapping of 255, 0, 1, 2, 3, a tuple"):  # it can be read
            read_checkpoint(_repacked(path, lambda _: _doubling(4)))
        path = _repacked(path, lambda _: _doubling(60))
    else:
        path.write_bytes(_doubling(60))
    with pytest.raises(CheckpointError, match="hold one another so often that reading it would not end"):
        read_checkpoint(path)


def test_a_string_that_grows_with_every_call(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(2)}, path)
    call = b"c_codecs\nencode\n"
    grown = b"\x80\x02" + call * 40 + call + b"X\x01\0\0\0xX\x05\0\0\0ascii\x86R" + b"X\x03\0\0\0hex\x86R" * 40 + b"."
    with pytest.raises(CheckpointError, match="reading it would not end"):
        read_checkpoint(_repacked(path, lambda _: grown))


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(2)}, path)
    text = bytes(5_000_000)
    bomb = _repacked(path, lambda _: b"\x80\x02X" + struct.pack("<I", len(text)) + text + b".", zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < len(text) / 100
    with pytest.raises(CheckpointError, match=r"changed\.pth is a compressed archive, which may unpack to any size"):
        read_checkpoint(bomb)


def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    torch.save({"weight": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("scripted/constants.pkl", b"\x80\x02).")  # what tells it from other files for torch, too
    with pytest.raises(CheckpointError, match=r"scripted\.pt is a TorchScript archive, which is code; nothing was run"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_file(suffix: str, tmp_path: Path) -> None:
    pipe, loop, device, gone, folder = (tmp_path / f"{name}{suffix}" for name in ("pipe", "loop", "zero", "gone", "of"))
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    device.symlink_to("/dev/zero")
    gone.symlink_to("nowhere")
    folder.mkdir()
    place = tmp_path / f"sock{suffix}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        for path, said in (
            (pipe, "is a named pipe"),
            (loop, "cannot be opened (Too many levels of symbolic links)"),
            (device, "is a device"),
            (gone, "is a link to nothing"),
            (folder, "is a folder"),
            (place, "is a socket"),
            (tmp_path / ("n" * 300 + suffix), "cannot be opened (File name too long)"),
            (tmp_path / f"nul\0{suffix}", "cannot be opened (embedded null byte)"),
            (pipe / "below", "does not exist"),
        ):
            with pytest.raises(CheckpointError) as caught:
                read_checkpoint(path)
            assert f"{path} {said}; expected a .safetensors or a torch file." in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[9223372036854775808,0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}',
        b'{"a":{"dtype":"F9","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"\xff":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"[]",
        b"[" * 1_000_000,
    ],
)
def test_headers_of_safetensors(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(
        CheckpointError, match=r"odd\.safetensors cannot be read as safetensors \(.{1,210}\); it may be"
    ):
        read_checkpoint(path)


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(CheckpointError, match="header too large"):
        read_checkpoint(path)


def test_long_keys_are_cut(tmp_path: Path) -> None:
    torch.save({"x" * 1_000_000: 1}, tmp_path / "long.pth")
    with pytest.raises(CheckpointError, match=r"holds a mapping of x{200} …; expected"):
        read_checkpoint(tmp_path / "long.pth")
