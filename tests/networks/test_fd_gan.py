"""FD-GAN: blocks keep to themselves, sources' encoders too, and a decoder draws an anatomy in whatever style."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from check_network import check_network
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from monai_ext.files import sha256, write_json
from monai_ext.networks import FDGAN, ImageDiscriminator
from monai_ext.networks.fd_gan import LAF, SRE, adain
from monai_ext.weights import load_weights

OTHERS = [
    {},
    {"in_channels": 1, "blocks": 1},
    {"in_channels": 3, "blocks": 4, "image_size": 64, "fusion_attention": True},
    {"out_channels": 2, "channels_per_source": 3},
]


def make_network(**options: object) -> FDGAN:
    torch.manual_seed(0)
    return FDGAN(**{"width": 8, **options}).eval()


def make_images(channels: int = 2, *, size: tuple[int, int] = (32, 32), batch: int = 1) -> Tensor:
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def make_laf(blocks: int, *, sources: int = 3, targets: int = 2) -> LAF:
    laf = LAF(sources, targets, blocks=blocks)
    generator = torch.Generator().manual_seed(2)
    for value in laf.parameters():
        nn.init.normal_(value, generator=generator)
    return laf


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_it_keeps_the_contract(options: dict):
    def make() -> nn.Module:
        return FDGAN(**{"width": 8, **options})

    channels = options.get("in_channels", 2) * options.get("channels_per_source", 1)
    check_network(
        make,
        in_channels=channels,
        out_channels=options.get("out_channels", 1),
        sizes=((24, 40), (17, 30), (1, 1)),
        onnx="fusion_attention" in options,
    )


def test_its_size_is_that_of_the_papers_layers():
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = FDGAN()
        content, style = network.content_and_style(torch.rand(1, 2, 256, 256))
        network.decode(content, style)
    assert content.shape == (1, 256, 64, 64)
    assert style.shape == (1, 8)
    assert sum(value.numel() for value in network.parameters()) == 21_200_789
    assert counter.get_total_flops() / 1e9 == pytest.approx(164.3, abs=0.1)


def test_a_source_more_adds_an_encoder_and_its_share_of_the_fusions():
    with torch.device("meta"):
        one, two, three = (sum(value.numel() for value in FDGAN(in_channels=n).parameters()) for n in (1, 2, 3))
    assert two - one == three - two == 5_382_080 + 9 * 256 * 256 + 2 * 2


def test_adain_gives_features_the_mean_and_deviation_of_the_style():
    x = 3 + 5 * torch.randn(4, 6, 16, 16, generator=torch.Generator().manual_seed(0))
    statistics = torch.rand(4, 2, 6) + 0.5
    y = adain(x, statistics)
    torch.testing.assert_close(y.mean((2, 3)), statistics[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y.std((2, 3), correction=0), statistics[:, 1], atol=1e-5, rtol=1e-5)


def test_adain_is_eq_2():
    x, statistics = torch.randn(2, 3, 8, 8), torch.randn(2, 2, 3)
    mean, deviation = x.mean((2, 3), keepdim=True), x.std((2, 3), correction=0, keepdim=True)
    expected = statistics[:, 1, :, None, None] * (x - mean) / deviation + statistics[:, 0, :, None, None]
    torch.testing.assert_close(adain(x, statistics), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("blocks", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("size", [(32, 48), (19, 33)])
def test_with_equal_weights_in_all_blocks_laf_is_a_1x1_convolution(blocks: int, size: tuple[int, int]):
    laf = make_laf(blocks)
    with torch.no_grad():
        for value in laf.parameters():
            value.copy_(value[..., :1, :1].clone().expand_as(value))
    x = make_images(3, size=size, batch=2)
    expected = F.conv2d(x, laf.weight[..., :1, :1], laf.bias[:, 0, 0])
    torch.testing.assert_close(laf(x), expected, atol=1e-5, rtol=1e-5)


def test_each_block_is_a_1x1_convolution_of_its_own():
    laf, x = make_laf(4), make_images(3, size=(16, 24), batch=2)
    rows = []
    for i in range(4):
        row = []
        for j in range(4):
            part = x[:, :, 4 * i : 4 * i + 4, 6 * j : 6 * j + 6]
            row.append(F.conv2d(part, laf.weight[:, :, i : i + 1, j : j + 1], laf.bias[:, i, j]))
        rows.append(torch.cat(row, 3))
    torch.testing.assert_close(laf(x), torch.cat(rows, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("i", "j"), [(0, 0), (0, 2), (3, 1)])
def test_a_block_learns_from_its_own_pixels_alone(i: int, j: int):
    laf = make_laf(4)
    laf(make_images(3, size=(16, 16)))[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].sum().backward()
    for value in laf.parameters():
        learnt = value.grad.reshape(-1, 4, 4).abs().sum(0).nonzero().tolist()
        assert learnt == [[i, j]]


def test_the_grid_scales_with_the_image():
    laf, x = make_laf(4), make_images(3, size=(12, 20))
    torch.testing.assert_close(laf(F.interpolate(x, scale_factor=3.0)), F.interpolate(laf(x), scale_factor=3.0))


def test_on_a_size_that_the_grid_does_not_divide_blocks_differ_by_a_pixel():
    laf = LAF(1, 1, blocks=4)
    with torch.no_grad():
        laf.bias.copy_(torch.arange(16.0).reshape(1, 4, 4))
    sizes = Counter(laf(torch.zeros(1, 1, 18, 4)).int().flatten().tolist()).values()
    assert set(sizes) == {4, 5}


def test_laf_calls_as_few_operations_for_256_blocks_as_for_one():
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for blocks in (1, 16):
        laf = make_laf(blocks)
        with Count() as count:
            laf(make_images(3)).sum().backward()
        counts.append(count.calls)
    assert counts[0] == counts[1]


def test_the_pseudo_target_starts_as_the_mean_of_the_sources_and_one_source_as_itself():
    x = make_images(3, size=(17, 20))
    torch.testing.assert_close(LAF(3, 1, blocks=4)(x), x.mean(1, keepdim=True))
    assert torch.equal(LAF(1, 1, blocks=4)(x[:, :1]), x[:, :1])


def test_the_groups_are_encoders_of_their_own():
    torch.manual_seed(0)
    together, x = SRE(3, sources=2, width=4), make_images(6, batch=2)
    for source, features in enumerate(together(x).chunk(2, 1)):
        alone = SRE(3, sources=1, width=4)
        alone.load_state_dict({name: value.chunk(2)[source] for name, value in together.state_dict().items()})
        torch.testing.assert_close(alone(x.chunk(2, 1)[source]), features, atol=1e-5, rtol=1e-5)


def test_slices_beside_a_source_go_to_its_encoder():
    network, x = make_network(channels_per_source=3), make_images(6)
    changed = x.clone()
    changed[:, 2] = changed[:, 2].flip(-1)
    first, second = (features.chunk(2, 1) for features in (network.sre(x), network.sre(changed)))
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_how_bright_a_source_is_belongs_to_its_style_and_not_to_the_anatomy():
    network, x = make_network(), make_images()
    content, style = network.content_and_style(x)
    brighter, other = network.content_and_style(2 * x)
    torch.testing.assert_close(brighter, content, atol=1e-3, rtol=1e-3)
    assert (other - style).abs().max() > 0.1 * style.abs().max()


def test_the_prediction_is_the_anatomy_in_the_style_of_the_pseudo_target():
    network, x = make_network(), make_images(size=(18, 21), batch=2)
    prediction, pseudo_target = network.forward_with_pseudo_target(x)
    assert torch.equal(prediction, network(x))
    assert torch.equal(pseudo_target, network.laf(x))
    content, style = network.content_and_style(x)
    assert torch.equal(style, network.style(pseudo_target))
    assert torch.equal(network.decode(content, style)[:, :, :18, :21], prediction)


def test_an_anatomy_can_be_drawn_in_the_style_of_another_contrast():
    network, x = make_network(), make_images()
    content, _ = network.content_and_style(x)
    dark, bright = network.style(x[:, :1]), network.style(1 - 0.5 * x[:, 1:])
    drawn = [network.decode(content, style) for style in (dark, bright)]
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3
    both = network.decode(content.expand(2, -1, -1, -1), torch.cat([dark, bright]))
    torch.testing.assert_close(both, torch.cat(drawn), atol=1e-5, rtol=1e-5)


def make_anatomies(count: int, *, size: int = 32, contrasts: int = 2) -> Tensor:
    """Blobs in a disc, each image with contrasts of its own strength: what a style should tell apart."""
    generator = torch.Generator().manual_seed(3)
    blobs = F.interpolate(torch.rand(count, contrasts, 5, 5, generator=generator), (size, size), mode="bilinear")
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return blobs * torch.rand(count, contrasts, 1, 1, generator=generator) * (y**2 + x**2 < 0.7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [8, 64])
def test_from_the_first_step_the_style_varies_with_the_image_around_a_plain_instance_norm(width: int, seed: int):
    torch.manual_seed(seed)
    network = FDGAN(width=width)
    with torch.no_grad():
        means, deviations = network.spe.statistics(network.style(make_anatomies(6)[:, :1])).unbind(2)
        nothing = network.spe.statistics(torch.zeros(1, 8))
    assert means.std(0).mean() > 0.02  # 0.001 with the gains of PyTorch's own beginnings
    assert deviations.std(0).mean() > 0.01
    torch.testing.assert_close(nothing, torch.tensor([0.0, 1.0])[:, None].expand_as(nothing))


@pytest.mark.parametrize("code", [-100.0, 0.0, 100.0])
def test_whatever_the_style_its_deviations_are_positive(code: float):
    _, deviations = make_network().spe.statistics(torch.full((1, 8), code)).unbind(2)
    assert (deviations >= 0).all()


def test_a_trained_network_needs_the_style_of_the_image_itself():
    """The target's brightness is the sources', which instance norms take from the anatomy: a style alone knows it."""
    torch.manual_seed(0)
    images = make_anatomies(48)
    targets = 0.7 * images[:, :1] + 0.3 * images[:, 1:]
    network = FDGAN(width=8)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(120):
        chosen = torch.randint(40, (8,))
        prediction, pseudo_target = network.forward_with_pseudo_target(images[chosen])
        loss = F.l1_loss(prediction, targets[chosen]) + F.l1_loss(pseudo_target, targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        content, style = network.content_and_style(images[40:])
        own, others = (network.decode(content, code) for code in (style, style.roll(1, 0)))
    errors = [float((image - targets[40:]).square().mean()) for image in (own, others)]
    assert 10 * math.log10(errors[1] / errors[0]) > 1.0, errors  # dB


def test_the_pseudo_target_teaches_laf_alone():
    network = make_network()
    network.forward_with_pseudo_target(make_images())[1].square().mean().backward()
    assert {name for name, value in network.named_parameters() if value.grad is not None} == {"laf.weight", "laf.bias"}


def test_attention_weighs_the_channels_of_the_sources():
    network, x = make_network(fusion_attention=True), make_images()
    attention, convolution = network.fuse
    features = network.sre(x)
    ratio = attention(features) / features
    assert ((ratio > 0) & (ratio < 1))[features.abs() > 1e-3].all()
    torch.testing.assert_close(network.content(x), convolution(attention(features)))


def test_monais_discriminator_is_the_papers():
    discriminator = PatchDiscriminator(spatial_dims=2, in_channels=2 + 1, channels=64)
    convs = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [64, 128, 256, 512, 1]
    assert {conv.kernel_size for conv in convs} == {(4, 4)}
    slopes = [module.negative_slope for module in discriminator.modules() if isinstance(module, nn.LeakyReLU)]
    assert slopes == 4 * [0.2]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in discriminator.modules()) == 3
    assert isinstance(list(discriminator.modules())[-1], nn.Conv2d), "logits: the sigmoid is the loss's"


def test_the_papers_discriminator_judges_an_image_as_a_whole():
    judge, x = ImageDiscriminator(in_channels=3, channels=8).eval(), torch.rand(2, 3, 64, 96, requires_grad=True)
    answer = judge(x)
    assert answer.shape == (2, 1, 1, 1)
    answer[0].sum().backward()
    assert (x.grad[0].abs().amax(0) > 0).all(), "every pixel counts"
    assert not x.grad[1].any()
    convs = [module for module in judge if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [8, 16, 32, 64, 128, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 3}, "blocks must divide image_size, got blocks=3, image_size=256"),
        ({"blocks": 64, "image_size": 112}, "blocks must divide image_size, got blocks=64, image_size=112"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"channels_per_source": 0}, "channels_per_source must be at least 1, got 0"),
    ],
)
def test_what_makes_no_network_is_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        FDGAN(**options)


def test_images_of_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match="x must have 6 channels, in_channels x channels_per_source, got"):
        make_network(channels_per_source=3)(make_images(2))
    with pytest.raises(ValueError, match="x must have 2 channels"):
        make_network().content(make_images(3))


def test_weights_from_before_the_style_encoder_began_as_munits_are_refused_with_their_version(tmp_path: Path):
    """Of the same shapes, they would have loaded and drawn other images."""
    network = make_network()
    old = {name.replace("spe.head.", "spe.linear."): value for name, value in network.state_dict().items()}
    torch.save(old, tmp_path / "model.pt")
    write_json(tmp_path / "model.json", {"version": "0.1.0", "sha256": sha256(tmp_path / "model.pt")})
    with pytest.raises(ValueError, match=r"lacks spe\.head\.0\.weight.*by version 0\.1\.0 of the bundle"):
        load_weights(network, tmp_path / "model.pt")
