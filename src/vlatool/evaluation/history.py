"""History of observations and actions since the start of an episode, as input of a policy.

Legend of shapes: C dimensions of a field.
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
    """Images and measured fields at one step.

    Attributes:
        images: Map from camera to uint8 [H, W, 3], RGB, of any size, as recorded.
        fields: Map from field name to values [C].
    """

    images: Mapping[str, Array]
    fields: Mapping[str, Array]


class ImageFit:
    """Preprocessing of images to those that a policy was trained on; reports a resize once.

    Args:
        shape: Preprocessing of the training data.
        log: Function that gets one sentence per camera and size.
    """

    def __init__(self, shape: ImageShape, log: Callable[[str], None]) -> None:
        self._shape = shape
        self._log = log
        self._logged: set[tuple[str, tuple[int, ...]]] = set()

    def fit(self, camera: str, image: UInt8Array, *, is_turned: bool = False) -> UInt8Array:
        """Image uint8 [H, W, 3] as the policy takes it; see `ImageShape.apply`."""
        fitted = self._shape.apply(camera, image, is_turned=is_turned)
        size = image.shape[:2]
        if self._shape.size not in (None, size) and (camera, size) not in self._logged:
            self._logged.add((camera, size))
            (height, width), (target_height, target_width) = size, fitted.shape[:2]
            self._log(
                f"images of {camera!r} are {width} x {height}, the policy was trained on "
                f"{target_width} x {target_height}: resized as the training data were "
                f"({self._shape.method}, {self._shape.resample})"
            )
        return fitted


class History:
    """Past states and actions of one robot, as many as a policy takes.

    A step without an observation gets that of the next step that has one. So the steps before an
    episode equal its first.

    Raises:
        DataError: The policy takes future images.
    """

    def __init__(self, policy: RoboticsPolicy, fit: ImageFit) -> None:
        self._policy = policy
        self._fit = fit
        self._offsets = policy.data.image_indices
        if max(self._offsets, default=0) > 0:
            raise DataError(
                f"the policy takes future images: data.image_indices is {self._offsets}",
                hint="train a policy with data.image_indices of at most 0",
                code="data.future_pictures",
            )
        self._length = max(-min(self._offsets, default=0), policy.past) + 1
        self._states: deque[RobotState] = deque(maxlen=self._length)
        self._actions: deque[Mapping[str, Array]] = deque(maxlen=policy.past)

    def add_observation(self, state: RobotState, steps: int = 1) -> None:
        """Adds the newest state.

        Args:
            state: Images and fields.
            steps: Steps since the state before; ignored for the first of an episode.

        Raises:
            DataError: An image is invalid, or images have different sizes and the run does not
                record the size of its training data. The history is unchanged then.
        """
        images = {name: self._fitted(name, image) for name, image in state.images.items()}
        known = self._states[-1].images if self._states else {}
        _check_sizes([*known.values(), *images.values()])
        fitted = RobotState(images, state.fields)
        count = steps if self._states else self._length
        self._states.extend([fitted] * min(count, self._length))

    def add_action(self, action: Mapping[str, Array]) -> None:
        """Adds the action of an executed step: field to absolute values [C]."""
        self._actions.append(action)

    def observation(self, instruction: str) -> Observation:
        """Observation of the policy at the current step."""
        states = list(self._states)
        images = [
            states[offset - 1].images[camera]
            for offset in self._offsets
            for camera in self._policy.data.camera_names
        ]
        recent = states[-(self._policy.past + 1) :]
        fields = {
            name: np.stack([state.fields[name] for state in recent]) for name in states[-1].fields
        }
        past_actions, mask = self._past_actions(fields)
        return Observation(np.stack(images), fields, instruction, past_actions, mask)

    def _past_actions(
        self, fields: Mapping[str, Array]
    ) -> tuple[dict[str, Array] | None, Array | None]:
        """Actions of the last `past` steps [past, C] by field, and the mask of real ones [past]."""
        if not self._actions:
            return None, None
        missing = self._policy.past - len(self._actions)
        steps = [self._actions[0]] * missing + list(self._actions)
        actions = {name: np.stack([step[name] for step in steps]) for name in steps[0]}
        mask = np.arange(self._policy.past) >= missing
        return self._policy.relative_past_actions(actions, fields), mask

    def _fitted(self, camera: str, image: Array) -> UInt8Array:
        shape = image.shape
        if image.dtype != np.uint8 or len(shape) != _IMAGE_DIMENSIONS or shape[-1] != 3:
            raise DataError(
                f"the image of {camera!r} is {image.dtype} {list(shape)}, not uint8 [H, W, 3]",
                hint=_image_hint(image),
                code="data.no_picture",
                details={"camera": camera},
            )
        if 0 in shape:
            raise DataError(
                f"the image of {camera!r} is empty: {list(shape)}", code="data.no_picture"
            )
        # A copy: a camera may write every frame into the same buffer.
        return np.array(self._fit.fit(camera, image))


def _image_hint(image: Array) -> str:
    if image.dtype != np.uint8:
        return "give integers 0 to 255; for values 0 to 1: (255 * image).astype(np.uint8)"
    if image.ndim == _IMAGE_DIMENSIONS and image.shape[0] == 3:
        return "put the channels last: image.transpose(1, 2, 0)"
    return "give one RGB image per camera, without batch, alpha or depth"


def _check_sizes(images: Sequence[UInt8Array]) -> None:
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        raise DataError(
            f"images of different sizes: {sorted(sizes)}; the run does not record the size of its "
            "training data",
            hint="resize all images to the size of the training data",
            code="data.image_sizes_differ",
        )
