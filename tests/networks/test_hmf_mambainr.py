"""HMF-MambaINR: each block against its equation, stand-ins, any output size, and the contract of every network."""

import warnings
from pathlib import Path

import pytest
import torch
from check_network import check_network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from monai_ext import ops
from monai_ext.files import sha256, write_json
from monai_ext.networks import HMFMambaINR
from monai_ext.networks.hmf_mambainr import MFEB, MFM, MSF, PARTS, PlainFusion, _say_once
from monai_ext.networks.inr import ImplicitDecoder, PeriodicEncoding
from monai_ext.networks.rhmb import RHMB, DirectionalScan
from monai_ext.weights import load_weights


def small(**options: object) -> HMFMambaINR:
    torch.manual_seed(0)
    return HMFMambaINR(**{"width": 8, "state_size": 4, "frequencies": 3, **options})


def parameters(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize("without", [(), *((part,) for part in PARTS), PARTS], ids=str)
def test_it_keeps_the_contract_whole_and_without_any_part(without: tuple[str, ...]):
    def make() -> nn.Module:
        return HMFMambaINR(
            in_channels=3, out_channels=2, width=8, state_size=2, directions=3, frequencies=2, without=without
        )

    check_network(make, in_channels=3, out_channels=2, sizes=((24, 20), (9, 14), (1, 1)), onnx=not without)


@pytest.mark.parametrize("part", PARTS)
def test_what_stands_in_for_a_part_has_as_many_parameters_to_one_percent(part: str):
    assert parameters(HMFMambaINR(without=[part])) == pytest.approx(parameters(HMFMambaINR()), rel=0.01)


class Calls(TorchDispatchMode):
    """Which operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_block_scans_all_its_directions_in_one_call():
    block = RHMB(16, directions=4)
    with Calls() as calls:
        block(torch.rand(1, 16, 6, 5))
    assert sum(name.startswith("monai_ext.selective_scan") for name in calls.names) == 1


@pytest.mark.parametrize("directions", [1, 2, 3, 4])
def test_a_scan_by_hand_along_each_direction_gives_the_same(directions: int):
    torch.manual_seed(0)
    scan = DirectionalScan(6, state_size=3, rank=2, directions=directions)
    x = torch.rand(2, 6, 4, 5)
    expected = torch.zeros_like(x)
    mixed = scan.project(x).unflatten(1, [directions, -1])
    for g in range(directions):
        transposed, backwards = g % 2 == 1, g >= 2

        def line(y: Tensor, transposed: bool = transposed, backwards: bool = backwards) -> Tensor:
            y = (y.transpose(2, 3) if transposed else y).flatten(2)
            return y.flip(2) if backwards else y

        low_rank, B, C = line(mixed[:, g]).split(scan.sections, 1)
        own = slice(6 * g, 6 * (g + 1))
        y = ops.selective_scan(
            line(x), scan.to_step[g] @ low_rank, -scan.log_rates[own].exp(), B, C, scan.skip[own],
            delta_bias=scan.step_bias[own], delta_softplus=True,
        )  # fmt: skip
        y = y.flip(2) if backwards else y
        expected += y.unflatten(2, [5, 4]).transpose(2, 3) if transposed else y.unflatten(2, [4, 5])
    torch.testing.assert_close(scan(x), expected, rtol=1e-4, atol=1e-5)


def test_a_pixel_reaches_every_other_one():
    network = small().eval()
    x = torch.rand(1, 2, 48, 48, requires_grad=True)
    network(x)[0, 0, 24, 24].backward()
    assert (x.grad.abs().amax((0, 1)) > 0).all()


def test_msf_weighs_each_channel_of_the_scales_by_numbers_that_add_up_to_one():
    torch.manual_seed(0)
    fuse, features = MSF(5, scales=4), [torch.rand(2, 5, 6, 7) for _ in range(4)]
    same = [features[0]] * 4
    torch.testing.assert_close(fuse(same), features[0])
    own = [conv.chunk(4)[1] for conv in (fuse.conv.weight[:, :, 0, 0], fuse.conv.bias)]
    pooled = features[1].mean((2, 3)) @ own[0].T + features[1].amax((2, 3)) @ own[0].T + 2 * own[1]
    every = [
        (f.mean((2, 3)) @ w.T + f.amax((2, 3)) @ w.T + 2 * b).sigmoid()
        for f, w, b in zip(features, fuse.conv.weight[:, :, 0, 0].chunk(4), fuse.conv.bias.chunk(4), strict=True)
    ]
    torch.testing.assert_close(every[1], pooled.sigmoid())
    weights = torch.stack(every).softmax(0)
    expected = sum(w[:, :, None, None] * f for w, f in zip(weights, features, strict=True))
    torch.testing.assert_close(fuse(features), expected)


def test_mfeb_adds_the_fused_scales_to_what_they_come_from():
    torch.manual_seed(0)
    block, x = MFEB(4, dilations=(1, 2), fusion=PlainFusion).eval(), torch.rand(1, 12, 9, 9)
    reduced = block.reduce(x)
    fused = block.fuse.conv(torch.cat([scale(reduced) for scale in block.scales], 1))
    torch.testing.assert_close(block(x), reduced + fused)
    assert [scale[0].dilation[0] for scale in block.scales] == [1, 2]


def test_mfm_convolves_both_modulated_features_beside_the_decoders():
    torch.manual_seed(0)
    block = MFM(8).train()
    extracted, decoded = torch.rand(3, 8, 5, 6), torch.rand(3, 8, 5, 6)
    w = block.mlp(extracted.mean((2, 3), True) + decoded.mean((2, 3), True)).unflatten(1, [2, 8]).softmax(1)
    expected = block.conv(torch.cat([w[:, 0] * extracted, w[:, 1] * decoded, decoded], 1))
    torch.testing.assert_close(block(extracted, decoded), expected, rtol=1e-4, atol=1e-5)


def by_hand(decoder: ImplicitDecoder, latent: Tensor, size: tuple[int, int]) -> Tensor:
    """Every pixel on its own: the four nearest cells, the MLP on each, weighted by the opposite areas."""
    (height, width), (rows, columns) = latent.shape[2:], size
    image = torch.zeros(len(latent), decoder.last.out_features, rows, columns)
    for row in range(rows):
        for column in range(columns):
            y, x = (row + 0.5) * height / rows - 0.5, (column + 0.5) * width / columns - 0.5
            top, left = int(torch.tensor(y).floor()), int(torch.tensor(x).floor())
            for i in (top, top + 1):
                for j in (left, left + 1):
                    feature = latent[:, :, min(max(i, 0), height - 1), min(max(j, 0), width - 1)]
                    codes = [decoder.encoding(torch.tensor([d])).expand(len(latent), -1) for d in (y - i, x - j)]
                    h = decoder.first(torch.cat([feature, *codes], 1)).relu()
                    for layer in decoder.rest:
                        h = layer(h).relu()
                    image[:, :, row, column] += decoder.last(h) * (1 - abs(y - i)) * (1 - abs(x - j))
    return image


def make_decoder(**options: object) -> ImplicitDecoder:
    """In a trained state: it reads the offset, to which a new one is blind."""
    torch.manual_seed(0)
    decoder = ImplicitDecoder(**{"channels": 3, "out_channels": 2, "hidden": (8, 8), "frequencies": 3, **options})
    nn.init.normal_(decoder.first.weight, std=0.3)
    return decoder


@pytest.mark.parametrize("size", [(4, 5), (8, 10), (7, 3), (4, 20), (13, 5)])
def test_the_implicit_decoder_is_the_area_weighted_mean_of_four_answers(size: tuple[int, int]):
    decoder, latent = make_decoder(), torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(decoder(latent, (4, 5), size), by_hand(decoder, latent, size), rtol=1e-4, atol=1e-5)


def test_one_that_never_saw_an_offset_enlarges_bilinearly_what_it_gives_at_the_centres():
    network, x = small().train(), torch.rand(2, 2, 16, 12)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        enlarged = F.interpolate(network(x), (32, 48), mode="bilinear")
        torch.testing.assert_close(network(x, (32, 48)), enlarged, rtol=1e-4, atol=1e-5)


def test_the_encoding_is_sines_and_cosines_of_doubling_frequency_and_zero_at_a_cells_centre():
    x = torch.linspace(-1, 1, 9)  # cells
    waves = [torch.pi * x, 2 * torch.pi * x, 4 * torch.pi * x]
    expected = torch.stack([*(w.sin() for w in waves), *(w.cos() - 1 for w in waves)], 1)
    torch.testing.assert_close(PeriodicEncoding(frequencies=3)(x), expected)
    assert not PeriodicEncoding(frequencies=10)(torch.zeros(1)).any()
    spread = PeriodicEncoding(frequencies=4)(torch.linspace(-1, 1, 101)).std(0)
    assert spread.min() > 0.5, "none is flat over a cell"


@pytest.mark.parametrize("queries", [1, 100, 10**9])
def test_queries_in_chunks_give_the_values_and_gradients_of_all_at_once(queries: int):
    latent = torch.rand(2, 8, 10, 9, requires_grad=True)
    answers = []
    for many in (queries, 4096):
        decoder = make_decoder(channels=8)
        decoder.queries = many
        image = decoder(latent, (10, 9), (33, 18))
        (grad,) = torch.autograd.grad(image.square().sum(), latent)
        answers.append((image, grad))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("device", "strips"), [("cpu", 96 * 112 * 8 // 4096), ("meta", 1)])
def test_what_is_no_cpu_answers_a_batch_of_slices_at_once(device: str, strips: int, monkeypatch: pytest.MonkeyPatch):
    decoder, asked = make_decoder(channels=8).to(device), []
    strip = decoder._strip
    monkeypatch.setattr(decoder, "_strip", lambda *inputs: asked.append(1) or strip(*inputs))
    decoder(torch.rand(8, 8, 96, 112, device=device), (96, 112), (96, 112))
    assert strips <= len(asked) <= 1.2 * strips


def test_the_decoder_has_the_same_values_in_training_and_inference():
    decoder, latent = make_decoder(channels=8), torch.rand(1, 8, 10, 9)
    with torch.inference_mode():
        still = decoder.eval()(latent, (10, 9), (40, 18))
    torch.testing.assert_close(decoder.train()(latent, (10, 9), (40, 18)), still.clone())


@pytest.mark.parametrize("without", [(), ("inrb",)])
def test_any_output_size_covers_the_same_field_of_view(without: tuple[str, ...]):
    network, x = small(without=without).eval(), torch.rand(1, 2, 18, 14)
    with torch.no_grad():
        if not without:
            nn.init.normal_(network.inrb.first.weight, std=0.3)
        assert network(x, (37, 61)).shape == (1, 1, 37, 61)
        torch.testing.assert_close(network(x, (18, 14)), network(x))
        odd = network(x, (54, 42))[:, :, 1::3, 1::3]  # with three times the pixels, every third has the same centre
    if not without:
        torch.testing.assert_close(odd, network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (8, 16 * 8 + 1), (10**6, 10**6)])
def test_an_output_of_no_pixels_or_too_many_is_refused(size: tuple[int, int]):
    with pytest.raises(ValueError, match=r"output_size must be from 1 to 16 times the input's 8 x 8 a side, got"):
        small()(torch.rand(1, 2, 8, 8), size)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_image_gives_finite_numbers_and_gradients(value: float):
    network = small().train()
    y = network(torch.full((2, 2, 16, 16), value))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("way", ["weights", "image", "autocast"])
def test_float16_on_a_cpu_is_computed_wider_and_says_so_once(way: str):
    network, x = small().eval(), torch.rand(1, 2, 16, 12)
    with torch.no_grad():
        expected = network(x)
    _say_once.cache_clear()
    if way == "weights":
        network = network.half()
    image = x if way == "autocast" else x.half()
    with torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=way == "autocast"):
        with pytest.warns(UserWarning, match="float16 is far slower than float32 on a CPU: torch.*is used"):
            answer = network(image)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            network(image)
    assert answer.dtype == image.dtype
    torch.testing.assert_close(answer.float(), expected, rtol=0.05, atol=0.05)


def test_without_the_compiled_operator_it_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    network, x = small().eval(), torch.rand(1, 2, 20, 16)
    with torch.no_grad():
        compiled = network(x)
        monkeypatch.setattr(ops, "selective_scan", lambda *a, **k: _plain(*a, **k))
        torch.testing.assert_close(network(x), compiled, rtol=1e-4, atol=1e-5)


def _plain(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, **options: object) -> Tensor:
    from monai_ext.ops.selective_scan import selective_scan_reference

    return selective_scan_reference(u, delta, A, B, C, D, options["delta_bias"], bool(options["delta_softplus"]))[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"directions": 5}, "directions must be at most 4, got 5"),
        ({"dilations": ()}, "dilations must be one or more numbers of at least 1"),
        ({"without": ["inr"]}, r"without must be of rhmb, mfeb, msf, mfm, inrb, got 'inr'; did you mean 'inrb'\?"),
    ],
)
def test_bad_arguments_are_refused_by_name(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        HMFMambaINR(**options)


def ellipses(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sources of overlapping shapes with sharp edges, and a contrast that follows from both."""
    chance = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    sources = torch.zeros(count, 2, size, size)
    for image in sources:
        for _ in range(6):
            centre, radii = torch.rand(2, generator=chance) * 1.4 - 0.7, 0.15 + 0.5 * torch.rand(2, generator=chance)
            angle, values = 3 * torch.rand(1, generator=chance), torch.rand(2, generator=chance)
            u = (y - centre[0]) * angle.cos() + (x - centre[1]) * angle.sin()
            v = (x - centre[1]) * angle.cos() - (y - centre[0]) * angle.sin()
            inside = torch.sigmoid((1 - (u / radii[0]) ** 2 - (v / radii[1]) ** 2) * size / 3)
            image += inside * (values[:, None, None] - image)
    return sources, 0.2 + 0.6 * sources[:, :1] * (1 - sources[:, 1:]) + 0.2 * sources[:, 1:]


def test_once_it_reads_the_offset_a_cell_holds_more_than_its_own_mean():
    """An image fitted by cells of four pixels a side, against its enlargement from as many means."""
    torch.manual_seed(0)
    _, images = ellipses(1, 48)
    decoder, latent = (
        ImplicitDecoder(channels=8, out_channels=1, hidden=(32, 32)),
        nn.Parameter(torch.rand(1, 8, 12, 12)),
    )
    optimizer = torch.optim.Adam([*decoder.parameters(), latent], 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        (decoder(latent, (12, 12), (48, 48)) - images).square().mean().backward()
        optimizer.step()
    means = F.interpolate(images, (12, 12), mode="area")
    with torch.no_grad():
        fitted = (decoder(latent, (12, 12), (48, 48)) - images).square().mean()
        bicubic = (F.interpolate(means, (48, 48), mode="bicubic") - images).square().mean()
    assert fitted < 0.5 * bicubic


def test_its_size_is_stated_and_its_operations_are_slightly_more_than_those_of_i2i_mamba():
    """160.5 GFLOP by that one's paper. At the input's own size three answers of four would count for nothing."""
    counts = []
    for size in (None, (257, 257)):
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            network = HMFMambaINR().eval()
            network(torch.rand(1, 2, 256, 256), size)
        counts.append(counter.get_total_flops() / 1e9)
    assert parameters(network) == 18_161_585
    assert counts[0] == pytest.approx(158.8, abs=0.1)
    assert counts[1] == pytest.approx(163.7, abs=0.1)


def test_weights_of_the_latent_at_half_of_the_size_are_refused_with_their_version(tmp_path: Path):
    network = small()
    old = network.state_dict()
    for part in ("extract", "decode"):  # convolutions that kept the size
        old[f"stages.2.{part}.0.weight"] = torch.zeros(8, 16, 3, 3)
    torch.save(old, tmp_path / "model.pt")
    write_json(tmp_path / "model.json", {"version": "0.1.0", "sha256": sha256(tmp_path / "model.pt")})
    with pytest.raises(ValueError, match=r"stages\.2\.extract\.0\.weight is .*by version 0\.1\.0 of the bundle"):
        load_weights(network, tmp_path / "model.pt")
