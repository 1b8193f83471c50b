"""Every error that pruneport raises on purpose.

    PruneportError
    ├── InputError              what was given is wrong: the command line exits with 2
    │   ├── SourceError         no such source, factory or weight name; the factory fails
    │   ├── CheckpointError     missing, truncated, not a checkpoint, unsafe, keys that do not match
    │   ├── ModelError          weights that are not finite, an input shape the network refuses
    │   ├── TargetError         no target, two targets, outside (0, 1), out of reach
    │   ├── PruningError        nothing prunable, a layer that cannot be resized
    │   ├── ImageFolderError    no images, unreadable images, labels that do not fit
    │   ├── OutputError         the output folder is taken, not writable, or the disk is full
    │   │   └── InUseError      another process is at work on the same bundle, training or study
    │   ├── BundleError         a changed file, a newer format, indices or paths out of range
    │   ├── HubError            no such repository, no token, no network, no huggingface_hub
    │   ├── StoreError          a study's store is another study's, of a newer format, or damaged
    │   ├── TrainingError       a budget below one step, a loss that is not finite, a state of another training
    │   ├── ExportError         the network cannot be expressed in ONNX
    │   └── ProviderError       the execution provider is not there or does not run the whole graph
    └── CheckFailed             the work was done and did not pass: the command line exits with 1
        ├── ParityError         ONNX Runtime and torch disagree
        ├── SpeedupError        the required speed-up was not measured
        ├── AccuracyError       more accuracy was lost than allowed, or no network loses so little
        └── SweepError          points of a sweep were not reached, or no network is within its limits

A message names the thing, says what was expected and what to do next.
"""

from __future__ import annotations

__all__ = [
    "AccuracyError",
    "BundleError",
    "CheckFailed",
    "CheckpointError",
    "ExportError",
    "HubError",
    "ImageFolderError",
    "InUseError",
    "InputError",
    "ModelError",
    "OutputError",
    "ParityError",
    "ProviderError",
    "PruneportError",
    "PruningError",
    "SourceError",
    "SpeedupError",
    "StoreError",
    "SweepError",
    "TargetError",
    "TrainingError",
]


class PruneportError(Exception):
    """Base of every error raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 2


class InputError(PruneportError):
    """What the caller gave cannot be used."""


class SourceError(InputError):
    """The model source, its arguments or its weight name cannot be resolved."""


class CheckpointError(InputError):
    """The checkpoint cannot be read safely, or does not fit the network."""


class ModelError(InputError):
    """The network itself cannot be used: non-finite weights or a refused input shape."""


class TargetError(InputError):
    """The compression target is missing, contradictory or out of reach."""


class PruningError(InputError):
    """Nothing can be pruned, or a layer cannot be resized."""


class ImageFolderError(InputError):
    """The image folder is empty, unreadable or does not fit the network."""


class OutputError(InputError):
    """The output folder cannot be written."""


class InUseError(OutputError):
    """Another process is at work on the same bundle, training or study."""


class BundleError(InputError):
    """The bundle is damaged, was changed, or is of a newer format."""


class HubError(InputError):
    """The Hugging Face Hub cannot be used: the repository's name, the token, the network, or its client."""


class StoreError(InputError):
    """The study's store cannot be used: another study's, of a newer format, or damaged."""


class TrainingError(InputError):
    """The training cannot start, go on or be resumed with what was given."""


class ExportError(InputError):
    """The network cannot be exported to ONNX."""


class ProviderError(InputError):
    """The ONNX Runtime execution provider is unavailable or would not run the whole graph."""


class CheckFailed(PruneportError):
    """The work was done, and its result did not pass a check."""

    exit_code = 1


class ParityError(CheckFailed):
    """ONNX Runtime's outputs are not torch's, within the stated tolerance."""


class SpeedupError(CheckFailed):
    """The measured speed-up is below what was required."""


class AccuracyError(CheckFailed):
    """More accuracy was lost than was allowed, or no network was found that loses so little."""


class SweepError(CheckFailed):
    """Points of a sweep were not reached, or no network is within its limits."""
