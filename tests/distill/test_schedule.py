import pytest
import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from trd_ray.distill.schedule import share_of_lr


def test_no_update_is_wasted_and_the_warm_up_ends_at_the_full_rate():
    assert [share_of_lr(update, 4, 20, 0.1) for update in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert share_of_lr(0, 1, 20, 0.1) == share_of_lr(0, 0, 20, 0.1) == 1.0
    assert share_of_lr(0, 20, 20, 0.1) == 0.05 and share_of_lr(19, 20, 20, 0.1) == 1.0
    assert share_of_lr(20, 4, 20, 0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [0, 3])
def test_after_the_warm_up_it_is_the_schedule_of_transformers(warmup):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, 17, min_lr_rate=0.1)
    for update in range(18):
        if update >= warmup:
            assert share_of_lr(update, warmup, 17, 0.1) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
