"""What the numbers mean, in words, and the limits by which that is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nnssl_mae.probe.reconstruction import NETWORK, AtRatio, Reconstructions
from nnssl_mae.probe.result import Collapse, LinearProbe, Probed

Worth = Literal["yes", "probably", "unclear", "no"]

R2_MARGIN = 0.01
"""R2 that counts as a difference: less than this changes with which blocks happen to be hidden."""
RANK_SHARE = 0.5
"""Of the effective rank of the worst untrained network: with less than half of its directions, training took away."""
MOST_DEAD = 0.5
"""Share of dead channels from which a stage counts as collapsed: fine-tuning then has the smaller half to work with."""
MOST_ALIKE = 0.99
"""Mean cosine from which all places look the same to the last stage."""
DICE_MARGIN = 0.01
"""Least Dice that counts as a difference, however close the untrained networks lie together."""
TREND_SPREADS = 2.0
"""Standard deviations between untrained networks that the Dice of a run has to move by for a word on its trend."""

_HEADLINES = {
    "yes": "Worth fine-tuning.",
    "probably": "Probably worth fine-tuning; --labels would tell whether its features carry anatomy.",
    "unclear": "These numbers do not tell whether it is worth fine-tuning.",
    "no": "Not worth fine-tuning as it is.",
}


@dataclass(frozen=True)
class Verdict:
    """The answer and its reasons."""

    worth: Worth
    reasons: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The answer in a sentence."""
        return _HEADLINES[self.worth]


def verdict(found: Probed) -> Verdict:
    """The answer to: is this run worth fine-tuning?

    With labels, "yes" needs three things at once: a linear probe better than another untrained network would be (see
    :meth:`nnssl_mae.probe.result.LinearProbe.prediction_limit`), better than one of raw intensities, and hidden blocks
    reconstructed better than every baseline, where there is a decoder to ask. Of networks that never trained, at most
    every fortieth gets past the first of these. Without labels, "probably" needs the last, and at more than half of all
    ratios: it shows that something was learnt, not that it helps. Where a filling that learnt nothing is as good at
    half of the ratios, the answer is "unclear".
    """
    collapsed = is_collapsed(found.collapse)
    reasons = [
        *([] if found.reconstructions is None else [_on_reconstruction(found.reconstructions)]),
        _on_features(found.collapse),
        *([] if found.linear is None else [_on_linear(found.linear)]),
    ]
    worth = _worth(found.reconstructions, collapsed, found.linear)
    if worth == "unclear":
        reasons.append(_why_unclear(found.reconstructions, found.linear))
    return Verdict(worth, tuple(reasons))


def _worth(filled: Reconstructions | None, collapsed: bool, linear: LinearProbe | None) -> Worth:
    if collapsed:
        return "no"
    if linear is None:
        return _worth_without_labels(filled)
    learnt = _has_learnt(filled)
    if _beats_untrained(linear):
        return "yes" if _beats_raw(linear) and learnt is not False else "unclear"
    # Few untrained networks prove little: a gain that another draw could give is no proof of the contrary either.
    return "no" if learnt is False or _gain(linear) <= 0 else "unclear"


def _worth_without_labels(filled: Reconstructions | None) -> Worth:
    if filled is None:
        return "unclear"
    if not _is_better(filled.as_trained):
        return "no"
    return "probably" if 2 * len(_not_better(filled)) < len(filled.at) else "unclear"


def _why_unclear(filled: Reconstructions | None, linear: LinearProbe | None) -> str:
    """What is missing for a yes."""
    if linear is None:
        return _why_unclear_without_labels(filled)
    missing = []
    if not _beats_untrained(linear):
        missing.append(
            f"its lead of {_gain(linear):.3f} Dice is within the {_least_gain(linear):.3f} that another untrained "
            "network could have (more networks with --random narrow that)"
        )
    if not _beats_raw(linear):
        missing.append(
            "raw intensities do as well or better, so these labels follow from brightness and say little of features "
            "(give labels that need more)"
        )
    if _has_learnt(filled) is False:
        missing.append("hidden blocks are reconstructed no better than by what learnt nothing")
    return f"No yes, because {'; and '.join(missing)}."


def _why_unclear_without_labels(filled: Reconstructions | None) -> str:
    if filled is None:
        return "There is neither a decoder to ask nor a label: --labels would tell more."
    lost = _not_better(filled)
    fillings = " or ".join(dict.fromkeys(_in_words(at.best_baseline) for at in lost))
    return (
        f"At {len(lost)} of {len(filled.at)} ratios {fillings}, which learnt nothing, does as well or better; without "
        "labels such a reconstruction says little: --labels would tell more."
    )


def _is_better(at: AtRatio) -> bool:
    return at.mean_r2(NETWORK) > at.mean_r2(at.best_baseline) + R2_MARGIN


def _not_better(filled: Reconstructions) -> list[AtRatio]:
    """The ratios at which a filling that learnt nothing is as good as the network, or better."""
    return [at for at in filled.at if not _is_better(at)]


def _has_learnt(found: Reconstructions | None) -> bool | None:
    return None if found is None else _is_better(found.as_trained)


def _on_reconstruction(found: Reconstructions) -> str:
    at, better = found.as_trained, len(found.at) - len(_not_better(found))
    where = f"at {at.ratio:.0%} hidden R2 {at.mean_r2(NETWORK):.2f} against {at.mean_r2(at.best_baseline):.2f}"
    where += f" ({at.best_baseline}), better on {at.wins:.0%} of the scans"
    if better == len(found.at):
        return f"Reconstructs better than every baseline at all ratios: {where}."
    if _is_better(at):
        return f"Reconstructs better than every baseline at {better} of {len(found.at)} ratios: {where}."
    return (
        f"Reconstructs no better than {_in_words(at.best_baseline)}, which learnt nothing: {where}. Train longer, or "
        "check the data and the learning rate."
    )


def _in_words(baseline: str) -> str:
    return {"trilinear": "trilinear inpainting", "nearest block": "the nearest visible block"}.get(
        baseline, "the mean of what is visible"
    )


def is_collapsed(found: Collapse) -> bool:
    """Whether the last stage uses far fewer directions than untrained filters do, or half the channels of one died."""
    deepest, (_, least) = found.trained[-1], found.random_rank(-1)
    too_few = deepest.effective_rank < RANK_SHARE * least
    alike = deepest.cosine > MOST_ALIKE and deepest.cosine > max(uses[-1].cosine for uses in found.random)
    return too_few or alike or _most_dead(found) > MOST_DEAD


def _most_dead(found: Collapse) -> float:
    return max(use.dead for use in found.trained)


def _on_features(found: Collapse) -> str:
    deepest, (mean, _) = found.trained[-1], found.random_rank(-1)
    uses = (
        f"features of the last stage use {deepest.effective_rank:.1f} of {deepest.channels} directions (untrained "
        f"{mean:.1f}), {_most_dead(found):.0%} of the channels of the worst stage are dead, mean cosine "
        f"{deepest.cosine:.2f}"
    )
    return f"Collapsed: {uses}." if is_collapsed(found) else f"Not collapsed: {uses}."


def _gain(found: LinearProbe) -> float:
    return found.trained.mean_dice - found.random_mean


def _least_gain(found: LinearProbe) -> float:
    return max(found.prediction_limit, DICE_MARGIN)


def _beats_untrained(found: LinearProbe) -> bool:
    return _gain(found) > _least_gain(found)


def _beats_raw(found: LinearProbe) -> bool:
    return found.trained.mean_dice > found.raw.mean_dice + DICE_MARGIN


def _on_linear(found: LinearProbe) -> str:
    numbers = (
        f"linear probe Dice {found.trained.mean_dice:.2f} against {found.random_mean:.2f} (untrained, "
        f"{len(found.random)} networks, another would stay within ± {found.prediction_limit:.3f}) and "
        f"{found.raw.mean_dice:.2f} (raw intensities), {found.scans} scans, better than every untrained network on "
        f"{found.wins:.0%} of them"
    )
    if _beats_untrained(found):
        better_than = "untrained ones and than raw intensities" if _beats_raw(found) else "untrained ones"
        return f"Its features are better than {better_than}: {numbers}."
    if _gain(found) < -_least_gain(found):
        return f"Its features are worse than untrained ones: {numbers}."
    return f"Its features are not clearly better than untrained ones: {numbers}."


def trend(found: Sequence[Probed]) -> str | None:
    """When to stop, from several checkpoints of one run in the order of their epochs; None if they are not that.

    The last checkpoint is compared with the best one before it: by the linear probe where there is one, else by R2 at
    the ratio of the pre-training.
    """
    one_run = len({each.method for each in found}) == 1 and all(each.epochs is not None for each in found)
    if len(found) < 2 or not one_run or len({each.epochs for each in found}) < 2:
        return None
    if all(each.linear is not None for each in found):
        scores = [each.linear.trained.mean_dice for each in found if each.linear is not None]
        margin, what = max(_trend_margin(each.linear) for each in found if each.linear is not None), "linear probe Dice"
    elif all(each.reconstructions is not None for each in found):
        each_at = [each.reconstructions.as_trained for each in found if each.reconstructions is not None]
        scores, margin, what = [at.mean_r2(NETWORK) for at in each_at], R2_MARGIN, "R2"
    else:
        return None
    return _on_trend(found, scores, margin, what)


def _trend_margin(found: LinearProbe) -> float:
    return max(TREND_SPREADS * found.random_sd, DICE_MARGIN)


def _on_trend(found: Sequence[Probed], scores: Sequence[float], margin: float, what: str) -> str:
    best = max(range(len(scores) - 1), key=lambda place: scores[place])
    numbers = f"{what} {scores[best]:.3f} at {found[best].title}, {scores[-1]:.3f} at {found[-1].title}"
    if scores[-1] > scores[best] + margin:
        return f"Still improving ({numbers}): train on."
    if scores[-1] < scores[best] - margin:
        return f"It has become worse ({numbers}): use {found[best].label}."
    return f"No more than {margin:.3f} was gained since {found[best].title} ({numbers}): more training changes little."
