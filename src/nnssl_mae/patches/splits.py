"""Which scans validate the pre-training. All scans of a subject go to the same side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nnssl_mae.errors import UserError

_SHARE, _AT_LEAST, _AT_MOST = 0.01, 5, 1000


def hold_out_by_subject(subject_of_case: Mapping[str, str], seed: int) -> tuple[list[str], list[str]]:
    """Training and validation cases of fold ``all``.

    Whole subjects are drawn until 1 % of the scans, at least 5 and at most 1000, are held out. The draw depends on
    the seed and on the subjects' names only.

    Raises:
        UserError: no subject would be left for training.
    """
    wanted = min(max(round(_SHARE * len(subject_of_case)), _AT_LEAST), _AT_MOST)
    subjects = sorted(set(subject_of_case.values()))
    scans_of: dict[str, list[str]] = {subject: [] for subject in subjects}
    for case, subject in sorted(subject_of_case.items()):
        scans_of[subject].append(case)
    validation: list[str] = []
    for index in np.random.default_rng(seed).permutation(len(subjects)):
        if len(validation) >= wanted:
            break
        validation += scans_of.pop(subjects[index])
    if not scans_of:
        raise UserError(
            f"Fold 'all' holds out {wanted} scans by subject for validation, which leaves no subject for training: "
            f"the dataset has {len(subject_of_case)} scans of {len(subjects)} subjects. Add scans, use a numbered "
            "fold (0 to 4), or check the subjects with `nnssl-mae prepare --subject-regex`"
        )
    return sorted(case for cases in scans_of.values() for case in cases), sorted(validation)
