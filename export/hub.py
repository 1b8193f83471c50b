"""Bundles on the Hugging Face Hub: uploaded as they are, and fetched with every file checked against the manifest.

What comes from the hub is a stranger's. First comes the manifest, then the files that it names and no others, each with
its size and hash; only a bundle that is sound in all of them gets a place on the disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pruneport.documents import MOST_BYTES
from pruneport.errors import BundleError, HubError, InUseError, OutputError
from pruneport.export.bundle.bundle import (
    CARD,
    MANIFEST,
    Bundle,
    check_hashes,
    is_bundle,
    open_bundle,
    read_manifest,
)
from pruneport.export.bundle.writing import placed_bundle
from pruneport.files import file_sha256
from pruneport.models.hubs.client import (
    HUB,
    Repository,
    check_signed_in,
    hub_client,
    hub_errors,
    look_up,
    parse_repository,
)
from pruneport.progress import Note, Progress, Step, silent

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["Target", "Uploaded", "fetch_bundle", "find_target", "is_on_hub", "open_any_bundle", "push_bundle"]

_FREE_FILES = {".gitattributes", CARD}  # what the hub itself puts into a new repository


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a bundle will be uploaded to, looked at beforehand."""

    repository: Repository
    private: bool
    """Whether a new repository will be private, or this one is."""
    commit: str | None
    """The newest commit there; None where there is no repository yet."""
    files: frozenset[str]
    """The files there."""


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """A bundle on the hub."""

    repository: Repository
    """At the commit that holds it."""
    url: str
    files: Mapping[str, int]
    """Its files, with their sizes in bytes."""


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


def find_target(name: str, private: bool) -> Target:
    """Look at the repository that a bundle shall be uploaded to, before any work.

    Raises:
        HubError: Its name is none; there is no token, network or huggingface_hub; it is public and ``private`` was
            asked for; or it holds files that are no bundle's.
    """
    repository = parse_repository(name)
    if repository.revision is not None:
        raise HubError(f"{repository}: a bundle is uploaded to the branch main; leave out @{repository.revision}.")
    client = hub_client()
    check_signed_in(client)
    with hub_errors(str(repository)):
        exists = client.repo_exists(repository.id)
    if not exists:
        return Target(repository=repository, private=private, commit=None, files=frozenset())
    info = look_up(client, repository)
    files = frozenset(_sizes(info))
    if private and not info.private:
        raise HubError(
            f"{repository} is there and is public; leave out `private`, or make it private on its page first."
        )
    if MANIFEST not in files and files - _FREE_FILES:
        shown = ", ".join(sorted(files - _FREE_FILES)[:3])
        raise HubError(
            f"{repository} holds other files ({shown}) and no bundle; choose another name, or empty it first."
        )
    return Target(repository=repository, private=bool(info.private), commit=info.sha, files=files)


def push_bundle(bundle: Bundle, target: Target, progress: Progress = silent) -> Uploaded:
    """Upload the files of a bundle's manifest, and no others, as one commit; make the repository where there is none.

    Files that an earlier bundle has there and this one has not are removed in the same commit.

    Raises:
        BundleError: A file is missing or was changed; nothing is uploaded.
        HubError: The hub refuses, or cannot be reached; the repository is as it was.
    """
    check_hashes(bundle)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete  # it takes a while to import

    client, repository = hub_client(), target.repository
    names = (*bundle.files, MANIFEST)  # the manifest last
    hashes = {name: str(entry["sha256"]) for name, entry in bundle.files.items()}
    hashes[MANIFEST] = file_sha256(bundle.folder / MANIFEST)
    earlier = _files_of_earlier(client, target)
    with hub_errors(str(repository), progress):
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=bundle.folder / name) for name in names
        ]
        operations += [CommitOperationDelete(path_in_repo=name) for name in sorted(earlier - set(names))]
        if target.commit is None:
            client.create_repo(repository.id, private=target.private)
        done = client.create_commit(
            repository.id,
            operations,
            commit_message="Upload a bundle of pruneport",
            parent_commit=target.commit,
        )
    there = replace(repository, revision=done.oid)
    _check_uploaded(there, look_up(client, there), bundle, hashes)
    files = {name: (bundle.folder / name).stat().st_size for name in names}
    return Uploaded(repository=there, url=f"{client.endpoint}/{repository.id}", files=files)


def _files_of_earlier(client: HfApi, target: Target) -> set[str]:
    """The files of the bundle that is there now; none where there is none, or where its manifest is none."""
    if MANIFEST not in target.files:
        return set()
    with tempfile.TemporaryDirectory() as folder:
        _fetch(Path(folder), client, replace(target.repository, revision=target.commit), MANIFEST)
        try:
            return set(read_manifest(Path(folder))[0]) & target.files
        except BundleError:
            return set()


def _check_uploaded(there: Repository, info: ModelInfo, bundle: Bundle, hashes: Mapping[str, str]) -> None:
    """Raise where what is on the hub now is not the bundle: left out there, or changed here while it was read."""
    found = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    if missing := sorted(set(hashes) - set(found)):
        raise HubError(
            f"{there} was uploaded without {', '.join(missing)}: a .gitignore there leaves them out. Remove it from "
            "the repository and push again."
        )
    changed = []
    for name, sha256 in hashes.items():
        there_sha256 = getattr(found[name].lfs, "sha256", sha256)  # of small files the hub says their size alone
        size = (bundle.folder / name).stat().st_size
        if (there_sha256, found[name].size, file_sha256(bundle.folder / name)) != (sha256, size, sha256):
            changed.append(name)
    if changed:
        raise BundleError(
            f"{bundle.folder} was changed by another process while it was uploaded ({', '.join(changed)}); {there} is "
            "no sound bundle. Push again."
        )


def _fill(folder: Path, client: HfApi, repository: Repository, info: ModelInfo, progress: Progress) -> None:
    """Fetch the manifest, then what it names, and check all of it."""
    sizes = _sizes(info)
    if MANIFEST not in sizes:
        raise BundleError(
            f"{repository} is not a bundle: the repository has no {MANIFEST}. A network of timm's there is "
            f"timm:{replace(repository, revision=None)}."
        )
    if (sizes[MANIFEST] or 0) > MOST_BYTES:
        raise BundleError(f"{repository} is not a bundle: its {MANIFEST} has more than {MOST_BYTES} bytes.")
    try:
        _fetch(folder, client, repository, MANIFEST)
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
            _fetch(folder, client, repository, name)
            ready += entry["bytes"]
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's notes on what it fetched
        check_hashes(open_bundle(folder))
    except BundleError as error:
        raise BundleError(str(error).replace(str(folder), str(repository))) from error


def _fetch(folder: Path, client: HfApi, repository: Repository, name: str) -> None:
    with hub_errors(str(repository)):
        client.hf_hub_download(repository.id, name, revision=repository.revision, local_dir=folder)
    if os.path.islink(folder / name) or not (folder / name).is_file():
        raise BundleError(f"{folder / name} is no file. Fetch the bundle again.")


def _sizes(info: ModelInfo) -> dict[str, int | None]:
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
