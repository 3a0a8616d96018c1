"""LPIPS: distance of two images in the features of a VGG-16, weighted by learned heads.

Source: reference/titok 4.4; LPIPS paper (arXiv 1801.03924), equation 1.

Legend of shapes: B images, D channels, H height, W width.
"""

import torch
from torch import Tensor, nn

# Output channels of the convolutions; None: max pooling.
_LAYERS = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512)
# Indices of the layers whose outputs are compared: relu1_2, 2_2, 3_3, 4_3, 5_3.
_TAPS = (3, 8, 15, 22, 29)
_WIDTHS = (64, 128, 256, 512, 512)
# Mean and standard deviation of pixels in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class Vgg16(nn.Module):
    """The convolutions of VGG-16, without `classifier` of the released file."""

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
        """Returns the features of the five compared layers, for normalized pixels [B, 3, H, W]."""
        features: list[Tensor] = []
        for number, layer in enumerate(self.features):
            pixels = layer(pixels)
            if number in _TAPS:
                features.append(pixels)
        return features


class LpipsHeads(nn.Module):
    """A weight per channel of each compared layer, with the names of the released file."""

    def __init__(self) -> None:
        super().__init__()
        for number, width in enumerate(_WIDTHS):
            head = nn.Sequential(nn.Dropout(), nn.Conv2d(width, 1, 1, bias=False))
            self.add_module(f"lin{number}", nn.ModuleDict({"model": head}))

    def forward(self, number: int, squares: Tensor) -> Tensor:
        """Weighted sum over the channels of [B, D, H, W], averaged over pixels: [B]."""
        head = self.get_submodule(f"lin{number}.model.1")
        return head(squares).mean((1, 2, 3))


class Lpips(nn.Module):
    """LPIPS distance of images in [0, 1]; lower is more similar."""

    def __init__(self) -> None:
        super().__init__()
        self.vgg = Vgg16()
        self.heads = LpipsHeads()

    def distances(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each pair of images [B, 3, H, W]: [B]."""
        with torch.no_grad():
            targets = self._features(original)
        pairs = zip(targets, self._features(reconstruction), strict=True)
        terms = [self.heads(number, (a - b).square()) for number, (a, b) in enumerate(pairs)]
        return torch.stack(terms).sum(0)

    def _features(self, pixels: Tensor) -> list[Tensor]:
        """Features of the compared layers, normalized to unit length over the channels."""
        shift, scale = (pixels.new_tensor(row).view(3, 1, 1) for row in (_SHIFT, _SCALE))
        layers = self.vgg((2 * pixels - 1 - shift) / scale)
        return [x / (x.square().sum(1, keepdim=True).sqrt() + _EPSILON) for x in layers]
