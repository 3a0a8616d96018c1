"""What has been seen and done since an episode began, as a policy wants to be told.

Legend of shapes: N pictures, P = past + 1 steps, C channels.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.loading.robotics.kind import ImageShape
from vlatool.models.policy import Observation, RoboticsPolicy

_IMAGE_DIMENSIONS = 3


@dataclass(frozen=True)
class RobotState:
    """What is measured at one step.

    Attributes:
        images: Camera to uint8 [H, W, 3], RGB, of any size, as the recordings had it.
        fields: Field name to values [C].
    """

    images: Mapping[str, Array]
    fields: Mapping[str, Array]


class ImageFit:
    """Makes pictures those that a policy was trained on, and tells once where that takes a resize.

    Args:
        shape: How its data were made.
        tell: Hears one sentence per camera and size.
    """

    def __init__(self, shape: ImageShape, tell: Callable[[str], None]) -> None:
        self._shape = shape
        self._tell = tell
        self._told: set[tuple[str, tuple[int, ...]]] = set()

    def fit(self, camera: str, image: UInt8Array, *, is_turned: bool = False) -> UInt8Array:
        """A picture uint8 [H, W, 3] as the policy sees it; see `ImageShape.apply`."""
        fitted = self._shape.apply(camera, image, is_turned=is_turned)
        size = image.shape[:2]
        if self._shape.size not in (None, size) and (camera, size) not in self._told:
            self._told.add((camera, size))
            (height, width), (target_height, target_width) = size, fitted.shape[:2]
            self._tell(
                f"pictures of {camera!r} are {width} x {height}, the policy was trained on "
                f"{target_width} x {target_height}: resized as its data were "
                f"({self._shape.method}, {self._shape.resample})"
            )
        return fitted


class History:
    """The past of one robot, as far back as a policy looks.

    A moment that was not shown looks like the next one that was: before the first moment of an
    episode everything looks like that.

    Raises:
        DataError: The policy wants pictures from the future.
    """

    def __init__(self, policy: RoboticsPolicy, fit: ImageFit) -> None:
        self._policy = policy
        self._fit = fit
        self._offsets = policy.data.image_indices
        if max(self._offsets, default=0) > 0:
            raise DataError(
                f"the policy wants pictures from the future: image_indices {self._offsets}",
                hint="train with data.image_indices of at most 0",
                code="data.future_pictures",
            )
        self._length = max(-min(self._offsets, default=0), policy.past) + 1
        self._seen: deque[RobotState] = deque(maxlen=self._length)
        self._done: deque[Mapping[str, Array]] = deque(maxlen=policy.past)

    def add_observation(self, moment: RobotState, steps: int = 1) -> None:
        """Takes in the newest moment.

        Args:
            moment: What is measured.
            steps: How many steps after the one before it; the first of an episode is the first.

        Raises:
            DataError: A picture is none, or of another size than the others where the run does
                not say which size is right. Nothing is taken in then.
        """
        images = {name: self._shaped(name, image) for name, image in moment.images.items()}
        known = self._seen[-1].images if self._seen else {}
        _check_sizes([*known.values(), *images.values()])
        shaped = RobotState(images, moment.fields)
        count = steps if self._seen else self._length
        self._seen.extend([shaped] * min(count, self._length))

    def add_action(self, commands: Mapping[str, Array]) -> None:
        """Takes in the commands of a step that was carried out: field to absolute values [C]."""
        self._done.append(commands)

    def observation(self, instruction: str) -> Observation:
        """What the policy sees now."""
        seen = list(self._seen)
        images = [
            seen[offset - 1].images[camera]
            for offset in self._offsets
            for camera in self._policy.data.camera_names
        ]
        recent = seen[-(self._policy.past + 1) :]
        fields = {name: np.stack([one.fields[name] for one in recent]) for name in seen[-1].fields}
        known, mask = self._past_actions(fields)
        return Observation(np.stack(images), fields, instruction, known, mask)

    def _past_actions(
        self, fields: Mapping[str, Array]
    ) -> tuple[dict[str, Array] | None, Array | None]:
        """What was carried out in the last `past` steps, and which of them there were."""
        if not self._done:
            return None, None
        missing = self._policy.past - len(self._done)
        steps = [self._done[0]] * missing + list(self._done)
        commands = {name: np.stack([one[name] for one in steps]) for name in steps[0]}
        mask = np.arange(self._policy.past) >= missing
        return self._policy.relative_past_actions(commands, fields), mask

    def _shaped(self, camera: str, image: Array) -> UInt8Array:
        shape = image.shape
        if image.dtype != np.uint8 or len(shape) != _IMAGE_DIMENSIONS or shape[-1] != 3:
            raise DataError(
                f"the picture of {camera!r} is {image.dtype} {list(shape)}, not uint8 [H, W, 3]",
                hint=_remedy(image),
                code="data.no_picture",
                details={"camera": camera},
            )
        if 0 in shape:
            raise DataError(
                f"the picture of {camera!r} is empty: {list(shape)}", code="data.no_picture"
            )
        # A copy: cameras fill one buffer again and again.
        return np.array(self._fit.fit(camera, image))


def _remedy(image: Array) -> str:
    if image.dtype != np.uint8:
        return "give whole numbers 0 to 255: for 0 to 1, (255 * picture).astype(np.uint8)"
    if image.ndim == _IMAGE_DIMENSIONS and image.shape[0] == 3:
        return "colours come last: picture.transpose(1, 2, 0)"
    return "give one RGB picture per camera, without batch, alpha or depth"


def _check_sizes(images: Sequence[UInt8Array]) -> None:
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        raise DataError(
            f"pictures of different sizes: {sorted(sizes)}, and the run does not say which it is",
            hint="give them in the size of its training data",
            code="data.image_sizes_differ",
        )
