"""Records episodes from Python, as frames or as a LeRobot data set.

A thread for each camera encodes images while your loop goes on. When `end_episode` returns, the
episode is in the output, and the output is complete.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, get_args

import numpy as np

from vlatool.datasets.frames.writer import FramesConfig, FramesSink
from vlatool.episode import (
    Array,
    Clip,
    Episode,
    EpisodeRef,
    FieldSpec,
    FrameSource,
    Survey,
    as_array,
    channels_last,
)
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.events import NULL, counted
from vlatool.jobs.executor import SerialExecutor
from vlatool.jobs.files import (
    FOLDER,
    changed_files,
    remove_owned,
    remove_partial_files,
    write_file_list,
)
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Journal, Receipt
from vlatool.jobs.ownership import claim_output, plan_output, resume_output
from vlatool.jobs.record import OutputRecord, output_lock
from vlatool.media import limits
from vlatool.media.frames import VideoFrames
from vlatool.media.images import decode_rgb
from vlatool.media.video import VideoEncoder
from vlatool.plugins import did_you_mean
from vlatool.recordings.base import camera_name_problem
from vlatool.recordings.lerobot.set_layout import LeRobotSinkConfig
from vlatool.recordings.lerobot.writer import LeRobotSink
from vlatool.recordings.writing import (
    Sink,
    SinkSetup,
    SinkSummary,
    encoder_options,
    with_encoders_of,
)
from vlatool.storage.atomic import as_storage_error, remove_tree
from vlatool.storage.uri import location

_log = logging.getLogger(__name__)

Form = Literal["frames", "lerobot"]
Values = Mapping[str, Any] | Sequence[float] | Array

_LARGEST_QUEUE = 2**28  # bytes of images that wait to be encoded
_LARGEST_DENOMINATOR = 1001  # of rates such as 30000/1001
_CAMERAS = "recorded_cameras"
_FIELDS = "recorded_fields"


def record(output: str | Path, *, fps: float, form: Form = "frames") -> "EpisodeRecorder":
    """Opens a folder to record into; if it has episodes already, new ones are added.

    Args:
        output: Local folder.
        fps: Steps per second, at which your loop calls `add`.
        form: `frames`, which `vlatool train` reads, or `lerobot`, a LeRobot v3.0 data set. Both
            have the files that `vlatool preprocess` writes.

    Raises:
        UsageError: The folder holds something else, was recorded with another `fps` or `form`, or
            is in use by another process.
    """
    return EpisodeRecorder(location(output), fps, form)


class EpisodeRecorder:
    """Writes the episodes that you record, step by step; use it in a `with` block."""

    def __init__(self, output: Path, fps: float, form: Form) -> None:
        if isinstance(fps, bool) or not limits.possible_rate(fps):
            low, high = limits.RATES
            hint = f"give the steps per second, {low:g} to {high:g}, such as fps=30"
            raise _usage(f"fps={fps!r}", hint)
        if form not in get_args(Form):
            raise _usage(f"form={form!r}", "choose frames or lerobot")
        self._output = output
        self._fps = float(fps)
        self._form: Form = form
        sink: type[Sink] = RecordedFrames
        config: FramesConfig | LeRobotSinkConfig = FramesConfig()
        if form == "lerobot":
            sink, config = RecordedSet, LeRobotSinkConfig()
        self._config = with_encoders_of(output, config)
        options = {"fps": self._fps, "form": form, **encoder_options(self._config)}
        record = OutputRecord("record", options, owned=tuple(sink.owned))
        self._cameras: dict[str, tuple[int, int]] = {}  # (height, width)
        self._fields: dict[str, int] = {}
        self._receipts: list[Receipt] = []
        # A LeRobot set keeps what it has written, so that an episode takes as long as the first.
        self._set: RecordedSet | None = None
        self._is_closed = False
        self._open: OpenEpisode | None = None
        self._stack = ExitStack()
        self._stack.enter_context(output_lock(output, "vlatool.record"))
        try:
            before = plan_output(output, record, overwrite=False, hint="record to another folder")
            # While a process writes the lists of the output, the record is not complete.
            is_whole = before is not None and before.complete
            damaged = changed_files(output) if is_whole else []
            if damaged:
                raise UsageError(
                    f"{output}: {damaged[0]} is missing, or has changed since it was recorded",
                    hint="record to another folder; `vlatool verify` lists the damage in this one",
                    code="usage.output_differs",
                )
            self._record = record.after(before)
            self._journal = Journal(output)
            if before is None:
                claim_output(output, self._record, sink.owned)
            else:
                resume_output(output, replace(self._record, complete=before.complete))
            remove_partial_files(output)
            remove_tree(_spool_folder(output))  # of an episode that a killed process had open
            while (receipt := self._journal.find(f"{self.episodes:06d}", "")) is not None:
                self._receipts.append(receipt)
            if self._receipts:
                self._take_schema(self._receipts[0].facts)
                self._finish()  # of an episode that was written when the process was killed
        except BaseException:
            self._stack.close()
            raise

    @property
    def episodes(self) -> int:
        """Number of episodes in the output."""
        return len(self._receipts)

    def add(
        self,
        images: Mapping[str, Any],
        *,
        state: Values | None = None,
        action: Values | None = None,
    ) -> None:
        """Adds a step.

        It returns when images and values are copied. If encoding falls behind, it waits, and says
        so once.

        Args:
            images: Dict from the name of a camera to its image, uint8 [H, W, 3], RGB.
            state: What the robot measures about itself: a dict from name to numbers, or the numbers
                alone. They become the fields `state.NAME`, or `state`, which a policy observes.
            action: What the robot is told to do, in the same form; a policy predicts these fields.

        Raises:
            DataError: A value is missing, is not finite, or has another shape or type than in the
                first step.
            StorageError: An image of an earlier step cannot be written, as on a full disk: call
                `drop_episode`, free space, and record the episode again.
        """
        self._check_is_open()
        if self._open is None:
            self._open = OpenEpisode(self._output, self._config, self._fps)
        step = self._open.frames
        if not isinstance(images, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            kind = type(images).__name__
            raise _step_error(step, f"images is a {kind}", 'give a dict such as {"front": image}')
        pixels = {name: _image(name, value) for name, value in images.items()}
        values = {**_fields("state", state), **_fields("action", action)}
        if not self._cameras and not self._fields:
            for name in pixels:
                if (unusable := camera_name_problem(name)) is not None:
                    raise unusable
                if name != name.lower():  # readers of the published files do not tell them apart
                    problem = f"the name of the camera {name!r} has capital letters"
                    raise _step_error(step, problem, "use lowercase letters")
            if not pixels and not values:
                raise _step_error(step, "has neither images nor numbers", "give some")
            self._cameras = {name: image.shape[:2] for name, image in pixels.items()}
            self._fields = {name: len(row) for name, row in values.items()}
        _check_names(step, "camera", pixels, self._cameras)
        _check_names(step, "field", values, self._fields)
        for name, image in pixels.items():
            if image.shape[:2] != self._cameras[name]:
                height, width = self._cameras[name]
                size = f"{image.shape[1]} x {image.shape[0]}, not {width} x {height} as before"
                raise _step_error(step, f"the camera {name!r} is {size}", "keep one size")
        for name, row in values.items():
            if len(row) != self._fields[name]:
                problem = f"the field {name!r} has {len(row)} numbers, not {self._fields[name]}"
                raise _step_error(step, problem, "keep the same number in each step")
        self._open.add(pixels, values)

    def end_episode(self, *, instruction: str = "", success: bool | None = None) -> None:
        """Writes the open episode to the output.

        Args:
            instruction: What the robot was asked to do; "" for nothing.
            success: Whether it succeeded; None if you do not know.

        Raises:
            UsageError: No step was added.
            StorageError: The episode cannot be written. It stays open: free space, and call again.
                If only the lists of the output cannot be written, `episodes` already counts the
                episode: the next episode, or opening the folder again, writes the lists.
        """
        self._check_is_open()
        if self._open is None or not self._open.frames:
            raise _usage("the episode has no steps", "call add() for each step first")
        is_text = isinstance(instruction, str) and instruction.isprintable()
        if not is_text:
            raise _usage(f"instruction={instruction!r}", "give one sentence as text")
        if not isinstance(success, bool | np.bool_ | None):
            raise _usage(f"success={success!r}", "give True, False or None")
        episode = self._open.episode(f"{self.episodes:06d}", instruction, success=success)
        ref = EpisodeRef(episode.id, self._output, str(self._output))
        survey = self._survey(self.episodes + 1)
        receipt = self._sink(survey, [ref]).work(ref, episode)
        facts = {_CAMERAS: self._cameras, _FIELDS: self._fields}
        receipt = replace(receipt, facts={**receipt.facts, **facts})
        self._journal.store(receipt)
        self._receipts.append(receipt)
        self._open.close()
        self._open = None  # it is written; what may still fail are the lists of the output
        self._finish()

    def drop_episode(self) -> None:
        """Forgets the open episode, such as one that failed."""
        if self._open is not None:
            if self._open.frames:
                steps = counted(self._open.frames, "step")
                _log.warning("%s: the open episode of %s is dropped", self._output, steps)
            self._open.close()
            self._open = None
        if not self._receipts:
            self._cameras = {}
            self._fields = {}
            self._set = None

    def close(self) -> None:
        """Ends the recording; an open episode is dropped."""
        try:
            self.drop_episode()
        finally:
            self._is_closed = True
            self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_is_open(self) -> None:
        if self._is_closed:
            raise _usage("the recorder is closed", "open the folder again: vlatool.record(...)")

    def _take_schema(self, facts: Mapping[str, Any]) -> None:
        self._cameras = {name: (size[0], size[1]) for name, size in facts[_CAMERAS].items()}
        self._fields = dict(facts[_FIELDS])

    def _survey(self, episodes: int) -> Survey:
        fields = {name: FieldSpec(width) for name, width in self._fields.items()}
        return Survey(
            episodes,
            self._cameras,
            fields,
            fps=self._fps,
            action_fields=_of("action", fields),
            proprioception_fields=_of("state", fields),
        )

    def _sink(self, survey: Survey, refs: Sequence[EpisodeRef]) -> Sink:
        origin = {"type": "record"}
        setup = SinkSetup(self._output, survey, refs, origin)
        if isinstance(self._config, FramesConfig):
            return RecordedFrames(self._config, setup)
        if self._set is None:
            self._set = RecordedSet(self._config, setup)
        return self._set

    def _finish(self) -> None:
        """Writes what all episodes share: metadata, the list of files and the record."""
        refs = [
            EpisodeRef(receipt.item, self._output, str(self._output)) for receipt in self._receipts
        ]
        sink = self._sink(self._survey(len(refs)), refs)
        self._record = replace(self._record, complete=False)
        self._record.save(self._output)
        with SerialExecutor() as executor:
            run = JobRun("written", self._record, executor, NULL)
            for receipt in self._receipts:
                run.add_receipt(receipt)
            try:
                summary = sink.finish(iter(self._receipts), run)
            except BaseException:
                self._set = None  # it may have written a part
                raise
        remove_owned(self._output, sink.temporary)
        write_file_list(self._output, summary.files)
        result = {"episodes": len(refs), "frames": run.sums["frames"], "samples": summary.samples}
        self._record = self._record.finished({}, result, has_failures=False)
        self._record.save(self._output)


class RecordedFrames(FramesSink):
    """Folder of frames; its episodes may be shorter than a window."""

    may_lack_windows: ClassVar[bool] = True


class RecordedSet(LeRobotSink):
    """A LeRobot data set in which each episode has its own files, so a new one changes no other
    file.

    `finish` writes what is new since its last call.
    """

    has_own_files: ClassVar[bool] = True
    _finished = 0

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        """Writes the files of new episodes, and all lists."""
        new = [*receipts][self._finished :]
        self._finished += len(new)
        return super().finish(iter(new), run)


# The open episode


class Spool(Protocol):
    """Encoded images of one camera, for the open episode."""

    def add(self, image: Array) -> None:
        """Encodes an image uint8 [H, W, 3]."""
        ...

    def frames(self) -> FrameSource:
        """All images; call it when the episode is over."""
        ...

    def close(self) -> None: ...


class JpegSpool:
    """JPEG files one after the other in a temporary file."""

    def __init__(self, folder: Path, config: FramesConfig) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._config = config
        self._ends = [0]
        self._size = (0, 0)

    def add(self, image: Array) -> None:
        data = self._config.encode_image(image)
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))
        self._size = (image.shape[0], image.shape[1])

    def frames(self) -> FrameSource:
        self._file.flush()
        return SpooledJpegs(self._file.fileno(), self._ends, self._size)

    def close(self) -> None:
        self._file.close()


class SpooledJpegs(FrameSource):
    """Images of a `JpegSpool`, as they are written to the output."""

    is_prepared = True

    def __init__(self, file: int, ends: Sequence[int], size: tuple[int, int]) -> None:
        self._file = file
        self._ends = ends
        self._size = size

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def encoded(self, index: int) -> bytes:
        start, stop = self._ends[index : index + 2]
        return os.pread(self._file, stop - start, start)

    def read(self, indices: Sequence[int]) -> Array:
        return np.stack([decode_rgb(self.encoded(index)) for index in indices])


class VideoSpool:
    """A video, encoded in memory, and written to a temporary file when the episode ends."""

    def __init__(self, folder: Path, fps: float, config: LeRobotSinkConfig) -> None:
        rate = Fraction(fps).limit_denominator(_LARGEST_DENOMINATOR)
        self._encoder = VideoEncoder(
            rate,
            crf=config.video_crf,
            preset=config.video_preset,
            keyframe_interval=config.keyframe_interval,
        )
        self._file = tempfile.NamedTemporaryFile(dir=folder, suffix=".mp4")  # noqa: SIM115
        self._count = 0
        self._data = b""

    def add(self, image: Array) -> None:
        self._encoder.add(image)
        self._count += 1

    def frames(self) -> FrameSource:
        self._data = self._data or self._encoder.finish()
        self._file.seek(0)
        self._file.write(self._data)
        self._file.flush()
        return VideoFrames(Clip(Path(self._file.name)), self._count)

    def close(self) -> None:
        self._file.close()


def _spool_folder(output: Path) -> Path:
    return output / FOLDER / "recording"


class OpenEpisode:
    """Steps that are not in the output yet."""

    def __init__(self, output: Path, config: FramesConfig | LeRobotSinkConfig, fps: float) -> None:
        self.frames = 0
        self._folder = _spool_folder(output)
        self._config = config
        self._fps = fps
        with as_storage_error(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._rows: dict[str, list[Array]] = {}
        self._spools: dict[str, Spool] = {}
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._waiting = 0  # bytes of images
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._has_said = False

    def add(self, images: Mapping[str, Array], values: Mapping[str, Array]) -> None:
        """Copies a step; images are encoded later."""
        self._raise_error()
        size = sum(image.nbytes for image in images.values())
        with self._changed:
            if self._waiting and self._waiting + size > _LARGEST_QUEUE and not self._has_said:
                self._has_said = True
                _log.warning("encoding is slower than your loop: add() waits, no image is lost")
            while self._waiting and self._waiting + size > _LARGEST_QUEUE and not self._error:
                self._changed.wait()
            self._waiting += size
        for name, image in images.items():
            if name not in self._spools:
                self._spools[name] = self._new_spool()
                self._threads[name] = ThreadPoolExecutor(1, f"record-{name}")
            future = self._threads[name].submit(self._spools[name].add, np.array(image, order="C"))
            future.add_done_callback(lambda future, size=image.nbytes: self._done(future, size))
        for name, row in values.items():
            self._rows.setdefault(name, []).append(row)
        self.frames += 1

    def _new_spool(self) -> Spool:
        with as_storage_error(self._folder):
            if isinstance(self._config, FramesConfig):
                return JpegSpool(self._folder, self._config)
            return VideoSpool(self._folder, self._fps, self._config)

    def _done(self, future: "Future[None]", size: int) -> None:
        with self._changed:
            self._waiting -= size
            if not future.cancelled():
                self._error = self._error or future.exception()
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            with as_storage_error(self._folder):
                raise self._error

    def episode(self, name: str, instruction: str, *, success: bool | None) -> Episode:
        """The episode; waits until all images are encoded."""
        with self._changed:
            while self._waiting and not self._error:
                self._changed.wait()
        self._raise_error()
        with as_storage_error(self._folder):
            cameras = {camera: spool.frames() for camera, spool in self._spools.items()}
        fields = {field: np.stack(rows) for field, rows in self._rows.items()}
        return Episode(
            id=name,
            task=instruction,
            fps=self._fps,
            num_frames=self.frames,
            cameras=cameras,
            lowdim=fields,
            language={"original": [instruction]} if instruction.strip() else {},
            success=None if success is None else bool(success),
            action_fields=_of("action", fields),
            proprioception_fields=_of("state", fields),
        )

    def close(self) -> None:
        for thread in self._threads.values():
            thread.shutdown(cancel_futures=True)
        for spool in self._spools.values():
            with suppress(OSError):  # a full disk takes no last bytes, which nobody needs
                spool.close()


# Checks


def _image(name: Any, value: Any) -> Array:
    if not isinstance(name, str):
        raise _usage(f"the camera {name!r}", "use a string as its name")
    image = channels_last(as_array(name, value))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(
            f"the camera {name!r} is {image.dtype} {list(image.shape)}, not uint8 [H, W, 3]",
            hint="give an RGB image with levels 0 to 255 as uint8",
            code="data.bad_request",
            details={"camera": name},
        )
    return image


def _fields(kind: str, values: Values | None) -> dict[str, Array]:
    """Checked rows float32 [C] by the name of their field."""
    if values is None:
        return {}
    named = values.items() if isinstance(values, Mapping) else [("", values)]
    rows: dict[str, Array] = {}
    for name, value in named:
        field = f"{kind}.{name}" if name else kind
        row = as_array(field, value).reshape(-1)
        if row.dtype.kind not in "fiub" or not row.size:
            raise DataError(
                f"the field {field!r} is {row.dtype} {list(row.shape)}, not numbers",
                hint="give numbers",
                code="data.mismatch",
                details={"field": field},
            )
        with np.errstate(over="ignore"):
            row = row.astype(np.float32)
        if not np.isfinite(row).all():
            raise DataError(
                f"the field {field!r} has values that are not finite as float32",
                hint="give finite values; leave the step out if the robot has no value",
                code="data.not_finite",
                details={"field": field},
            )
        rows[field] = row
    return rows


def _check_names(step: int, kind: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in given:
        if name not in known:
            hint = did_you_mean(name, [*known]) or f"this folder has: {', '.join(known) or 'none'}"
            raise _step_error(step, f"the {kind} {name!r} was not recorded before", hint)
    missing = [name for name in known if name not in given]
    if missing:
        names = ", ".join(map(repr, missing))
        raise _step_error(step, f"this step lacks the {kind} {names}", "give all in each step")


def _of(kind: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in fields if name == kind or name.startswith(f"{kind}."))


def _step_error(step: int, problem: str, hint: str) -> DataError:
    return DataError(f"step {step}: {problem}", hint=hint, code="data.bad_request")


def _usage(problem: str, hint: str) -> VlatoolError:
    return UsageError(problem, hint=hint, code="usage.bad_value")
