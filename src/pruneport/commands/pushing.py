"""Uploading a bundle to the Hugging Face Hub, with a model card that the hub can read."""

from __future__ import annotations

from pruneport.commands.artifacts import write_card
from pruneport.commands.configs import PushConfig
from pruneport.commands.records import bundle_at, input_sizes_of, read_record
from pruneport.commands.results import PushResult
from pruneport.errors import HubError
from pruneport.export.bundle.bundle import BENCH, CARD, MODEL_ONNX, VERIFY, Bundle, check_hashes, open_bundle
from pruneport.export.bundle.writing import update_bundle
from pruneport.export.card.front_matter import has_front_matter
from pruneport.export.hub import is_on_hub
from pruneport.export.hub_upload import find_target, push_bundle
from pruneport.export.onnx.form import ANY_BATCH
from pruneport.progress import Note, Progress, Stage, numbered, silent

__all__ = ["push"]


def push(config: PushConfig, progress: Progress = silent, command: str = "") -> PushResult:
    """Upload the files in a bundle's manifest, and no others, as one commit.

    The card of a bundle from before there was YAML at its head is written anew first.

    Raises:
        BundleError: There is no bundle, or it is damaged; nothing is uploaded.
        HubError: The repository's name is none; no token, network or huggingface_hub; the hub refuses.
        OutputError: The card has to be written anew, and the bundle cannot be written.
    """
    if is_on_hub(config.folder):
        raise HubError(f"{config.folder.as_posix()} is on the hub already; expected the folder of a bundle.")
    progress = numbered(progress, 3)
    progress(Stage("checking the bundle"))
    bundle = bundle_at(config.folder, progress)
    check_hashes(bundle)
    progress(Stage(f"asking for {config.repository}"))
    target = find_target(config.repository, config.private)
    bundle = _with_readable_card(bundle, command, progress)
    size = sum(int(entry["bytes"]) for entry in bundle.files.values())
    progress(Stage(f"uploading {len(bundle.files)} files, {size / 1e6:.1f} MB"))
    done = push_bundle(bundle, target, progress)
    return PushResult(
        folder=bundle.folder,
        repository=done.repository.id,
        commit=str(done.repository.revision),
        url=done.url,
        private=target.private,
        files=done.files,
    )


def _with_readable_card(bundle: Bundle, command: str, progress: Progress) -> Bundle:
    """The bundle, its card written anew where the hub could not read it."""
    if CARD in bundle.files and has_front_matter(bundle.path(CARD).read_text(encoding="utf-8", errors="replace")):
        return bundle
    progress(Note(f"{CARD} is written anew: the hub could not read it"))
    verified, measured = read_record(bundle, VERIFY), read_record(bundle, BENCH)
    sizes = input_sizes_of(bundle) if MODEL_ONNX in bundle.files else ANY_BATCH
    with update_bundle(bundle, command) as staging:
        write_card(staging, bundle.plan, verified, measured, sizes)
    return open_bundle(bundle.folder)
