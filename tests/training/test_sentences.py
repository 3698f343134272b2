"""How a run ends that our trainers refuse inside nnU-Net's own command."""

import subprocess
import sys

import pytest

_RUN = """
from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.training.sentences import show_user_errors_as_sentences
show_user_errors_as_sentences()
show_user_errors_as_sentences()
raise {}
"""


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        ("UserError('Do this')", 2, "nnssl_mae: Do this\n"),
        ("ResumableError('Do it again')", 75, "nnssl_mae: Do it again\n"),
        ("SystemExit(5)", 5, ""),
    ],
)
def test_a_user_error_ends_the_process_with_its_sentence(error: str, code: int, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN.format(error)], capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stderr) == (code, printed)


def test_other_errors_keep_their_traceback() -> None:
    command = [sys.executable, "-c", _RUN.format("ValueError('a bug')")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("ValueError: a bug\n")
