"""What the papers compare with: the contract of every network, and each one's own shape."""

from collections.abc import Callable

import pytest
import torch
from check_network import check_network
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_ext.networks import CAGR, I2IMamba, Pix2PixUNet, ResNet
from monai_ext.networks.baselines import cagr_resnet, cagr_unet

SMALL: dict[str, Callable[..., nn.Module]] = {
    "pix2pix": lambda: Pix2PixUNet(in_channels=3, width=8, depth=3),
    "resnet": lambda: ResNet(in_channels=3, width=8, blocks=2),
    "i2i_mamba": lambda: I2IMamba(in_channels=3, width=8, state_size=2, directions=2),
}


@pytest.mark.parametrize("name", SMALL)
def test_it_keeps_the_contract(name: str):
    check_network(SMALL[name], in_channels=3, out_channels=1, sizes=((24, 40), (17, 30), (1, 1)), onnx=False)


def size_of(network: type[nn.Module]) -> tuple[float, float]:
    """Millions of parameters, and GFLOP at 256 x 256."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        made = network().eval()
        made(torch.rand(1, 2, 256, 256))
    return sum(value.numel() for value in made.parameters()) / 1e6, counter.get_total_flops() / 1e9


@pytest.mark.parametrize(
    ("network", "millions", "gflop"), [(Pix2PixUNet, 54.41, 11.9), (ResNet, 11.66, 101.6), (I2IMamba, 13.76, 117.8)]
)
def test_its_size_is_stated(network: type[nn.Module], millions: float, gflop: float):
    found = size_of(network)
    assert found[0] == pytest.approx(millions, abs=0.01)
    assert found[1] == pytest.approx(gflop, abs=0.1)


@pytest.mark.parametrize(("make", "count"), [(cagr_resnet, 9), (cagr_unet, 7)])
def test_what_cagr_costs_another_network_is_stated(make: Callable[..., nn.Module], count: int):
    """Table VIII's kind of networks: 1.13 and 1.14 times the parameters, 1.11 and 1.10 the operations."""
    found = []
    for cagr in (False, True):
        network = make(cagr=cagr).eval()
        assert sum(isinstance(module, CAGR) for module in network.modules()) == (count if cagr else 0)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.rand(1, 2, 64, 64))
        found.append((sum(value.numel() for value in network.parameters()), counter.get_total_flops()))
    more = [with_cagr / without for without, with_cagr in zip(*found, strict=True)]
    assert more == pytest.approx([1.13, 1.11] if count == 9 else [1.14, 1.10], abs=0.01)


def test_the_u_net_of_pix2pix_halves_256_pixels_to_one_and_has_no_skip_at_full_size():
    network = Pix2PixUNet(width=4).eval()
    sizes = []
    for down in network.downs:
        down.register_forward_hook(lambda _, __, y: sizes.append(y.shape[2]))
    network(torch.rand(1, 2, 256, 256))
    assert sizes == [128, 64, 32, 16, 8, 4, 2, 1]
    kernels = {m.kernel_size for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}
    assert kernels == {(4, 4)}
    convolutions = [down[-2] if isinstance(down[-1], nn.BatchNorm2d) else down[-1] for down in network.downs]
    assert [conv.out_channels for conv in convolutions] == [4, 8, 16, 32, 32, 32, 32, 32]
    assert sum(isinstance(module, nn.Dropout) for module in network.modules()) == 3
    assert network.last[1].in_channels == 2 * 4, "the skip of half of the size; none is of the image itself"


def test_without_a_skip_the_u_net_would_be_blind():
    """A map of one pixel holds no place: what lies where comes by the skips."""
    torch.manual_seed(0)
    network, x = Pix2PixUNet(width=4, depth=4).eval(), torch.rand(1, 2, 16, 16, requires_grad=True)
    network(x)[0, 0, 8, 8].backward()
    assert x.grad[0, :, 8, 8].abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pix2PixUNet(depth=1), "depth must be at least 2, got 1"),
        (lambda: ResNet(width=0), "width must be at least 1, got 0"),
        (lambda: I2IMamba(directions=0), "directions must be at least 1, got 0"),
    ],
)
def test_what_makes_no_network_is_refused(make: Callable[[], nn.Module], message: str):
    with pytest.raises(ValueError, match=message):
        make()
