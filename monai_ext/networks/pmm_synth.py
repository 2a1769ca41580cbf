"""PMM-Synth, Zhang et al., arXiv 2602.19723, Fig. 1c and S1: any contrasts in, any out, for several datasets at once.

A dataset is a site here: it stands for where its images were made, and `dataset` is MONAI's word for what is loaded.

The layers of its backbone, Uni-Synth (arXiv 2304.05340), are our own reading: the papers print no table of them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.modalities import canonical
from monai_ext.networks.layers import making_a_graph
from monai_ext.networks.pfm import Conv, PersonalizedNorm, SiteEmbedding

SCALES = 4


class ConvBlock(nn.Module):
    """Convolution, instance norm with PFM, ReLU.

    Args:
        before, after: channels in and out.
        kernel_size: odd; half of it is the padding.
        stride: 1, or 2 to halve the size.
        embedding: channels of the site's embedding, 0 for a network without PFM.
    """

    def __init__(self, before: int, after: int, kernel_size: int = 3, *, stride: int = 1, embedding: int) -> None:
        super().__init__()
        self.conv = Conv(before, after, kernel_size, stride=stride, bias=False)
        self.norm = PersonalizedNorm(after, embedding=embedding)

    def forward(self, x: Tensor, embedding: Tensor | None, change: int) -> Tensor:
        """(B, C, H, W) -> (B, O, H / stride, W / stride)"""
        return F.relu(self.norm(self.conv(x, change), embedding))


class ResBlock(nn.Module):
    """x + F(relu(F(x))), F a convolution and instance norm with PFM.

    Args:
        channels: in and out.
        embedding: channels of the site's embedding, 0 for a network without PFM.
    """

    def __init__(self, channels: int, *, embedding: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels, embedding=embedding)
        self.second = Conv(channels, channels, bias=False)
        self.norm = PersonalizedNorm(channels, embedding=embedding)

    def forward(self, x: Tensor, embedding: Tensor | None, change: int) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        return x + self.norm(self.second(self.first(x, embedding, change), change), embedding)


class Stage(nn.Module):
    """One scale of an encoding stream: a ConvBlock that may halve the size, and two ResBlocks.

    Args:
        before, after: channels in and out.
        stride: 1 at full size, 2 at each scale below.
        embedding: channels of the site's embedding, 0 for a network without PFM.
    """

    def __init__(self, before: int, after: int, *, stride: int, embedding: int) -> None:
        super().__init__()
        self.enter = ConvBlock(before, after, stride=stride, embedding=embedding)
        self.first, self.second = (ResBlock(after, embedding=embedding) for _ in range(2))

    def forward(self, x: Tensor, embedding: Tensor | None, change: int) -> Tensor:
        """(B, C, H, W) -> (B, O, H / stride, W / stride)"""
        return self.second(self.first(self.enter(x, embedding, change), embedding, change), embedding, change)


class Encoder(nn.Module):
    """The common stream, of all contrasts, or a specific stream, of one.

    Args:
        in_channels: the contrasts that it sees.
        width: channels at full resolution, doubled at each halving.
        embedding: channels of the site's embedding, 0 for none.
    """

    def __init__(self, in_channels: int, *, width: int, embedding: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Stage(in_channels, width, stride=1, embedding=embedding)])
        for scale in range(1, SCALES):
            channels = width * 2**scale
            self.stages.append(Stage(channels // 2, channels, stride=2, embedding=embedding))

    def forward(self, x: Tensor, embedding: Tensor | None, change: int) -> list[Tensor]:
        """(B, C, H, W) -> features (B, width * 2^s, H / 2^s, W / 2^s) at each scale s"""
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x, embedding, change)
            features.append(x)
        return features


class DFUM(nn.Module):
    """Dynamic Feature Unification Module: the features of however many contrasts there are become one, at one scale.

    Args:
        channels: of the features.
        embedding: channels of the site's embedding, 0 for none.
    """

    def __init__(self, channels: int, *, embedding: int) -> None:
        super().__init__()
        self.score = Conv(channels, channels, 1)
        self.fuse = ConvBlock(3 * channels, channels, 1, embedding=embedding)

    def forward(
        self, common: Tensor, specific: list[Tensor], present: Tensor, embedding: Tensor | None, change: int
    ) -> Tensor:
        """(B, C, H, W), n of (B, C, H, W), which of them a sample has (B, n) -> (B, C, H, W)"""
        missing = ~present[:, :, None, None, None]
        features = torch.stack(specific, 1)
        scores = torch.stack([self.score(feature, change) for feature in specific], 1)
        hard = features.masked_fill(missing, -math.inf).amax(1)
        soft = (features * scores.masked_fill(missing, -math.inf).softmax(1)).sum(1).to(hard.dtype)
        return self.fuse(torch.cat([common, hard, soft], 1), embedding, change)


class Up(nn.Module):
    """Twice the size, half the channels, and the features of that scale.

    Args:
        after: channels of what comes out.
        block: what the sum of both goes through.
    """

    def __init__(self, after: int, block: nn.Module) -> None:
        super().__init__()
        self.halve = Conv(2 * after, after, 1)
        self.block = block

    def forward(self, x: Tensor, skip: Tensor, embedding: Tensor | None, change: int) -> Tensor:
        """(B, 2C, H, W), (B, C, 2H, 2W) -> (B, C, 2H, 2W)"""
        wider = F.interpolate(self.halve(x, change), scale_factor=2.0, mode="nearest")
        return self.block(wider + skip, embedding, change)


class Decoder(nn.Module):
    """One contrast from the unified features; lighter than an encoder, for all six run whatever is given.

    Args:
        width: channels at full resolution, as of the `Encoder` whose scales it goes back.
        embedding: channels of the site's embedding, 0 for a network without PFM.
        over: whether it changes another contrast, in samples that have that.
    """

    def __init__(self, *, width: int, embedding: int, over: bool = False) -> None:
        super().__init__()
        self.ups = nn.ModuleList(
            Up(width * 2**scale, ResBlock(width * 2**scale, embedding=embedding)) for scale in range(SCALES - 2, 0, -1)
        )
        self.ups.append(Up(width, ConvBlock(width, width, embedding=embedding)))
        self.last = Conv(width, 1)
        self.over = Conv(width + 1, 1) if over else None
        if self.over is not None:
            for parameter in self.over.parameters():
                nn.init.zeros_(parameter)  # it begins with the other contrast as it is

    def forward(
        self, features: list[Tensor], embedding: Tensor | None, change: int, base: Tensor, has_base: Tensor
    ) -> Tensor:
        """Features at each scale, the contrast that is changed (B, 1, H, W), who has it (B,) -> (B, 1, H, W)"""
        y = features[-1]
        for number, up in enumerate(self.ups):
            y = up(y, features[len(features) - 2 - number], embedding, change)
        image = self.last(y, change)
        if self.over is None:
            return image
        changed = base + self.over(torch.cat([y, base.to(y.dtype)], 1), change)
        changed = changed.masked_fill(base == 0, 0.0)  # air stays air
        return torch.where(has_base[:, None, None, None], changed, image.to(changed.dtype))


class PMMSynth(nn.Module):
    """A common and a specific encoding stream for each contrast that is there, DFUM, a decoding stream a contrast.

    Args:
        modalities: the contrasts, in the order of the channels in and out.
        sites: names, in the order of their numbers.
        width: channels at full resolution, doubled at each of three halvings. 32, which the papers do not say, gives
            28.3 million parameters and, at 192x192, 46 GFLOP from one contrast to 107 from six. The paper's epoch
            (2,078 s on an A100 for some 70,000 slices, 29 ms for a step's share of a slice) leaves room for no more
            than about twice that width.
        personalized: Personalized Feature Modulation in every convolutional block, by the site.
        residual: of which contrasts the decoder makes how another one is changed, where that is there: "T1C over T1"
            for what an agent does. Not in the papers.

    Raises:
        ValueError: a name that is given twice, none at all, a residual that is not of two of them, or a width that is
            no multiple of 4.

    Example:
        >>> network = PMMSynth(modalities=["T1", "T2", "FLAIR"], sites=["ixi", "brats"], width=4)
        >>> x = torch.rand(1, 3, 24, 24)
        >>> has_t1_and_t2 = torch.tensor([[True, True, False]])
        >>> network(x, has_t1_and_t2, torch.tensor([network.site_index("brats")])).shape
        torch.Size([1, 3, 24, 24])
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str] = ("T1", "T2", "T1C", "FLAIR", "DWI", "ADC"),
        sites: Sequence[str] = ("TTG", "TTI", "BraTS", "ISLES"),
        width: int = 32,
        personalized: bool = True,
        residual: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.modalities = tuple(canonical(name) for name in modalities)
        for what, names in (("modalities", self.modalities), ("sites", tuple(sites))):
            twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            if twice or not names:
                raise ValueError(f"{what} must be one or more, each named once, got {', '.join(names) or 'none'}")
        if width < 4 or width % 4:
            raise ValueError(f"width must be a multiple of 4, got {width}")
        self.bases = self._bases(residual)
        self.sites, self.trained_on = tuple(sites), len(sites)
        channels = max(8, width // 2) if personalized else 0  # of the embedding: PFM is to add little
        self.embedding = SiteEmbedding(sites=len(sites), channels=channels) if personalized else None
        self.common = Encoder(len(self.modalities), width=width, embedding=channels)
        self.specific = nn.ModuleList(Encoder(1, width=width, embedding=channels) for _ in self.modalities)
        self.dfum = nn.ModuleList(DFUM(width * 2**scale, embedding=channels) for scale in range(SCALES))
        self.decoders = nn.ModuleList(Decoder(width=width, embedding=channels, over=base >= 0) for base in self.bases)

    def _bases(self, residual: Sequence[str]) -> list[int]:
        """The number of the contrast that each is made over, -1 for none."""
        bases = [-1] * len(self.modalities)
        for text in residual:
            pair = [canonical(name) for name in text.split(" over ")]
            if len(pair) != 2 or pair[0] == pair[1] or not {*pair} <= {*self.modalities}:
                told = f'residual is of two of {", ".join(self.modalities)}, such as "T1C over T1"'
                raise ValueError(f"{told}, got {text!r}")
            bases[self.modalities.index(pair[0])] = self.modalities.index(pair[1])
        return bases

    def site_index(self, name: str) -> int:
        """Give the number of a site that the network knows.

        Args:
            name: one of `sites`, by its exact spelling.

        Returns:
            Its number, from 0, as `forward` takes it in `site`.

        Raises:
            ValueError: it knows none of this name.
        """
        if name not in self.sites:
            names = ", ".join(self.sites)
            raise ValueError(f"unknown site {name!r}; the known ones: {names}; null means none of them")
        return self.sites.index(name)

    def forward(
        self, x: Tensor, available: Tensor | None = None, site: Tensor | None = None, wanted: Tensor | None = None
    ) -> Tensor:
        """(B, M, H, W) -> (B, M, H, W), any size.

        Args:
            x: an image a contrast.
            available: (B, M), what a sample has; without it a channel of zeros is a missing one, and an image of
                nothing else stays empty.
            site: (B,), numbers as of `site_index`; None for no personalization.
            wanted: (M,), the contrasts to make, None for all; the others are zeros.

        Raises:
            ValueError: a shape that does not fit, a sample without a contrast, or a site that is not known.
        """
        batch, contrasts, height, width = x.shape[0], len(self.modalities), x.shape[2], x.shape[3]
        if x.shape[1] != contrasts:
            raise ValueError(f"x must have {contrasts} channels, the contrasts {self.modalities}, got {x.shape[1]}")
        if available is None:
            present = (x != 0).flatten(2).any(2)
        else:
            if available.shape != x.shape[:2]:
                raise ValueError(f"available must be {batch} x {contrasts}, got {available.shape}")
            present = available != 0
            if not making_a_graph() and not bool(present.any(1).all()):
                raise ValueError(f"available must give each sample a contrast, got {available}")
        empty = ~present.any(1, keepdim=True)
        present = present | (empty & (present.any(0) | empty.all()))  # what is empty goes the way of the others
        x = torch.where(present[:, :, None, None], x, torch.zeros_like(x))
        x = F.pad(x, [0, _padding(width), 0, _padding(height)], mode="replicate")
        wants = [True] * contrasts if wanted is None else _flags(wanted)
        if site is None or self.embedding is None:
            y = self._synthesise(x, present, wants, None, -1)
        else:
            y = self._personalised(x, present, wants, site, self.embedding(site))
        y = y[:, :, :height, :width].masked_fill(empty[:, :, None, None], 0.0)
        return y if wanted is None else y.masked_fill(wanted[None, :, None, None] == 0, 0.0)

    def _personalised(self, x: Tensor, present: Tensor, wants: list[bool], site: Tensor, embedding: Tensor) -> Tensor:
        """Rows of a site added later have convolutions of their own, so they pass apart from the others."""
        if making_a_graph():
            return self._synthesise(x, present, wants, embedding, -1)
        count = len(self.sites)
        if site.shape[0] != x.shape[0] or int(site.min()) < 0 or int(site.max()) >= count:
            raise ValueError(f"site must be {x.shape[0]} numbers from 0 to {count - 1}, got {site}")
        changes = (site - self.trained_on).clamp(min=-1)
        different: list[int] = torch.unique(changes).tolist()
        if len(different) == 1:
            return self._synthesise(x, present, wants, embedding, different[0])
        order: list[Tensor] = []
        parts: list[Tensor] = []
        for change in different:
            rows = (changes == change).nonzero().squeeze(1)
            order.append(rows)
            parts.append(self._synthesise(x[rows], present[rows], wants, embedding[rows], change))
        return torch.cat(parts)[torch.cat(order).argsort()]

    def _synthesise(
        self,
        x: Tensor,
        present: Tensor,
        wants: list[bool],
        embedding: Tensor | None,
        change: int,
        in_use: list[bool] | None = None,
    ) -> Tensor:
        """(B, M, H, W), H and W for all scales -> (B, M, H, W), through the streams alone that somebody needs"""
        if in_use is None:
            in_use = _flags(present.any(0))
        common = self.common(x, embedding, change)
        specific: list[list[Tensor]] = []
        has: list[Tensor] = []
        for number, encoder in enumerate(self.specific):
            if in_use[number]:
                specific.append(encoder(x[:, number : number + 1], embedding, change))
                has.append(present[:, number])
        features: list[Tensor] = []
        for scale, dfum in enumerate(self.dfum):
            of_scale = [stream[scale] for stream in specific]
            features.append(dfum(common[scale], of_scale, torch.stack(has, 1), embedding, change))
        images: list[Tensor] = []
        for number, decoder in enumerate(self.decoders):
            if wants[number]:
                base = max(self.bases[number], 0)
                images.append(decoder(features, embedding, change, x[:, base : base + 1], present[:, base]))
            else:
                images.append(torch.zeros_like(x[:, :1]))
        return torch.cat(images, 1)

    @torch.jit.ignore
    def graph_of_task(self, x: Tensor, given: list[bool], site: int | None, wants: list[bool]) -> Tensor:
        """Synthesise what `forward` does of one task, without a branch that hangs on values: for a graph of its own.

        Args:
            x: (B, M, H, W), an image a contrast.
            given: M, which of them every sample has.
            site: its number as of `site_index`; None for no personalization.
            wants: M, the contrasts to make.

        Returns:
            (B, M, H, W), zeros for what nobody wants.
        """
        height, width = x.shape[2], x.shape[3]
        has = torch.tensor(given, device=x.device).expand(x.shape[0], -1)
        x = F.pad(x.masked_fill(~has[:, :, None, None], 0.0), [0, _padding(width), 0, _padding(height)], "replicate")
        embedding, change = None, -1
        if site is not None and self.embedding is not None:
            change = max(site - self.trained_on, -1)
            embedding = self.embedding(torch.full((x.shape[0],), site, device=x.device))
        return self._synthesise(x, has, wants, embedding, change, given)[:, :, :height, :width]


class OneTask(nn.Module):
    """A PMM-Synth of which one thing is asked: of the same contrasts, for one site, the same others.

    Args:
        network: what is asked.
        given: (M,), the contrasts that every sample has.
        site: its number as of `PMMSynth.site_index`; None for no personalization.
        wanted: (M,), the contrasts to make.
    """

    def __init__(self, network: PMMSynth, *, given: Tensor, site: int | None, wanted: Tensor) -> None:
        super().__init__()
        self.network, self.site = network, site
        self.given, self.wanted = tuple((given != 0).tolist()), tuple((wanted != 0).tolist())
        self.train(network.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, H, W), zeros for what is not wanted"""
        if making_a_graph():
            return self.network.graph_of_task(x, list(self.given), self.site, list(self.wanted))
        given = torch.tensor(self.given, device=x.device).expand(len(x), -1)
        site = None if self.site is None else torch.full((len(x),), self.site, device=x.device)
        return self.network(x, given, site, torch.tensor(self.wanted, device=x.device))


def _padding(size: int) -> int:
    """To a multiple of 8, which three halvings divide, and to 2 pixels there at least: one alone has no variance."""
    return max(16 - size, -size % 8)


def _flags(which: Tensor) -> list[bool]:
    """(M,) -> for each of them whether it is to be computed"""
    if making_a_graph():
        return [True] * which.shape[0]
    flags: list[bool] = (which != 0).tolist()
    return flags
