"""A sentence instead of a traceback where bad input ends a stock command: nnU-Net itself knows no such errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType

from nnssl_mae.errors import ResumableError, UserError

_BAD_INPUT, _TRY_AGAIN = 2, 75  # as our own command line ends


def show_user_errors_as_sentences() -> None:
    """From now on an uncaught :class:`UserError` ends the process with its sentence on stderr and exit code 2, or 75.

    Everything else ends as before. Done when a trainer of ours is made, so that ``nnUNetv2_train`` behaves as our own
    commands do; a session at a Python prompt is left alone.
    """
    if not hasattr(sys, "ps1") and not isinstance(sys.excepthook, _Sentences):
        sys.excepthook = _Sentences(sys.excepthook)


class _Sentences:
    """In place of ``sys.excepthook``, which it asks for all but errors of ours."""

    def __init__(self, otherwise: Callable[[type[BaseException], BaseException, TracebackType | None], object]) -> None:
        self._otherwise = otherwise

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, UserError):
            self._otherwise(kind, error, trace)
            return
        print(f"nnssl_mae: {error}", file=sys.stderr)
        sys.exit(_TRY_AGAIN if isinstance(error, ResumableError) else _BAD_INPUT)
