import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.patches.splits import hold_out_by_subject


def cohort(subjects: int, scans: int) -> dict[str, str]:
    return {f"s{s:05d}_{i}": f"s{s:05d}" for s in range(subjects) for i in range(scans)}


@pytest.mark.parametrize(("subjects", "held_out"), [(100, 5), (2000, 20), (200_000, 1000)])
def test_one_percent_at_least_5_at_most_1000(subjects: int, held_out: int) -> None:
    training, validation = hold_out_by_subject(cohort(subjects, 1), seed=1)
    assert len(validation) == held_out
    assert len(training) == subjects - held_out


def test_all_scans_of_a_subject_are_on_one_side() -> None:
    cases = cohort(20, 3)
    training, validation = hold_out_by_subject(cases, seed=1)
    assert sorted(training + validation) == sorted(cases)
    assert not {cases[c] for c in training} & {cases[c] for c in validation}
    assert len(validation) == 6  # five wanted, whole subjects of three


def test_the_draw_is_fixed_by_the_seed_not_by_the_order() -> None:
    cases = cohort(50, 2)
    shuffled = dict(reversed(cases.items()))
    assert hold_out_by_subject(cases, seed=3) == hold_out_by_subject(shuffled, seed=3)
    assert hold_out_by_subject(cases, seed=3) != hold_out_by_subject(cases, seed=4)


@pytest.mark.parametrize("cases", [cohort(5, 1), cohort(1, 40), cohort(2, 3) | {"x": "s00000"}])
def test_refused_where_no_training_subject_would_be_left(cases: dict[str, str]) -> None:
    if len(set(cases.values())) == 2:
        cases = dict(list(cases.items())[:4])
    with pytest.raises(UserError, match="leaves no subject for training"):
        hold_out_by_subject(cases, seed=1)
