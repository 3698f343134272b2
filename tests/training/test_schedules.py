from itertools import pairwise

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnssl_mae.recipes.finetuning import finetune_recipe
from nnssl_mae.training.schedules import FinetuneSchedule, learning_rate


def test_warmup_rises_in_equal_steps_to_the_peak_then_falls_to_zero() -> None:
    recipe = finetune_recipe(False, 1000, 250)
    rates = [learning_rate(recipe, epoch) for epoch in range(1000)]
    assert rates[0] == pytest.approx(1e-3 / 50)
    assert rates[49] == rates[50] == 1e-3
    assert max(rates) == 1e-3
    steps = [b - a for a, b in pairwise(rates[:50])]
    assert steps == pytest.approx([1e-3 / 50] * 49)
    assert all(a > b for a, b in pairwise(rates[50:]))
    assert 0 < rates[-1] < 1e-5
    assert rates[525] == pytest.approx(1e-3 * 0.5**0.9)


def test_the_control_follows_nnunets_own_schedule() -> None:
    recipe = finetune_recipe(True, 100, 250)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-2)
    stock = PolyLRScheduler(optimizer, 1e-2, 100)
    for epoch in (0, 1, 50, 99):
        stock.step(epoch)
        assert learning_rate(recipe, epoch) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_the_schedule_sets_every_group() -> None:
    parameters = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p]} for p in parameters], lr=1.0)
    schedule = FinetuneSchedule(optimizer, finetune_recipe(False, 150, 250))
    schedule.step(14)
    assert schedule.get_last_lr() == [1e-3, 1e-3]
