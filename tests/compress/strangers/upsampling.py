"""Maps that change their size: pixel shuffles, folds, patches that merge, transposed convolutions, grids."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .registry import ConvBN, add, conv, parameter, pooled


class Shuffle(nn.Module):
    """A pixel shuffle inside: the channels before it are four for each one after it, whatever the image's size."""

    def __init__(self, factor: int = 2, by_hand: bool = False) -> None:
        super().__init__()
        self.factor, self.by_hand = factor, by_hand
        self.stem, self.up = ConvBN(3, 16), nn.Sequential(conv(16, 32 * factor**2), nn.PixelShuffle(factor), nn.PReLU())
        self.last, self.head = ConvBN(32, 24), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if self.by_hand:
            f, (b, _, h, w) = self.factor, x.shape
            y = self.up[0](y).view(b, -1, f, f, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, -1, h * f, w * f)
        else:
            y = self.up(y)
        return self.head(self.last(y))


class SubPixel(nn.Module):
    """Super-resolution: the shuffle makes the image itself, to which the enlarged input is added."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.head, self.body = (
            conv(3, 24),
            nn.ModuleList(nn.Sequential(conv(24, 32), nn.ReLU(), conv(32, 24)) for _ in range(2)),
        )
        self.tail = nn.Sequential(conv(24, 3 * factor**2), nn.PixelShuffle(factor))

    def forward(self, x: Tensor) -> Tensor:
        y = first = self.head(x)
        for block in self.body:
            y = y + 0.1 * block(y)
        return (self.tail(y + first) + F.interpolate(x, scale_factor=self.factor, mode="bicubic")).clamp(0, 1)


class Spaces(nn.Module):
    """Space to depth: by the layer, by slices as YOLO's Focus, or by a view; the next layer reads four of each."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.merge, self.last = ConvBN(3, 20), ConvBN(80, 32, 1), ConvBN(32, 24)
        self.fold, self.head = nn.PixelUnshuffle(2), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if self.kind == "layer":
            y = self.fold(y)
        elif self.kind == "slices":
            y = torch.cat([y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]], 1)
        else:
            b, c, h, w = y.shape
            y = y.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        return self.head(pooled(self.last(self.merge(y))))


class Merging(nn.Module):
    """Swin's merging of 2 x 2 patches, with a norm over the four together."""

    def __init__(self, dim: int = 20) -> None:
        super().__init__()
        self.embed, self.mlp = nn.Conv2d(3, dim, 2, 2), nn.Linear(dim, 2 * dim)
        self.norm, self.reduction = nn.LayerNorm(8 * dim), nn.Linear(8 * dim, 32, bias=False)
        self.last, self.head = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.mlp(self.embed(x).permute(0, 2, 3, 1)))
        parts = [y[:, i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        y = self.reduction(self.norm(torch.cat(parts, -1)))
        return self.head(F.gelu(self.last(y)).mean(dim=(1, 2)))


class Unfolded(nn.Module):
    """``F.unfold``, with padding or without, multiplied as a convolution, and folded back."""

    def __init__(self, padding: int, fold: bool) -> None:
        super().__init__()
        self.padding, self.fold = padding, fold
        self.stem, self.mix = ConvBN(3, 24, 3, 2), nn.Linear(24 * 9, 24 * 9 if fold else 32)
        self.last, self.head = ConvBN(24 if fold else 32, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        size = y.shape[-2:]
        windows = F.unfold(y, 3, padding=self.padding).transpose(1, 2)
        windows = self.mix(windows).transpose(1, 2)
        if self.fold:
            return self.head(pooled(self.last(F.fold(windows, size, 3, padding=self.padding))))
        side = size[0] + 2 * self.padding - 2
        return self.head(pooled(self.last(windows.reshape(len(x), -1, side, side))))


class Neighbourhood(nn.Module):
    """Each channel weighed over its 3 x 3 neighbours by weights that are computed (CARAFE, involution)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.stem, self.value = ConvBN(3, 20, 3, 2), ConvBN(20, 32)
        self.weigh = nn.Sequential(conv(32, 16, 1), nn.ReLU(), conv(16, 9 * groups, 1))
        self.last, self.head = ConvBN(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.value(self.stem(x))
        b, c, h, w = y.shape
        weights = self.weigh(y).view(b, self.groups, 1, 9, h, w).softmax(3)
        windows = F.unfold(y, 3, padding=1).view(b, self.groups, c // self.groups, 9, h, w)
        return self.head(pooled(self.last((weights * windows).sum(3).view(b, c, h, w))))


class Indices(nn.Module):
    """SegNet: the places of maxima are remembered and filled again."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = ConvBN(3, 24), ConvBN(24, 32)
        self.up2, self.up1 = ConvBN(32, 24), ConvBN(24, 20)
        self.pool, self.unpool, self.head = (
            nn.MaxPool2d(2, 2, return_indices=True),
            nn.MaxUnpool2d(2, 2),
            nn.Conv2d(20, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y, first = self.pool(self.down1(x))
        y, second = self.pool(self.down2(y))
        return self.head(self.up1(self.unpool(self.up2(self.unpool(y, second)), first)))


class Warped(nn.Module):
    """A spatial transformer: six numbers make a grid, which the map is sampled at."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(ConvBN(3, 16, 3, 2), ConvBN(16, 20, 3, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.theta = nn.Sequential(nn.Linear(80, 24), nn.ReLU(True), nn.Linear(24, 6))
        self.stem, self.body, self.last, self.head = ConvBN(3, 20), ConvBN(20, 32), ConvBN(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(self.locate(x)).view(-1, 2, 3) * 0.3
        y = self.stem(x)
        grid = F.affine_grid(theta, list(y.size()), align_corners=False)
        return self.head(pooled(self.last(self.body(F.grid_sample(y, grid, align_corners=False)))))


class Generator(nn.Module):
    """Transposed convolutions all the way, from pooled features to an image; bilinear kernels are a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(ConvBN(3, 24, 3, 2), nn.Conv2d(24, 20, 8), nn.LeakyReLU(0.2))
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(20, 40, 4), nn.BatchNorm2d(40), nn.ReLU(True),
            nn.ConvTranspose2d(40, 24, 4, 2, 1, bias=False), nn.InstanceNorm2d(24, affine=True), nn.ReLU(True),
        )  # fmt: skip
        line = torch.tensor([0.25, 0.75, 0.75, 0.25])
        self.register_buffer("kernel", torch.outer(line, line)[None, None])
        self.out = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(24, 3, 3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        y = self.decode(self.encode(x))
        y = F.conv_transpose2d(y, self.kernel.expand(y.shape[1], -1, -1, -1), stride=2, padding=1, groups=y.shape[1])
        return self.out(y)


class Depths(nn.Module):
    """A depth map: bins that a token chooses, weighed at each place."""

    def __init__(self, bins: int = 8) -> None:
        super().__init__()
        self.stem, self.body, self.last = ConvBN(3, 20, 3, 2), ConvBN(20, 32), ConvBN(32, 24)
        self.widths, self.places = nn.Sequential(nn.Linear(24, 28), nn.ReLU(), nn.Linear(28, bins)), conv(24, bins, 1)
        self.floor = parameter(1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.body(self.stem(x)))
        widths = F.relu(self.widths(pooled(y))) + 0.1
        edges = F.pad(widths / widths.sum(1, keepdim=True), (1, 0)).cumsum(1)
        centres = (edges[:, 1:] + edges[:, :-1]) / 2
        depth = (self.places(y).softmax(1) * centres[:, :, None, None]).sum(1, keepdim=True) + self.floor
        return F.interpolate(depth, x.shape[-2:], mode="bilinear", align_corners=True)


for side in (8, 32):
    add(
        f"a pixel shuffle at {side}",
        Shuffle,
        (3, side, side),
        prunes="stem.0 up.0",
        keeps="last.0 head",
    )
    add(f"a pixel shuffle by hand at {side}", lambda: Shuffle(by_hand=True), (3, side, side), prunes="stem.0 up.0",
        keeps="last.0 head")  # fmt: skip
add("a pixel shuffle by three", lambda: Shuffle(3), (3, 8, 8), prunes="stem.0 up.0", keeps="last.0 head")
add("a pixel shuffle that makes the image", SubPixel, prunes="body.0.0 body.1.0", keeps="tail.0")
for kind in ("layer", "slices", "view"):
    add(f"space to depth by {kind}", lambda kind=kind: Spaces(kind), prunes="stem.0 merge.0", keeps="last.0 head")
add("patches that merge", Merging, prunes="mlp reduction", keeps="last head")
for padding in (0, 1):
    add(f"unfolded windows padded by {padding}", lambda padding=padding: Unfolded(padding, False), prunes="stem.0 mix",
        keeps="last.0 head")  # fmt: skip
add("windows folded back", lambda: Unfolded(1, True), prunes="stem.0 mix", keeps="last.0 head")
add("weighed neighbours", lambda: Neighbourhood(1), prunes="stem.0 value.0 weigh.0", keeps="last.0 head")
add("weighed neighbours in groups", lambda: Neighbourhood(2), prunes="stem.0 weigh.0", keeps="last.0 head")
add("places of maxima", Indices, refuses="cannot be counted")  # torch.jit cannot trace max_unpool2d
add(
    "a spatial transformer",
    Warped,
    prunes="locate.0.0 locate.1.0 theta.0 stem.0 body.0",
    keeps="theta.2 last.0 head",
    onnx=True,
)
add("a generator", Generator, prunes="encode.0.0 encode.1 decode.0", keeps="decode.3 out.1")
add("depth by bins", Depths, prunes="stem.0 body.0", keeps="widths.2 places", onnx=True)
