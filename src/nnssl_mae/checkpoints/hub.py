"""Checkpoints from repositories of the Hugging Face hub, through its own client and cache.

Only the weights and their adaptation plan are fetched. What is in the cache is read without a network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nnssl_mae.errors import UserError

_FORM = re.compile(r"hf:/{1,2}(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>.+))?")
_PREFIXES = ("hf:/", "https://huggingface.co/", "https://hf.co/")  # pathlib makes one of two slashes


@dataclass(frozen=True)
class Fetched:
    """A file of a repository, on this machine."""

    file: Path
    label: str
    shown: str
    plan_file: Path | None


@dataclass(frozen=True)
class _Wanted:
    repository: str
    file: str | None
    revision: str | None

    @property
    def shown(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub(where: str) -> bool:
    """Whether this names the hub and not a path."""
    return where.startswith(_PREFIXES)


def fetch(where: str, usual: Sequence[str], plan_name: str, choose: Callable[[Iterable[str], str], str]) -> Fetched:
    """Gets the weights of a repository and the adaptation plan beside them, from the cache where they are in it.

    Args:
        where: ``hf://owner/name``, then perhaps ``/file`` and ``@revision``.
        usual: names to look for, in this order, where no file is given.
        plan_name: of the adaptation plan.
        choose: picks one of the repository's files where none has a usual name.

    Raises:
        UserError: no such repository, revision or file; no permission; no network and not in the cache.
    """
    wanted = _parse(where)
    file = _download(wanted, wanted.file) if wanted.file else _first_usual(wanted, usual)
    if file is None:
        name = wanted.file or choose(_files(wanted), wanted.shown)
        file = _download(wanted, name)
        if file is None:
            raise UserError(f"{wanted.shown} has no file '{name}'; look at its files on the hub and give one of them")
    commit, name = _place(file)
    plan = _plan(_Wanted(wanted.repository, None, commit), str(PurePosixPath(name).with_name(plan_name)))
    return Fetched(file, f"hf://{wanted.repository}@{commit}", f"hf://{wanted.repository}/{name}", plan)


def _parse(where: str) -> _Wanted:
    match = _FORM.fullmatch(where)
    if match is None:
        raise UserError(
            f"{where} is not the name of a repository of the hub; write hf://owner/name, or hf://owner/name/file, and "
            "perhaps @revision at the end"
        )
    return _Wanted(match["repository"], match["file"], match["revision"])


def _first_usual(wanted: _Wanted, names: Sequence[str]) -> Path | None:
    """The first of the files that the repository has, or None.

    Raises:
        UserError: the hub cannot be asked, and none is in the cache.
    """
    unreachable: UserError | None = None
    for name in names:
        try:
            # The client tries for half a minute before it gives up: once is enough.
            file = _download(wanted, name, ask=unreachable is None)
        except _Unreachable as error:  # the next may be in the cache
            unreachable = unreachable or error
            continue
        if file is not None:
            return file
    if unreachable is not None:
        raise unreachable
    return None


class _Unreachable(UserError):
    """The hub cannot be asked."""


def _plan(wanted: _Wanted, name: str) -> Path | None:
    """The adaptation plan of a commit, or None; a commit never changes, so what the cache knows of it is enough."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    known = try_to_load_from_cache(wanted.repository, name, revision=wanted.revision)
    if known is not None:
        return None if known is _CACHED_NO_EXIST else Path(str(known))
    try:
        return _download(wanted, name)
    except _Unreachable:  # the file may hold its plan; if it needs one, its reader says so
        return None


def _download(wanted: _Wanted, name: str, ask: bool = True) -> Path | None:
    """A file's place in the cache; None if the repository has no such file.

    Args:
        ask: the hub, or look into the cache only.

    Raises:
        UserError: see :func:`fetch`.
    """
    from huggingface_hub import hf_hub_download  # a third of a second, so only where it is used
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(wanted.repository, name, revision=wanted.revision, local_files_only=not ask))
    except LocalEntryNotFoundError as error:
        raise _unreachable(wanted, name) from error
    except EntryNotFoundError:
        return None
    except Exception as error:  # of requests or httpx, as the client's version has it
        raise _sentence(wanted, error) from error


def _files(wanted: _Wanted) -> list[str]:
    from huggingface_hub import list_repo_files

    try:
        return list(list_repo_files(wanted.repository, revision=wanted.revision))
    except Exception as error:  # as above
        raise _sentence(wanted, error) from error


def _unreachable(wanted: _Wanted, name: str) -> _Unreachable:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _Unreachable(
            f"{wanted.shown} ({name}) is not in the hub's cache and HF_HUB_OFFLINE is set; unset it, or run the "
            "command once where there is a network"
        )
    return _Unreachable(
        f"{wanted.shown} ({name}) is not in the hub's cache and the hub cannot be reached or fails; check the network, "
        "or download the file elsewhere and give its path"
    )


def _sentence(wanted: _Wanted, error: Exception) -> UserError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return UserError(
            f"{wanted.shown} is gated: accept its terms on https://huggingface.co/{wanted.repository}, then run "
            "`hf auth login`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"{wanted.shown} is not on the hub, or it is private; check owner and name, and if it is private run "
            "`hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(
            f"{wanted.shown}: the repository has no revision '{wanted.revision}'; give a branch, tag or commit of it"
        )
    if isinstance(error, HFValidationError):
        return UserError(f"{wanted.shown} is not a name that the hub allows; write hf://owner/name")
    if isinstance(error, OSError) and error.errno is not None:  # the disk, not the network
        return UserError(
            f"{wanted.shown} cannot be stored in the hub's cache ({error.strerror}); set HF_HOME elsewhere"
        )
    return UserError(
        f"{wanted.shown} cannot be fetched ({type(error).__name__}); try again later, or download the file elsewhere "
        "and give its path"
    )


def _place(file: Path) -> tuple[str, str]:
    """Commit and name in the repository of a file in the cache, which is ``.../snapshots/<commit>/<name>``."""
    # The last: folders of the repository itself may be called so too, but the cache's is followed by a commit.
    commit_at = 1 + max(
        index
        for index, part in enumerate(file.parts[:-2])
        if part == "snapshots" and file.parts[index - 1].startswith("models--")
    )
    return file.parts[commit_at], "/".join(file.parts[commit_at + 1 :])
