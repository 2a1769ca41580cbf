"""Learning rates by the epoch."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from monai_ext.data.batching import Kind, ModalityConsistentBatches
from monai_ext.training.schedules import constant_then_linear, epochs_of, rates_of, set_rates, set_rates_of


def rates(*, epochs: int, constant: int) -> list[float]:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    schedule = constant_then_linear(optimizer, epochs=epochs, constant=constant)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0
    return found


def test_the_rate_is_constant_then_falls_in_even_steps_to_zero():
    assert rates(epochs=8, constant=4) == pytest.approx([2e-4] * 5 + [1.5e-4, 1e-4, 0.5e-4])


def test_one_epoch_is_learnt_at_the_full_rate():
    assert rates(epochs=1, constant=0) == [2e-4]


def test_a_constant_part_beyond_the_training_is_refused():
    with pytest.raises(ValueError, match="constant must be from 0 to below the 3 epochs, got 3"):
        rates(epochs=3, constant=3)


@pytest.mark.parametrize(("steps", "epochs"), [(None, 9), (1, 1), (4, 1), (5, 2), (12, 3), (13, 4)])
def test_so_many_steps_last_as_many_epochs_as_the_sampler_needs_for_them(steps: int | None, epochs: int):
    kinds = [Kind("ixi", (True, True))] * 9 + [Kind("brats", (True, False))] * 2
    assert len(ModalityConsistentBatches(kinds, batch_size=4)) == 4  # 3 of one kind, 1 of the other
    assert epochs_of(epochs=9, steps=steps, kinds=kinds, batch_size=4) == epochs


def test_a_training_that_is_made_longer_has_the_longer_ones_rate():
    def schedule(epochs: int) -> LambdaLR:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        return constant_then_linear(optimizer, epochs=epochs, constant=0)

    short, long = schedule(1), schedule(4)
    short.optimizer.step()
    short.step()
    assert short.optimizer.param_groups[0]["lr"] == 0
    long.load_state_dict(short.state_dict())
    long.optimizer.load_state_dict(short.optimizer.state_dict())
    set_rates([long, object()])
    assert long.optimizer.param_groups[0]["lr"] == 0.5 * 0.75


def test_a_training_that_is_resumed_at_another_rate_has_that_rate() -> None:
    def built(rate: float) -> tuple[torch.optim.Optimizer, LambdaLR]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
        return optimizer, constant_then_linear(optimizer, epochs=4, constant=2)

    (before, schedule), (after, again) = built(1.0), built(0.1)
    for _ in range(3):
        before.step()
        schedule.step()
    asked = rates_of(after)
    after.load_state_dict(before.state_dict())
    again.load_state_dict(schedule.state_dict())
    set_rates_of(after, asked, [again])
    set_rates([again])
    assert after.param_groups[0]["lr"] == pytest.approx(0.05)
    after.step()
    again.step()
    assert after.param_groups[0]["lr"] == 0
