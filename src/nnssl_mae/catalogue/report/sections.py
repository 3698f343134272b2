"""The sections of scan.html, in the order in which they stand there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas

from nnssl_mae import __version__
from nnssl_mae.catalogue.report import page
from nnssl_mae.catalogue.report.charts import Pair, Values, charts, histogram, ranking
from nnssl_mae.catalogue.report.outliers import FEWEST, LIMIT, Outlier, intensity_range, voxels
from nnssl_mae.catalogue.rules import effects, notes
from nnssl_mae.catalogue.table import ACCEPTED, REJECTED, Catalogue
from nnssl_mae.recipes.words import shown

MOST_REASONS_SHOWN = 3  # under the picture of an outlier
MOST_OUTLIERS, MOST_OF_A_REASON, MOST_REASONS = 200, 6, 24
"""Scans shown with their picture, at most."""
MOST_LISTED = 2000
"""Outliers named without a picture, at most."""
_EXAMPLES = 3

MEANINGS = {
    "unreadable": "the file cannot be read",
    "truncated": "the file ends too early",
    "not_3d": "not one three-dimensional image",
    "not_finite": "holds NaN or infinite values",
    "empty": "holds no voxel, or only zeros",
    "constant": "all voxels have the same value",
    "spacing": "impossible or absurd spacing in the header",
    "thick_slices": "slices thicker than the limit",
    "field_of_view": "field of view smaller than the limit",
    "localiser": "a localiser (scout), not a diagnostic scan",
    "derived_map": "a map computed from scans (ADC, FA, phase ...)",
    "segmentation": "a segmentation, not an image",
    "duplicate": "the same voxels as another scan",
    "duplicate_subject": "the same voxels under another subject's name",
    "exclusion_mask": "its exclusion mask cannot be used",
    "colour": "a colour image",
}
"""What the codes of the checks mean."""
_RULE = "left out by your rule"


@dataclass(frozen=True)
class Contents:
    """What the page is made from."""

    name: str
    """Of the catalogue's folder."""
    catalogue: Catalogue
    sample: Sequence[str]
    """Cases of accepted scans, in the order to be shown."""
    outliers: Sequence[Outlier]
    typical: Mapping[str, bytes]
    """PNG of the median picture, by the name of the scans it was taken of."""
    without_picture: int
    """How many accepted scans have no picture that can be shown."""
    pictures: Mapping[str, bytes]
    """PNG by case, of those that are shown and have one."""
    too_many: Collection[str] = ()
    """Cases whose pictures would make the page too large."""

    @property
    def rows(self) -> pandas.DataFrame:
        """All scans."""
        return self.catalogue.rows

    @property
    def rejected(self) -> pandas.DataFrame:
        """The scans that were left out."""
        return self.rows[self.rows["verdict"] == REJECTED]


def counts(rows: pandas.DataFrame) -> dict[str, int]:
    """How many scans, accepted and rejected, and of how many subjects, sessions, data sets and modalities.

    Subjects of equal name in two data sets are two.
    """
    accepted = int((rows["verdict"] == ACCEPTED).sum())
    sessions = rows[rows["session"] != ""]
    return {
        "scans": len(rows),
        "accepted": accepted,
        "rejected": len(rows) - accepted,
        "subjects": _distinct(rows, "dataset", "subject"),
        "sessions": _distinct(sessions, "dataset", "subject", "session"),
        "data sets": _distinct(rows, "dataset"),
        "modalities": _distinct(rows[rows["modality"] != ""], "modality"),
    }


def _distinct(rows: pandas.DataFrame, *columns: str) -> int:
    return len(rows[list(columns)].drop_duplicates())


def by_reason(rejected: pandas.DataFrame) -> list[tuple[str, pandas.DataFrame]]:
    """The rejected scans by code of the check or text of the rule, the most frequent reason first."""
    reasons = rejected["check"].where(rejected["check"] != "", rejected["rule"])
    return [(str(reason), rejected[reasons == reason]) for reason in reasons.value_counts().index]


def whole_page(contents: Contents) -> str:
    """The HTML of scan.html."""
    sections = {
        "Left out": _left_out(contents),
        "Rules": _rules(contents.catalogue),
        "Outliers": _outliers(contents),
        "Random sample": _sample(contents),
        "Typical pictures": _typical(contents),
        "Distributions": _distributions(contents),
        "Rejected scans": _rejected(contents),
        "How this was made": _about(contents),
    }
    intro = page.tiles(counts(contents.rows)) + page.contents(list(sections))
    return page.document(
        f"Scans of {contents.name}", intro + "".join(page.section(title, text) for title, text in sections.items())
    )


def _left_out(contents: Contents) -> str:
    rejected = contents.rejected
    if rejected.empty:
        return page.paragraph("No scan was left out.")
    rows = [
        (*_reason_words(reason, scans), len(scans), tuple(str(path) for path in scans["path"][:_EXAMPLES]))
        for reason, scans in by_reason(rejected)
    ]
    total = (
        f"{len(rejected):,} of {len(contents.rows):,} scans were left out. Each is counted once, by its first reason."
    )
    return page.paragraph(total) + page.table(("reason", "meaning", "scans", "for example"), rows)


def _reason_words(reason: str, scans: pandas.DataFrame) -> tuple[str, str]:
    """The reason as it stands in the table, and what it means."""
    if (scans["check"] == "").all():
        return reason, _RULE
    return reason, MEANINGS.get(reason, "see the detail below the pictures")


def _rules(catalogue: Catalogue) -> str:
    found = effects(catalogue)
    if not found:
        return page.paragraph(
            "No rules. Leave scans out with, for instance: nnssl-mae scan exclude CATALOGUE "
            "--where \"modality == 'T1w' and min_spacing >= 3\""
        )
    rows = [
        (effect.number, effect.rule.kind, effect.rule.where.text, effect.matches, effect.rejects) for effect in found
    ]
    header = ("number", "kind", "where", "scans it matches", "scans it leaves out")
    about = (
        "Only scans that passed the checks are counted. A scan is used if it fulfils at least one include rule (where "
        "there are any) and no exclude rule. It is counted for the first rule that leaves it out, and those that "
        "fulfil no include rule for the first of these."
    )
    return page.table(header, rows) + page.paragraph(about, soft=True) + page.bullets(notes(catalogue))


def _distributions(contents: Contents) -> str:
    def numbers(title: str, unit: str, column: str) -> str:
        return histogram(title, unit, _both(contents, lambda rows: rows[column].to_numpy(np.float64)))

    def names(title: str, column: str) -> str:
        accepted, rejected = (rows[column].fillna("").astype(str).tolist() for rows in _parts(contents))
        return ranking(title, accepted, rejected)

    blocks = [
        names("Scans per modality", "modality"),
        names("Scans per data set", "dataset"),
        names("Scans per orientation as stored", "orientation"),
        histogram("Scans per subject (heights: subjects)", "", _per_subject(*_parts(contents)), noun="subjects"),
        numbers("Smallest spacing", "mm", "min_spacing"),
        numbers("Largest spacing (slice thickness)", "mm", "max_spacing"),
        numbers("Shortest edge of the field of view", "mm", "min_fov"),
        numbers("Longest edge of the field of view", "mm", "max_fov"),
        *(histogram(f"Size from {ends}", "voxels", _both(contents, _size(axis))) for axis, ends in _AXES.items()),
        histogram("Voxels per scan", "", _both(contents, voxels), ratio=True),
        histogram("Intensity range, 1st to 99th percentile", _OWN_UNITS, _both(contents, intensity_range), ratio=True),
        numbers("Median intensity", _OWN_UNITS, "p50"),
        numbers("Share of voxels that are not zero", "", "nonzero"),
    ]
    return charts(blocks)


_AXES = {"x": "left to right", "y": "back to front", "z": "bottom to top"}
_OWN_UNITS = "units of the scan"


def _parts(contents: Contents) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    return contents.catalogue.accepted, contents.rejected


def _both(contents: Contents, values: Callable[[pandas.DataFrame], Values]) -> Pair:
    accepted, rejected = _parts(contents)
    return values(accepted), values(rejected)


def _size(axis: str) -> Callable[[pandas.DataFrame], Values]:
    """Voxels along an axis, NaN where the header was not read."""
    return lambda rows: rows[f"size_{axis}"].replace(0, np.nan).to_numpy(np.float64)


def _per_subject(accepted: pandas.DataFrame, rejected: pandas.DataFrame) -> Pair:
    """How many accepted scans each subject has; and how many rejected ones, of subjects with no other."""
    used = accepted.groupby(["dataset", "subject"]).size()
    lost = rejected.groupby(["dataset", "subject"]).size()
    return np.asarray(used, np.float64), np.asarray(lost[~lost.index.isin(used.index)], np.float64)


def _typical(contents: Contents) -> str:
    if not contents.typical:
        return page.paragraph(f"Too few accepted scans with a picture to take a median: {FEWEST} are needed.")
    about = (
        "The median of the pictures of the accepted scans, blurred: what pictures are compared with below. It should "
        "show the organ you expect, the right way round."
    )
    cards = [page.card(label, (), (), png) for label, png in contents.typical.items()]
    return page.paragraph(about) + page.scans(cards)


def _sample(contents: Contents) -> str:
    accepted = len(contents.catalogue.accepted)
    about = (
        f"{len(contents.sample):,} of {accepted:,} accepted scans, drawn at random in turns from every data set and "
        "modality, so that rare ones are seen too."
    )
    planes = (
        "A picture shows the axial, coronal and sagittal plane through the middle. The patient's right is at the "
        "right; the front is at the top of the axial plane and at the right of the sagittal one."
    )
    why = {outlier.case: _strongest(outlier) for outlier in contents.outliers}
    return page.paragraph(about) + page.paragraph(planes) + _missing(contents) + _cards(contents, contents.sample, why)


def _missing(contents: Contents) -> str:
    if not contents.without_picture:
        return ""
    return page.paragraph(
        f"{contents.without_picture:,} accepted scans have no picture: only their numbers were compared."
    )


def _strongest(outlier: Outlier) -> tuple[str, ...]:
    more = len(outlier.reasons) - MOST_REASONS_SHOWN
    return (*outlier.reasons[:MOST_REASONS_SHOWN], *([f"and {more} more reasons"] if more > 0 else []))


def _outliers(contents: Contents) -> str:
    found = contents.outliers
    about = page.paragraph(
        f"Accepted scans that are unlike the others of their modality: {len(found):,} of "
        f"{len(contents.catalogue.accepted):,}. They are used unless you leave them out by a rule. The most unusual "
        "come first."
    )
    why = {outlier.case: _strongest(outlier) for outlier in found}
    shown_now, rest = found[:MOST_OUTLIERS], found[MOST_OUTLIERS:]
    pictured = _cards(contents, [outlier.case for outlier in shown_now], why)
    return about + pictured + (_listed(rest) if rest else "")


def _listed(rest: Sequence[Outlier]) -> str:
    lines = [f"{outlier.case}: {'; '.join(outlier.reasons)}" for outlier in rest[:MOST_LISTED]]
    more = len(rest) - len(lines)
    end = page.paragraph(f"and {more:,} more") if more else ""
    return page.folded(f"{len(rest):,} more, without pictures", page.bullets(lines) + end)


def _rejected(contents: Contents) -> str:
    blocks = []
    reasons = by_reason(contents.rejected)
    for reason, scans in reasons[:MOST_REASONS]:
        first = scans[:MOST_OF_A_REASON]
        why = {case: (detail,) for case, detail in zip(first["case"], first["detail"], strict=True) if detail}
        words, meaning = _reason_words(reason, scans)
        blocks.append(page.heading(f"{words}: {meaning}") + _cards(contents, first["case"].tolist(), why))
        if len(scans) > len(first):
            blocks.append(page.paragraph(f"and {len(scans) - len(first):,} more", soft=True))
    if len(reasons) > MOST_REASONS:
        blocks.append(page.paragraph(f"{len(reasons) - MOST_REASONS:,} more reasons stand in the table above."))
    return "".join(blocks) or page.paragraph("None.")


def _cards(contents: Contents, cases: Sequence[str], why: Mapping[str, Sequence[str]]) -> str:
    rows = contents.rows[contents.rows["case"].isin(cases)].drop_duplicates("case").set_index("case", drop=False)
    shown_rows: Iterable[Any] = rows.loc[list(cases)].itertuples()  # mypy does not know its columns
    cards = [
        page.card(
            row.case, _facts(row), why.get(row.case, ()), contents.pictures.get(row.case), _no_picture(contents, row)
        )
        for row in shown_rows
    ]
    return page.scans(cards) if cards else ""


def _no_picture(contents: Contents, row: Any) -> str:
    return "picture left out: page too large" if row.case in contents.too_many else "no picture"


def _facts(row: Any) -> list[str]:
    who = " · ".join(
        part for part in (row.dataset, row.subject, row.session, row.modality or "unknown modality") if part
    )
    size = f"{row.size_x} × {row.size_y} × {row.size_z} voxels" if row.size_x else "size unknown"
    spacing = " × ".join(f"{edge:.3g}" for edge in (row.spacing_x, row.spacing_y, row.spacing_z))
    return [who, f"{size}, {spacing} mm" if "nan" not in spacing else f"{size}, spacing unknown"]


def _about(contents: Contents) -> str:
    settings = {key: value for key, value in contents.catalogue.settings.items() if key != "rules"}
    return page.bullets(
        [
            f"nnssl_mae {__version__}. Sizes and spacings are given from left to right, back to front, bottom to top.",
            f"Outliers: numbers further from the median of their modality than {LIMIT:g} times the usual spread "
            "(between the 10th and 90th percentile, as of a normal distribution), and pictures that are unlike "
            f"the median picture or resemble it better when turned. Modalities with fewer than {FEWEST} scans are "
            "compared with all.",
            f"At most {MOST_OUTLIERS} outliers and {MOST_OF_A_REASON} rejected scans of each of {MOST_REASONS} reasons "
            "are shown with a picture, and fewer where the page would become too large. The table catalogue.csv holds "
            "every scan.",
            *(f"{key}: {shown(value)}" for key, value in sorted(settings.items())),
        ]
    )
