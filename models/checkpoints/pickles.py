"""Torch files, looked through before anything is made of them.

torch runs no code that a pickle names. But an object may hold another twice, that again, and so on, so that its hash
never ends; and allowed functions make longer strings of strings.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

from pruneport.errors import CheckpointError

__all__ = ["check_endless"]

_PARTS = 10**8  # far above the instructions of any honest pickle
_LEGACY_PICKLES = 5  # magic number, protocol, system, the content, and the keys of its storages
_MEMORISES = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_RECALLS = {"GET", "BINGET", "LONG_BINGET"}
_FILLS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"}  # what has no hash
_CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "OBJ", "INST"}
_GROWTH = 10  # the most that one call makes of a character: an encoding that escapes it


def check_endless(path: Path) -> None:
    """Refuse a torch file that would become far larger than it is, or never end, while torch reads it.

    Raises:
        CheckpointError: It is such a file, or code; nothing was run.
        Exception: It is damaged; what is raised then depends on where.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            endless = _is_endless(file) or any(_is_endless(file) for _ in range(1, _LEGACY_PICKLES) if _goes_on(file))
        else:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                    raise CheckpointError(
                        f"checkpoint {path} is a TorchScript archive, which is code; nothing was run. Save the "
                        "network's state_dict (torch.save(network.state_dict(), ...)), and use that."
                    )
                if sum(entry.file_size for entry in entries) > path.stat().st_size:
                    raise CheckpointError(
                        f"checkpoint {path} is a compressed archive, which may unpack to any size; torch.save does not "
                        "compress. Read it where you trust it, and save it again with torch.save."
                    )
                pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
                endless = any(_is_endless(io.BytesIO(archive.read(entry))) for entry in pickles)
    if endless:
        raise CheckpointError(
            f"checkpoint {path} holds objects that hold one another so often that reading it would not end; "
            "do not use it."
        )


def _goes_on(file: IO[bytes]) -> bool:
    """Whether anything is left; of a pickle that torch did not write nothing is."""
    here = file.tell()
    left = bool(file.read(1))
    file.seek(here)
    return left


def _is_endless(file: IO[bytes]) -> bool:
    """Whether an object of one pickle has more than 100 million parts, each counted as often as it is held.

    Args:
        file: At the pickle's first byte; it is left behind its last where the answer is False.
    """
    stack: list[int | None] = []  # parts of each object, and None for a mark
    memo: dict[Any, int] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in _MEMORISES:
            memo[len(memo) if opcode.name == "MEMOIZE" else argument] = (stack[-1] if stack else 0) or 0
        elif opcode.name in _RECALLS:
            stack.append(memo.get(argument, 1))
        elif opcode.name == "MARK":
            stack.append(None)
        else:
            size = 1 + _taken(stack, opcode) + (len(argument) if isinstance(argument, str | bytes) else 0)
            size = 1 if opcode.name in _FILLS else size * _GROWTH if opcode.name in _CALLS else size
            if size > _PARTS:
                return True
            stack += [size] * len(opcode.stack_after)
    return False


def _taken(stack: list[int | None], opcode: pickletools.OpcodeInfo) -> int:
    """Take from the stack what an instruction takes, and return how many parts that is."""
    plain, taken = len(opcode.stack_before), 0
    if pickletools.markobject in opcode.stack_before:
        while stack and (size := stack.pop()) is not None:
            taken += size
        plain -= 2  # the mark, and all above it
    for _ in range(min(plain, len(stack))):
        taken += stack.pop() or 0
    return taken
