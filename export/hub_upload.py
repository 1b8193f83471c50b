"""A bundle uploaded to the Hugging Face Hub as it is, as one commit, and looked at there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pruneport.errors import BundleError, HubError
from pruneport.export.bundle.bundle import CARD, MANIFEST, Bundle, check_hashes, read_manifest
from pruneport.export.hub import fetch_file, sizes_in
from pruneport.files import file_sha256
from pruneport.models.hubs.client import (
    Repository,
    check_signed_in,
    hub_client,
    hub_errors,
    look_up,
    parse_repository,
)
from pruneport.progress import Progress, silent

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["Target", "Uploaded", "find_target", "push_bundle"]

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
    files = frozenset(sizes_in(info))
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
        fetch_file(Path(folder), client, replace(target.repository, revision=target.commit), MANIFEST)
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
