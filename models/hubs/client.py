"""Repositories on the Hugging Face Hub: their names, and the client of huggingface_hub with errors of ours.

A token comes from huggingface_hub's own places only (``HF_TOKEN``, the file of ``hf auth login``). No message holds it.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruneport.errors import HubError, PruneportError
from pruneport.progress import Note, Progress, silent

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["HUB", "Repository", "check_signed_in", "hub_client", "hub_errors", "look_up", "parse_repository"]

HUB = "hf-hub:"
"""What a name of something on the hub begins with."""

_ANSWER_S = 30.0
"""How long an answer about a repository is waited for."""

# What the hub takes: letters, digits, and - _ . inside, no two of - or . in a row, 96 characters in all.
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST = 96
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}|(?<=Bearer )\S+")
_LOG_IN = "log in with: hf auth login, or set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository of the hub; without a revision, what is newest on its branch main."""

    owner: str
    name: str
    revision: str | None = None

    @property
    def id(self) -> str:
        """As the hub writes it: ``owner/name``."""
        return f"{self.owner}/{self.name}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        """As pruneport takes it: ``hf-hub:owner/name@revision``."""
        return HUB + self.id + (f"@{self.revision}" if self.revision else "")


def parse_repository(text: str) -> Repository:
    """Read ``owner/name``, with ``hf-hub:`` before it and ``@revision`` after it where they are there.

    Raises:
        HubError: It is no name of a repository.

    Example:
        >>> parse_repository("hf-hub:timm/resnet18.a1_in1k").id
        'timm/resnet18.a1_in1k'
    """
    identity, at, revision = text.removeprefix(HUB).partition("@")
    owner, _, name = identity.partition("/")
    fits = all(_PART.fullmatch(part) and "--" not in part and ".." not in part for part in (owner, name))
    fits = fits and len(identity) <= _LONGEST and not name.endswith(".git")
    if at:
        fits = fits and bool(_REVISION.fullmatch(revision)) and ".." not in revision
    if not fits:
        raise HubError(
            f"{_without_token(text)!r} is no repository; expected owner/name, such as me/resnet50-half, or "
            "owner/name@revision, of letters, digits, -, _ and single dots."
        )
    return Repository(owner=owner, name=name, revision=revision or None)


def hub_client() -> HfApi:
    """The client of huggingface_hub, which is imported here and not before.

    Raises:
        HubError: It is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise HubError(
            "huggingface_hub is not installed; install it with the extra hub: pip install 'pruneport[hub]'"
        ) from error
    return HfApi(library_name="pruneport")


def check_signed_in(client: HfApi) -> None:
    """Ask whether huggingface_hub knows a token.

    Raises:
        HubError: It does not; the message names its places.
    """
    from huggingface_hub import get_token

    with hub_errors(f"the hub at {client.endpoint}"):
        token = get_token()
    if not token:
        raise HubError(f"there is no token for the hub, which uploading takes; {_LOG_IN}.")


def look_up(client: HfApi, repository: Repository) -> ModelInfo:
    """What the hub says of a repository at its revision: its commit, its files with their sizes.

    Raises:
        HubError: There is none that may be read, or no answer.
    """
    with hub_errors(str(repository)):
        info = client.model_info(repository.id, revision=repository.revision, files_metadata=True, timeout=_ANSWER_S)
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise HubError(f"{repository}: the server does not say which commit this is; is HF_ENDPOINT a hub's address?")
    return info


@contextmanager
def hub_errors(what: str, progress: Progress = silent) -> Iterator[None]:
    """Raise what calls of huggingface_hub raise as a ``HubError`` that says what to do; its warnings become notes.

    While the block runs, huggingface_hub draws no bars and writes no log lines but errors.

    Args:
        what: The repository, or what else is asked for; messages begin with it.
        progress: Told of warnings.

    Raises:
        HubError: In place of any error but our own and those of the local disk.
    """
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    level, draws = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.ERROR)
    if draws:
        disable_progress_bars()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    except (PruneportError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        message = _without_token(f"{what}: {reason}")
        if _without_token(str(error)) != str(error):
            raise HubError(message) from None  # a traceback must not show it either
        raise HubError(message) from error
    finally:
        hub_logging.set_verbosity(level)
        if draws:
            enable_progress_bars()
    for warning in caught:
        progress(Note(f"{what}: {_without_token(' '.join(str(warning.message).split()))}"))


def _reason(error: BaseException) -> str | None:
    """What went wrong, and what to do; None of an error that is none of the hub's."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it."
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error)
    if isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None:
        return _reason(error.__cause__)  # how huggingface_hub wraps what stopped a download or an upload
    transport = errors.HfHubHTTPError.__mro__[1]  # the root of the HTTP library's errors, whichever library it is
    if isinstance(error, (transport, ConnectionError, TimeoutError)):
        return f"the hub cannot be reached ({type(error).__name__}: {error}); check network, proxy and HF_ENDPOINT."
    if isinstance(error, OSError) and error.errno is not None:
        return None  # of the local disk
    if isinstance(error, ValueError | KeyError | TypeError):
        return f"this is not how a hub answers ({type(error).__name__}: {error}); check HF_ENDPOINT and the proxy."
    return f"huggingface_hub failed ({type(error).__name__}: {error})."


def _refusal(error: HfHubHTTPError) -> str:
    """What an answer that refuses means."""
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return f"its owner lets in only whom they know; ask on its page, and {_LOG_IN}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private; check the name, and {_LOG_IN}."
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision; leave out @revision for what is newest."
    if isinstance(error, errors.EntryNotFoundError):
        return f"the repository lacks a file ({error.response.url.path})."
    said = error.server_message or error.response.reason_phrase
    if status in (401, 403):
        return f"the hub does not allow it ({status}: {said}); use a token that may, and {_LOG_IN}."
    if status == 412:
        return "the repository was changed meanwhile; nothing was written. Try again."
    return f"the hub refused ({status}: {said}); try again later, or see its page."


def _without_token(text: str) -> str:
    """A text without what is, or looks like, a token."""
    if known := os.environ.get("HF_TOKEN", "").strip():
        text = text.replace(known, "…")
    return _TOKEN.sub("…", text)
