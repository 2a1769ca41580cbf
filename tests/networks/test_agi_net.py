"""AGI-Net: the paper's parameters and operations, CAGR's beginnings, and the contract of every network."""

import pytest
import torch
from check_network import check_network
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets import BasicUNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_ext.networks import CAGR, AGINet, with_cagr

STAGES = ("down1", "down2", "down3", "body", "up1", "up2", "up3")


def millions(network: nn.Module) -> str:
    return f"{sum(value.numel() for value in network.parameters()) / 1e6:.3f}"


def gflop(network: nn.Module) -> float:
    """Of 256 x 256, two for a multiply-add, on the meta device: nothing is computed."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.rand(1, 2, 256, 256))
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize(
    ("groups", "expected"), [(1, "33.578"), (2, "25.311"), (4, "21.189"), (8, "19.150"), (16, "18.174")]
)
def test_its_parameters_by_groups_are_those_of_table_7(groups: int, expected: str):
    assert millions(AGINet(groups=groups)) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    list(enumerate(["17.008", "17.033", "17.122", "17.465", "18.807", "19.150", "19.239", "19.264"])),
)
def test_its_parameters_by_stages_are_those_of_table_9(count: int, expected: str):
    assert millions(AGINet(stages=STAGES[:count])) == expected


def test_without_stages_it_is_the_resunet():
    network = AGINet(stages=())
    assert sum(value.numel() for value in network.parameters()) == 17_008_320
    assert all(value.dim() == 4 for value in network.parameters()), "no bias, no norm"


@pytest.mark.parametrize(("stages", "expected"), [(STAGES[:5], 154.28), ((), 141.91)])
def test_its_operations_are_the_papers_to_one_percent(stages: tuple[str, ...], expected: float):
    assert gflop(AGINet(stages=stages)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("options", [{}, {"rolling": False}, {"attention": False, "groups": 2}], ids=str)
def test_it_keeps_the_contract_in_2d(options: dict):
    def make() -> nn.Module:
        return AGINet(**{"in_channels": 3, "out_channels": 2, "width": 8, "stages": ("down1", "body"), **options})

    check_network(make, in_channels=3, out_channels=2, sizes=((24, 40), (17, 30), (1, 1)), onnx=not options)


def test_it_keeps_the_contract_in_3d():
    def make() -> nn.Module:
        return AGINet(spatial_dims=3, width=8, stages=("down2", "up1"))

    check_network(make, in_channels=2, out_channels=1, sizes=((8, 16, 8), (9, 7, 12)), onnx=False)


def test_a_size_that_is_no_multiple_of_8_is_padded_by_its_edge():
    network, image = AGINet(width=8).eval(), torch.rand(1, 2, 19, 16)
    padded = torch.cat([image, image[:, :, -1:].expand(-1, -1, 5, -1)], dim=2)
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(padded)[:, :, :19])


@pytest.mark.parametrize("size", [(64, 64), (4, 4)])  # one where kernels, one where images take the attention
def test_cagr_begins_as_the_plain_convolution_of_what_attention_lets_through(size: tuple[int, int]):
    block, x = CAGR(16, 24, groups=4), torch.rand(2, 16, *size)
    attention = block.attention(x)
    plain = nn.functional.conv2d(x * attention[:, :, None, None], block.conv.weight, padding=1)
    torch.testing.assert_close(block(x), plain * torch.sigmoid(torch.ones(())), rtol=1e-4, atol=1e-5)


def test_offsets_learn_from_the_first_step():
    block = CAGR(16, 16, groups=4)
    block(torch.rand(2, 16, 12, 12)).square().sum().backward()
    assert block.routing.offsets.weight.grad.abs().min() > 0


def test_cagr_takes_the_place_of_a_convolution_of_any_odd_kernel():
    assert CAGR(8, 12, kernel_size=5, groups=2)(torch.rand(1, 8, 9, 11)).shape == (1, 12, 9, 11)


def test_attention_weighs_a_group_by_itself_and_by_one_channel_of_each_group():
    """Eq. 1: the channel shuffle brings channel j of every group to group j."""
    block = CAGR(4, 4, groups=2).attention
    nn.init.zeros_(block.fuse.weight)
    block.fuse.weight.data[0, 2] = 1  # the first channel of group 0 reads the first shuffled one of its own
    block.fuse.weight.data[1, 3] = 1
    x = torch.rand(1, 4, 6, 6)
    z = block.pool(x)
    torch.testing.assert_close(block(x)[:, :2], torch.stack([z[:, 0], z[:, 2]], 1).sigmoid())


@pytest.mark.parametrize("kernel_size", [1, 2, 4])
def test_kernels_that_cannot_roll_are_refused(kernel_size: int):
    with pytest.raises(ValueError, match=f"kernel_size must be odd and at least 3, for .*, got {kernel_size}"):
        CAGR(8, 8, kernel_size=kernel_size)


def make_unet(**options: object) -> nn.Module:
    return BasicUNet(spatial_dims=2, in_channels=2, out_channels=1, features=(8, 8, 16, 16, 16, 8), **options)


def of_type(network: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, kind)]


def test_cagr_goes_into_monais_unet_which_keeps_the_contract():
    network = with_cagr(make_unet(), groups=4)
    replaced = of_type(network, CAGR)
    plain = [name for name in of_type(network, nn.Conv2d) if not any(name.startswith(own) for own in replaced)]
    assert len(replaced) == 17
    assert plain == ["conv_0.conv_0.conv", "final_conv"], "two channels, and a kernel of 1"
    check_network(
        lambda: with_cagr(make_unet(), groups=4), in_channels=2, out_channels=1, sizes=((32, 48),), onnx=False
    )


def test_cagr_goes_into_monais_residual_blocks_in_2d_and_3d():
    for dims in (2, 3):
        block = ResBlock(spatial_dims=dims, in_channels=8, norm=("INSTANCE", {"affine": True}))
        x = torch.rand(2, 8, *[12] * dims)
        before = block(x)
        weight = block.conv1.conv.weight
        with_cagr(block, groups=4, layers=["conv1.conv"], attention=False)
        assert of_type(block, CAGR) == ["conv1.conv"]
        assert block.conv1.conv.conv.weight is weight, "what was learnt stays"
        made = block(x)
        assert made.shape == before.shape
        assert not torch.equal(made, before)
        made.square().mean().backward()
        assert block.conv1.conv.routing.offsets.weight.grad.any()


def test_a_bias_is_kept_and_counted_once():
    network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
    bias = network[0].bias
    nn.init.constant_(bias, 5.0)
    x = torch.rand(2, 8, 9, 9)
    with_bias = with_cagr(network, groups=2)(x)
    network[0].conv.bias = nn.Parameter(torch.zeros(8))
    torch.testing.assert_close(with_bias, network(x) + 5)


def test_without_layers_a_network_stays_as_it_is():
    assert of_type(with_cagr(make_unet(), layers=[]), CAGR) == []


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv2d(8, 8, 3, stride=2, padding=1), r"stride \(2, 2\) and dilation \(1, 1\), and a roll by 1 is to move"),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2), r"stride \(1, 1\) and dilation \(2, 2\)"),
        (nn.Conv2d(8, 8, 4, padding=1), r"its kernel is \(4, 4\)"),
        (nn.Conv2d(8, 8, 1), r"its kernel is \(1, 1\)"),
        (nn.Conv2d(8, 8, (3, 5), padding=(1, 2)), r"its kernel is \(3, 5\)"),
        (nn.Conv2d(8, 8, 3), r"it pads \(0, 0\) by 'zeros'"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "by 'reflect', and CAGR pads zeros"),
        (nn.Conv2d(8, 8, 3, padding=1, groups=2), "it has 2 groups of its own"),
        (nn.Conv2d(6, 8, 3, padding=1), "groups=4 does not divide its 6 channels"),
        (nn.ConvTranspose2d(8, 8, 3, padding=1), "it is no convolution in 2D or 3D"),
    ],
    ids=str,
)
def test_a_convolution_that_cagr_cannot_stand_in_for_is_refused_with_the_reason(conv: nn.Module, reason: str):
    network = nn.Sequential(conv)
    with pytest.raises(ValueError, match=f"CAGR cannot take the place of '0': .*{reason}"):
        with_cagr(network, groups=4, layers=["0"])
    with pytest.raises(ValueError, match="CAGR with groups=4 can take the place of no convolution of Sequential"):
        with_cagr(network, groups=4)
    assert network[0] is conv


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ("down4",)}, "got 'down4'; did you mean 'down"),
        ({"groups": 7}, "groups must divide in_channels, got groups=7, in_channels=64"),
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        AGINet(**options)


def test_cagr_stands_wherever_a_convolution_stood_in_its_dtype() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    network = with_cagr(nn.Sequential(shared, nn.ReLU(), shared).double(), groups=2)
    assert isinstance(network[0], CAGR)
    assert network[2] is network[0]
    assert network(torch.rand(1, 8, 6, 6, dtype=torch.float64)).dtype == torch.float64
    assert isinstance(with_cagr(nn.Conv2d(8, 8, 3, padding=1), groups=2), CAGR)
