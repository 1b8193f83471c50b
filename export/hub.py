"""Bundles on the Hugging Face Hub, fetched with every file checked against the manifest.

What comes from the hub is a stranger's. First comes the manifest, then the files that it names and no others, each with
its size and hash; only a bundle that is sound in all of them gets a place on the disk.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pruneport.documents import MOST_BYTES
from pruneport.errors import BundleError, HubError, InUseError, OutputError
from pruneport.export.bundle.bundle import (
    MANIFEST,
    Bundle,
    check_hashes,
    is_bundle,
    open_bundle,
    read_manifest,
)
from pruneport.export.bundle.writing import placed_bundle
from pruneport.models.hubs.client import (
    HUB,
    Repository,
    hub_client,
    hub_errors,
    look_up,
    parse_repository,
)
from pruneport.progress import Note, Progress, Step, silent

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["fetch_bundle", "fetch_file", "is_on_hub", "open_any_bundle", "sizes_in"]


def is_on_hub(name: str | Path) -> bool:
    """Whether a bundle's name is one of the hub, not a folder's."""
    return _text(name).startswith(HUB)


def open_any_bundle(name: str | Path, progress: Progress = silent) -> Bundle:
    """Open a bundle by its folder, or by ``hf-hub:owner/name``; see ``open_bundle`` and ``fetch_bundle``."""
    return fetch_bundle(_text(name), progress) if is_on_hub(name) else open_bundle(Path(name))


def fetch_bundle(name: str, progress: Progress = silent) -> Bundle:
    """Open the copy on this machine of a bundle on the hub; one that is not there yet is fetched.

    Copies lie among huggingface_hub's assets (``HF_ASSETS_CACHE``), a folder for each commit.

    Args:
        name: ``hf-hub:owner/name``, or ``hf-hub:owner/name@revision``.
        progress: Told of each file.

    Raises:
        HubError: There is no such repository, no network, or no huggingface_hub.
        BundleError: The repository holds no bundle, or a damaged one; nothing is kept.
        OutputError: The copy cannot be written.
        InUseError: Another process is at work on the copy.
    """
    repository = parse_repository(name)
    client = hub_client()
    copies = _copies(repository)
    info = None
    if not repository.is_pinned:
        try:
            info = look_up(client, repository)
        except HubError as error:
            raise HubError(f"{error}{_copies_here(repository, copies)}") from error
        repository = replace(repository, revision=info.sha)
    folder = copies / str(repository.revision)
    if is_bundle(folder):
        try:
            return open_bundle(folder)
        except BundleError as error:
            progress(Note(f"fetched again: {error}"))
    info = info or look_up(client, repository)
    if info.sha != repository.revision:
        raise HubError(f"{repository}: the server answers with another commit, {info.sha}; check HF_ENDPOINT.")
    try:
        with placed_bundle(folder, overwrite=folder.exists()) as staging:
            _fill(staging, client, repository, info, progress)
    except InUseError:
        raise
    except OutputError as error:
        reason = str(error).removeprefix("`out` ")
        raise OutputError(f"the copy of {repository} is not kept: {reason} HF_ASSETS_CACHE says where.") from error
    return open_bundle(folder)


def _fill(folder: Path, client: HfApi, repository: Repository, info: ModelInfo, progress: Progress) -> None:
    """Fetch the manifest, then what it names, and check all of it."""
    sizes = sizes_in(info)
    if MANIFEST not in sizes:
        raise BundleError(
            f"{repository} is not a bundle: the repository has no {MANIFEST}. A network of timm's there is "
            f"timm:{replace(repository, revision=None)}."
        )
    if (sizes[MANIFEST] or 0) > MOST_BYTES:
        raise BundleError(f"{repository} is not a bundle: its {MANIFEST} has more than {MOST_BYTES} bytes.")
    try:
        fetch_file(folder, client, repository, MANIFEST)
        files, _ = read_manifest(folder)
        faults = [f"{name} is missing" for name in files if name not in sizes]
        faults += [
            f"{name} has {sizes[name]} bytes in place of {entry['bytes']}"
            for name, entry in files.items()
            if sizes.get(name) not in (None, entry["bytes"])
        ]
        if faults:
            raise BundleError(f"{folder} does not match its manifest: {'; '.join(faults[:10])}.")
        total = sum(entry["bytes"] for entry in files.values())
        ready = 0
        for name, entry in files.items():
            progress(Step(f"fetching {name} of {repository}, {entry['bytes'] / 1e6:.1f} MB", ready, max(total, 1)))
            fetch_file(folder, client, repository, name)
            ready += entry["bytes"]
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's notes on what it fetched
        check_hashes(open_bundle(folder))
    except BundleError as error:
        raise BundleError(str(error).replace(str(folder), str(repository))) from error


def fetch_file(folder: Path, client: HfApi, repository: Repository, name: str) -> None:
    """Fetch one file of a repository into a folder.

    Raises:
        BundleError: What came is no file.
        HubError: The hub cannot be reached, or refuses.
    """
    with hub_errors(str(repository)):
        client.hf_hub_download(repository.id, name, revision=repository.revision, local_dir=folder)
    if os.path.islink(folder / name) or not (folder / name).is_file():
        raise BundleError(f"{folder / name} is no file. Fetch the bundle again.")


def sizes_in(info: ModelInfo) -> dict[str, int | None]:
    """The files of a repository with their sizes, where the hub says them."""
    return {sibling.rfilename: sibling.size for sibling in info.siblings or ()}


def _copies(repository: Repository) -> Path:
    """Where the copies of a repository's bundles lie on this machine."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "pruneport" / "bundles" / "--".join((repository.owner, repository.name))


def _copies_here(repository: Repository, copies: Path) -> str:
    """What can be opened without the hub, as the end of a message."""
    commits = sorted(path.name for path in copies.glob("[!.]*") if is_bundle(path))
    names = ", ".join(str(replace(repository, revision=commit)) for commit in commits[:3])
    return f" On this machine there is {names}, which opens without the hub." if commits else ""


def _text(name: str | Path) -> str:
    return name if isinstance(name, str) else name.as_posix()
