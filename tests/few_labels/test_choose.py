"""Orders of cases: whole, repeatable, with every label early, different between repeats, by subject."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnssl_mae.errors import UserError
from nnssl_mae.few_labels.choose import draw_order, hold_out, missing_classes
from nnssl_mae.few_labels.contents import Content

Pool = tuple[dict[str, str], dict[str, Content]]
"""Subject and contents of each case."""


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """2 to 12 cases of one or more subjects, with 1 to 4 labels that are often absent."""
    count, labels = draw(st.integers(2, 12)), draw(st.integers(1, 4))
    voxels = st.lists(st.sampled_from([0, 0, 1, 50, 3000]), min_size=labels, max_size=labels)
    names = [f"c{index}" for index in range(count)]
    subjects = {name: f"s{draw(st.integers(0, count - 1))}" for name in names}
    return subjects, {name: Content(tuple(draw(voxels))) for name in names}


def _pool(*voxels: tuple[int, ...]) -> Pool:
    names = [f"c{index:03d}" for index in range(len(voxels))]
    return {name: name for name in names}, {name: Content(v) for name, v in zip(names, voxels, strict=True)}


def _repeats(pool: Pool, count: int, seed: int = 0) -> list[list[str]]:
    orders: list[list[str]] = []
    for _ in range(count):
        orders.append(draw_order(list(pool[0]), *pool, orders, seed))
    return orders


@settings(max_examples=60, deadline=None)
@given(pools(), st.integers(0, 3), st.randoms())
def test_every_order_is_the_whole_pool_whatever_the_order_of_its_names(pool: Pool, seed: int, random: object) -> None:
    orders = _repeats(pool, 3, seed)
    assert all(sorted(order) == sorted(pool[0]) for order in orders)
    shuffled = list(pool[0])
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert draw_order(shuffled, *pool, orders[:2], seed) == orders[2]


@settings(max_examples=60, deadline=None)
@given(pools())
def test_a_label_is_missing_only_where_another_new_one_was_possible(pool: Pool) -> None:
    contents = pool[1]
    labels = range(len(next(iter(contents.values())).voxels))
    order = _repeats(pool, 1)[0]
    seen: set[int] = set()
    for position, case in enumerate(order):
        new = [len({n for n in labels if contents[other].voxels[n]} - seen) for other in order[position:]]
        assert new[0] == max(new)
        seen |= {n for n in labels if contents[case].voxels[n]}


@settings(max_examples=60, deadline=None)
@given(pools())
def test_two_repeats_have_the_same_set_only_where_no_other_is_left(pool: Pool) -> None:
    orders = _repeats(pool, 2)
    for size in range(1, len(pool[0])):
        assert set(orders[0][:size]) != set(orders[1][:size])


def test_repeats_share_no_case_while_each_can_have_its_own() -> None:
    rng = np.random.default_rng(0)
    pool = _pool(*[tuple(int(v) for v in rng.integers(1, 1000, 3)) for _ in range(60)])
    orders = _repeats(pool, 4)
    for repeats in (2, 3, 4):
        share = 60 // repeats
        sets = [set(order[:share]) for order in orders[:repeats]]
        assert len(set.union(*sets)) == repeats * share


def test_a_rare_label_is_in_the_first_sets_of_every_repeat() -> None:
    pool = _pool(*[(9, 9, 0)] * 30, (0, 0, 9))
    for order in _repeats(pool, 3):
        assert missing_classes(order[:2], pool[1], ("a", "b", "rare")) == ()


def test_the_first_case_is_the_one_with_most_labels() -> None:
    pool = _pool(*[(5, 0, 0)] * 8, (5, 5, 5))
    assert _repeats(pool, 1)[0][0] == "c008"


def test_each_seed_draws_anew_and_the_same_seed_the_same() -> None:
    pool = _pool(*[(index + 1,) for index in range(50)])
    first = [tuple(_repeats(pool, 1, seed)[0][:3]) for seed in range(20)]
    assert len(set(first)) > 15
    assert first == [tuple(_repeats(pool, 1, seed)[0][:3]) for seed in range(20)]


def test_small_sets_have_volumes_nearer_to_those_of_the_pool_than_chance() -> None:
    rng = np.random.default_rng(1)
    volumes = np.exp(rng.normal(6, 1, (100, 2))).astype(int)
    pool = _pool(*[(int(a), int(b)) for a, b in volumes])
    logs = np.log1p(volumes)
    logs = (logs - logs.mean(0)) / logs.std(0)

    def distance(cases: list[str]) -> float:
        return float(np.linalg.norm(logs[[int(case[1:]) for case in cases]].mean(0)))

    ours = np.mean([distance(_repeats(pool, 1, seed)[0][:8]) for seed in range(30)])
    chance = np.mean([distance(list(rng.permutation(sorted(pool[0]))[:8])) for _ in range(300)])
    assert ours < 0.6 * chance


def test_other_subjects_come_before_a_second_scan_of_the_same() -> None:
    subjects = {f"p{person}_{scan}": f"p{person}" for person in range(6) for scan in range(3)}
    contents = {case: Content((1 + index,)) for index, case in enumerate(subjects)}
    for order in _repeats((subjects, contents), 3):
        for round_ in range(3):
            assert len({subjects[case] for case in order[6 * round_ : 6 * round_ + 6]}) == 6


def test_repeats_begin_with_other_subjects() -> None:
    subjects = {f"p{person}_{scan}": f"p{person}" for person in range(6) for scan in range(3)}
    contents = {case: Content((7,)) for case in subjects}
    firsts = [{subjects[case] for case in order[:2]} for order in _repeats((subjects, contents), 3)]
    assert len(set.union(*firsts)) == 6


@settings(max_examples=60, deadline=None)
@given(pools(), st.floats(0.05, 0.6), st.integers(0, 3))
def test_held_out_cases_are_whole_subjects(pool: Pool, share: float, seed: int) -> None:
    subjects, contents = pool
    count = len(set(subjects.values()))
    wanted = max(1, round(share * count))
    if wanted >= count:
        with pytest.raises(UserError, match="leaves none for training"):
            hold_out(subjects, contents, share, seed)
        return
    training, validation = hold_out(subjects, contents, share, seed)
    assert sorted(training + validation) == sorted(subjects)
    held = {subjects[case] for case in validation}
    assert held.isdisjoint(subjects[case] for case in training)
    assert len(held) == wanted


def test_a_large_dataset_with_many_labels_is_ordered_whole() -> None:
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 1000, (1000, 60)) * (rng.random((1000, 60)) < 0.3)
    pool = _pool(*[tuple(int(v) for v in row) for row in voxels])
    assert all(len(order) == 1000 for order in _repeats(pool, 2))
