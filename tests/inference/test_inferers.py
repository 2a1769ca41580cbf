"""A volume's slices through a 2D network or its patches through one in 3D: float32 in [0, 1]."""

from pathlib import Path

import pytest
import torch
from monai.inferers import SliceInferer
from monai.transforms import ResizeWithPadOrCrop
from torch import Tensor, nn

from monai_ext.inference.inferers import PatchesInferer, SlicesInferer
from monai_ext.weights import canvas_of, residual_of, save_weights


def volume(*, channels: int = 2, size: tuple[int, int, int] = (13, 10, 7), seed: int = 0) -> Tensor:
    return torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(seed))


def network(*, out: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, out, 3, padding=1), nn.Sigmoid())


class Counting(nn.Module):
    """Gives its first channel, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return x[:, :1]


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("out", [1, 2])
def test_it_gives_what_monais_slice_inferer_gives(batch_size, out):
    x, net = volume(), network(out=out)
    theirs = SliceInferer(spatial_dim=2, roi_size=(-1, -1), sw_batch_size=2)(x, net)
    ours = SlicesInferer(batch_size=batch_size, amp=False)(x, net)
    assert ours.shape == (1, out, 13, 10, 7)
    torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_slices_in_which_every_source_is_zero_stay_zero_and_cost_nothing():
    x, net = volume(), Counting()
    x[:, :, :, :, [0, 3, 6]] = 0
    x[:, 0, :, :, 1] = 0  # the other source shows something there
    result = SlicesInferer(batch_size=3, amp=False)(x, net)
    torch.testing.assert_close(result, x[:, :1])
    assert net.seen == [(3, 2, 13, 10), (1, 2, 13, 10)]


@torch.no_grad()
def test_an_empty_volume_gives_an_empty_one():
    net = Counting()
    assert not SlicesInferer()(torch.zeros(1, 2, 4, 5, 6), net).any()
    assert net.seen == []


@torch.no_grad()
def test_the_result_is_float32_in_0_to_1_in_bfloat16_too():
    x, net = volume(), network()
    middle = net(x[..., 0]).median()
    whole, half = (SlicesInferer(amp=amp)(x, lambda y: 20 * (net(y) - middle) + 0.5) for amp in (False, "bf16"))
    for result in (whole, half):
        assert result.dtype == torch.float32
        assert result.min() == 0
        assert result.max() == 1
    assert 0 < (whole - half).abs().mean() < 0.03  # bfloat16 has three digits, of which a slope of 20 takes one


def test_a_batch_of_none_and_a_batch_of_volumes_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        SlicesInferer(batch_size=0)
    with pytest.raises(ValueError, match=r"one volume \(1, M, I, J, K\), got \(2, 2, 3, 3, 3\)"):
        SlicesInferer()(torch.zeros(2, 2, 3, 3, 3), network())


@torch.no_grad()
def test_what_else_it_is_given_is_the_networks():
    x = volume()
    result = SlicesInferer(amp=False)(x, lambda y, a, *, b: y[:, :1] * a + b, 0.5, b=0.25)
    torch.testing.assert_close(result, x[:, :1] * 0.5 + 0.25)


def test_patches_of_a_local_network_blend_into_what_it_makes_of_the_whole_volume():
    x = torch.rand(1, 2, 20, 17, 12, generator=torch.Generator().manual_seed(0))
    result = PatchesInferer(patch_size=(8, 8, 8), batch_size=3, amp=False)(x, lambda y: y[:, :1] * y[:, 1:])
    torch.testing.assert_close(result, x[:, :1] * x[:, 1:])


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), (False, torch.float32)])
def test_patches_are_float32_whatever_the_network_computes_in(amp, dtype):
    seen = []

    def network(y: Tensor) -> Tensor:
        seen.append((y @ y.mT).dtype)
        return (3 * y).to(dtype)

    result = PatchesInferer(patch_size=(4, 4, 4), amp=amp)(torch.ones(1, 1, 4, 4, 6), network)
    assert set(seen) == {dtype}
    assert result.dtype is torch.float32
    assert result.max() == 1


def test_neighbours_stand_beside_each_source_and_the_edge_slices_are_repeated():
    x = torch.arange(5.0).expand(1, 2, 1, 1, 5).clone()
    x[:, 1] += 10
    x = (x + 1) / 20
    seen = {}

    def network(y: Tensor) -> Tensor:
        seen.update({round(20 * row[1].item() - 1): row.flatten() for row in y})
        return y[:, :1]

    SlicesInferer(batch_size=2, amp=False, neighbours=1)(x, network)
    for number, near in enumerate(([0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4])):
        expected = torch.tensor([*near, *(10 + one for one in near)])
        torch.testing.assert_close(seen[number], (expected + 1.0) / 20)


@torch.no_grad()
def test_with_a_margin_a_larger_canvas_changes_nothing_at_all():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Conv2d(4, 1, 3, padding=1))
    head = torch.zeros(1, 2, 48, 48, 3)
    head[:, :, 12:36, 12:36] = 0.2 + 0.6 * torch.rand(1, 2, 24, 24, 3)
    wider = torch.zeros(1, 2, 80, 72, 3)
    wider[:, :, 20:68, 22:70] = head
    inferer = SlicesInferer(amp=False, margin=8)
    made, again = inferer(head, net), inferer(wider, net)
    torch.testing.assert_close(again[:, :, 20:68, 22:70], made)
    tight = head[:, :, 12:36, 10:38]  # the head fills its canvas
    torch.testing.assert_close(inferer(tight, net), made[:, :, 12:36, 10:38])
    whole = SlicesInferer(amp=False)
    assert (whole(wider, net)[:, :, 20:68, 22:70] - whole(head, net)).abs().max() > 0.01


@torch.no_grad()
def test_a_canvas_shows_a_slice_as_training_did_and_gives_it_back_where_it_was():
    x, seen = volume(), []

    def network(planes: Tensor) -> Tensor:
        seen.append(planes.clone())
        return planes[:, :1]

    result = SlicesInferer(batch_size=7, amp=False, margin=2, canvas=32)(x, network)
    torch.testing.assert_close(result, x[:, :1])
    shown = ResizeWithPadOrCrop(spatial_size=(32, 32))
    torch.testing.assert_close(seen[0][3], torch.as_tensor(shown(x[0, ..., 3])))
    seen.clear()
    torch.testing.assert_close(SlicesInferer(batch_size=7, amp=False, canvas=11)(x, network), x[:, :1])
    assert seen[0].shape == (7, 2, 16, 11)  # nothing of a larger plane is cut off
    seen.clear()
    SlicesInferer(batch_size=7, amp=False, canvas=13)(x, network)
    assert seen[0].shape == (7, 2, 13, 13)


@pytest.mark.parametrize("weights", [Path("nowhere.pt"), None])
def test_who_says_nothing_of_a_canvas_and_a_residual_has_none(weights: Path | None, tmp_path: Path):
    if weights is None:
        save_weights(weights := tmp_path / "model.pt", network(), {"sources": ["T1"]})
    assert canvas_of(weights) is None
    assert residual_of(weights) == []


def test_weights_tell_their_canvas(tmp_path: Path):
    save_weights(tmp_path / "model.pt", network(), {"canvas": 112})
    assert canvas_of(tmp_path / "model.pt") == 112


@pytest.mark.parametrize("canvas", [0, -8, "112", 112.0, True, [112, 112]])
def test_a_canvas_that_is_no_size_is_refused(canvas: object):
    with pytest.raises(ValueError, match="canvas must be at least 1, or null"):
        SlicesInferer(canvas=canvas)


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match="margin must be at least 0, or null"):
        SlicesInferer(margin=-1)
