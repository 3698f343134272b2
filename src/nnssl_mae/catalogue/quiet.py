"""Keeps what libraries print about damaged files off the user's screen: the catalogue says it in its own words."""

from __future__ import annotations

import contextlib
import locale
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

from nibabel import imageglobals


@contextlib.contextmanager
def quiet_nibabel() -> Iterator[None]:
    """Neither nibabel's log of what it mends in headers nor numpy's warnings about their numbers."""
    was_disabled = imageglobals.logger.disabled
    imageglobals.logger.disabled = True  # without its handlers, Python's own would print instead
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        imageglobals.logger.disabled = was_disabled


@contextlib.contextmanager
def quiet_process() -> Iterator[None]:
    """Drops what C++ libraries write to the process's output and error streams (file descriptors 1 and 2).

    It also puts back the language settings of the process, which ITK's DICOM reader sets to those of C: Python would
    take other processes' output for ASCII afterwards. It concerns all threads, so it belongs into worker processes and
    short calls.
    """
    settings = locale.setlocale(locale.LC_ALL)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream that is closed has nothing to keep
            stream.flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    try:
        with tempfile.TemporaryFile() as drain:
            os.dup2(drain.fileno(), 1)
            os.dup2(drain.fileno(), 2)
            yield
    finally:
        locale.setlocale(locale.LC_ALL, settings)
        for descriptor, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
