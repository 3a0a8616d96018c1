"""LPIPS: how far apart two pictures are for the layers of a VGG-16, weighed by learned heads.

Source: reference/titok 4.4; LPIPS paper (arXiv 1801.03924), equation 1.

Legend of shapes: B pictures, D channels, H and W their size.
"""

import torch
from torch import Tensor, nn

# Output channels of the convolutions; None halves the size.
_LAYERS = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512)
# The last layer before each tap: relu1_2, 2_2, 3_3, 4_3, 5_3.
_TAPS = (3, 8, 15, 22, 29)
_WIDTHS = (64, 128, 256, 512, 512)
# Of pixels in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class Vgg16(nn.Module):
    """The convolutions of VGG-16; `classifier` of the released file is not used."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in _LAYERS:
            if width is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
        self.features = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """What the five taps see of shifted and scaled pixels [B, 3, H, W]."""
        found: list[Tensor] = []
        for number, layer in enumerate(self.features):
            pixels = layer(pixels)
            if number in _TAPS:
                found.append(pixels)
        return found


class LpipsHeads(nn.Module):
    """A weight per channel of each tap, under the names of the released file."""

    def __init__(self) -> None:
        super().__init__()
        for number, width in enumerate(_WIDTHS):
            head = nn.Sequential(nn.Dropout(), nn.Conv2d(width, 1, 1, bias=False))
            self.add_module(f"lin{number}", nn.ModuleDict({"model": head}))

    def forward(self, number: int, squares: Tensor) -> Tensor:
        """Weighed sum over the channels of [B, D, H, W], averaged over the picture: [B]."""
        head = self.get_submodule(f"lin{number}.model.1")
        return head(squares).mean((1, 2, 3))


class Lpips(nn.Module):
    """The distance of pictures in [0, 1]; smaller is more alike."""

    def __init__(self) -> None:
        super().__init__()
        self.vgg = Vgg16()
        self.heads = LpipsHeads()

    def distances(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Of each pair of pictures [B, 3, H, W]: [B]."""
        with torch.no_grad():
            wanted = self._taps(original)
        pairs = zip(wanted, self._taps(reconstruction), strict=True)
        each = [self.heads(number, (a - b).square()) for number, (a, b) in enumerate(pairs)]
        return torch.stack(each).sum(0)

    def _taps(self, pixels: Tensor) -> list[Tensor]:
        """Of unit length over the channels."""
        shift, scale = (pixels.new_tensor(one).view(3, 1, 1) for one in (_SHIFT, _SCALE))
        taps = self.vgg((2 * pixels - 1 - shift) / scale)
        return [tap / (tap.square().sum(1, keepdim=True).sqrt() + _EPSILON) for tap in taps]
