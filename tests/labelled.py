"""A labelled dataset with stock plans, without the half minute that nnU-Net's planner takes.

The end-to-end test runs the real fingerprint and planner.
"""

from __future__ import annotations

import json
from pathlib import Path

from nnssl_mae.plans import CONFIGURATION
from tests.tiny_scans import write_labelled


def write_labelled_with_plans(folders: Path, prepared: Path) -> Path:
    """Writes ``Dataset004_Tiny`` below nnU-Net's folders; returns its preprocessed folder.

    Args:
        folders: holds ``raw`` and ``preprocessed``.
        prepared: an unlabelled dataset, whose plans are turned into what the planner would have written.
    """
    raw = write_labelled(folders / "raw", 4, "Tiny", count=2, channels=2)
    plans = json.loads((prepared / "nnsslMAEPlans.json").read_text())
    configuration = plans["configurations"].pop(CONFIGURATION)
    del configuration["nnssl_mae"]
    configuration |= {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "normalization_schemes": ["ZScoreNormalization"] * 2,
        "use_mask_for_norm": [True, True],
    }
    plans |= {"dataset_name": "Dataset004_Tiny", "plans_name": "nnUNetResEncUNetLPlans"}
    plans["configurations"]["3d_fullres"] = configuration
    intensities = plans["foreground_intensity_properties_per_channel"]
    intensities["1"] = intensities["0"]

    folder = folders / "preprocessed" / raw.name
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    (folder / "nnUNetPlans_3d_fullres" / "precious.b2nd").write_text("a week of preprocessing")
    (folder / "nnUNetResEncUNetLPlans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text((raw / "dataset.json").read_text())
    fingerprint = json.loads((prepared / "dataset_fingerprint.json").read_text())
    fingerprint |= {key: fingerprint[key][:2] for key in ("spacings", "shapes_after_crop")}
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return folder
