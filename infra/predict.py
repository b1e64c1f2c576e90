"""`osteon predict`: files straight through the model, without any server.

The way from bytes to a finding is the worker's own: its decoders, its batches, its engine.
"""

import contextlib
import csv
import fcntl
import io
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

import cv2
import numpy as np
from pydantic import TypeAdapter

from infra.client.receipt import printable
from infra.client.walk import Archive, Item, UnreadablePath, walk
from shared.archives import Bounds, open_archive
from shared.dicom.image import ImageLimits
from shared.domain.findings import Finding, abstention_words, shown_score
from shared.errors import OsteonError, Rejected
from shared.pixels.exposure import RotatedRectangle
from shared.pixels.tensors import UInt8Image, content_box
from shared.settings import Settings, cpu_count
from worker.batching import Batcher
from worker.decoder_pool import DecodedImage, Decoders, DecodingFailed, FileJob, SkippedFile

if TYPE_CHECKING:
    from worker.pipeline import ImageFailure, ImageResult, ModelBatcher

CAN_HEAL = ("unreadable", "decoding-failed")  # errors of the machine; such a file is tried again


@dataclass(frozen=True)
class Row:
    """One frame's line of the result; a file that could not be read has only `file` and `error`."""

    file: str
    frame: int | None = None
    region: str | None = None
    region_probability: float | None = None
    fracture_probability: float | None = None
    assessment: str | None = None
    score: float | None = None
    severity: str | None = None
    abstention: str | None = None  # the reason as a code
    abstention_detail: str | None = None
    abstention_words: str | None = None
    bundle: str | None = None
    error: str | None = None  # a reason for scripts, a colon, and words


ROW = TypeAdapter(Row)
COLUMNS = tuple(field.name for field in fields(Row))
HEADER = f"{','.join(COLUMNS)}\r\n".encode()


@dataclass(frozen=True)
class FileToRead:
    """A file, or a member of an archive."""

    name: str  # as the result shows it
    path: Path
    member: str | None = None
    error: str = ""  # why it is not even tried
    frames: int = 1  # assumed until it is opened
    pixels: int = 0


# -- which files


def files_of(places: Sequence[Path], settings: Settings) -> list[FileToRead]:
    """Find all files in these files, folders and zip archives, each once, in order of their names.

    A name is the path from the folder that all places have in common (a single folder is that folder itself), so that
    files of one name in several folders stay apart; a member of an archive is called archive!member.

    Args:
        places: files and folders.
        settings: an archive is held to the bounds of an upload.

    Returns:
        What to read; a file that cannot be read has its error.

    Raises:
        OsteonError: A place does not exist.
    """
    found: dict[str, FileToRead] = {}
    folders = [place if place.is_dir() else place.absolute().parent for place in places]
    common = Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))  # noqa: PTH100 - follows no link
    for place in places:
        inside = os.path.relpath(os.path.abspath(place), common)  # noqa: PTH100 - as above
        prefix = "" if inside == "." else f"{inside}/"
        for each in walk([place]):
            own = each.whole.name if isinstance(each, Archive) else each.name
            name = prefix + own if place.is_dir() else inside
            for file in _files(each, name, settings):
                found.setdefault(file.name, file)
    return list(found.values())


def _files(each: Item | Archive | UnreadablePath, name: str, settings: Settings) -> Iterator[FileToRead]:
    if isinstance(each, UnreadablePath):
        yield FileToRead(name, each.path, error=f"unreadable: {each.why}")
    elif isinstance(each, Item):
        yield FileToRead(name, each.path)
    else:
        path = each.whole.path
        try:
            with path.open("rb") as file, open_archive(file, each.whole.size_bytes, bounds(settings)):
                pass
        except Rejected as error:
            yield FileToRead(name, path, error=f"{error.reason}: {error}")
            return
        for member in each.members:
            yield FileToRead(f"{name}!{member.member}", path, member.member)


def bounds(settings: Settings) -> Bounds:
    """Take from the settings what an archive may hold."""
    return Bounds(settings.max_request_files, settings.max_request_bytes, settings.max_archive_ratio)


# -- through the model


class FilePredictor:
    """The worker's decoders, batches and engine for one bundle. Use it in a with block: the decoders are processes."""

    def __init__(self, bundle: bytes, settings: Settings, heatmaps: Path | None = None) -> None:
        """Start decoders and load the model; raises BadBundle.

        Args:
            bundle: the file's content.
            settings: limits, batch size and number of decoders.
            heatmaps: folder for a picture of each frame with its heatmap; None: none are drawn.
        """
        self._settings, self._heatmaps = settings, heatmaps
        limits = ImageLimits.of(settings)
        self._decoders = Decoders(
            None,
            limits,
            count=settings.decoders or cpu_count(),
            limit_s=settings.decode_limit_s,
            memory_bytes=settings.decode_memory_bytes,
            log_level="ERROR",
        )
        self._decoders.begin()  # they start while torch does, which takes seconds
        try:
            from shared.model.engines import calling_threads, images_per_call
            from shared.model.predictor import Predictor

            self.predictor = Predictor.for_service(bundle, None, _cache(settings))
        except BaseException:
            self._decoders.close()
            raise
        self._batcher: ModelBatcher = Batcher(
            "model",
            lambda items: self.predictor.predict([square for _, square in items]),
            max_batch=images_per_call(settings.batch_size),
            max_wait_s=settings.batch_wait_ms / 1000,
            streams=calling_threads(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoders.close()
        self._batcher.close()

    def read(self, files: Iterable[FileToRead]) -> Generator[list[Row], None, None]:
        """Read files with the model.

        A file's heatmaps are written before its rows are given. Close the iterator to give up.

        Args:
            files: read ahead while the model works.

        Yields:
            The rows of each file, in order, as they come: one with its error for a file that cannot be read, none for
            one that is no image by design.
        """
        with contextlib.closing(self.findings(files)) as outcomes:
            for outcome in outcomes:
                yield self._rows(outcome)

    def findings(
        self, files: Iterable[FileToRead]
    ) -> "Generator[ImageResult[FileToRead] | ImageFailure[FileToRead], None, None]":
        """Read files as `read` does, but give findings, with their heatmaps as numbers."""
        from worker.pipeline import analyse_images

        return analyse_images(files, self.predictor, self._decode, self._batcher)

    def _decode(self, file: FileToRead) -> "Future[DecodedImage]":
        if file.error:
            failed: Future[DecodedImage] = Future()
            failed.set_exception(_Skipped(file.error))
            return failed
        job = FileJob(
            file.path,
            file.member,
            self.predictor.size,
            previews=self._heatmaps is not None,
            bounds=bounds(self._settings),
            max_file_bytes=self._settings.max_file_bytes,
        )
        return self._decoders.file(job)

    def _rows(self, outcome: "ImageResult[FileToRead] | ImageFailure[FileToRead]") -> list[Row]:
        from worker.pipeline import ImageResult

        name = outcome.image.name
        if not isinstance(outcome, ImageResult):
            if isinstance(outcome.error, SkippedFile):
                return []
            return [Row(name, error=_words(outcome.error, decoded=outcome.decoded))]
        if self._heatmaps is not None:
            for finding, preview in zip(outcome.findings, outcome.previews, strict=True):
                draw(self._heatmaps / f"{name}-{finding.frame}.png", preview, finding)
        return [_row(name, finding) for finding in outcome.findings]


class _Skipped(Exception):
    """A file that was not tried; its text is the row's error."""


def _words(error: Exception, *, decoded: bool) -> str:
    if isinstance(error, _Skipped):
        return str(error)
    if isinstance(error, Rejected):
        return f"{error.reason}: {error}"
    if decoded:
        return f"analysis-failed: the model could not read it ({type(error).__name__})"
    if isinstance(error, OSError):
        return f"unreadable: {error.strerror or type(error).__name__}"
    if isinstance(error, DecodingFailed):
        return f"decoding-failed: {error}"
    return f"decoding-failed: Decoding failed ({type(error).__name__})"  # its text may quote the header


def _cache(settings: Settings) -> Path:
    """Choose the stack's cache where a stack has its home here, else the user's: not a folder of radiographs."""
    if settings.cache_dir is not None or settings.home.is_dir():
        return settings.cache
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osteon"


def _row(name: str, finding: Finding) -> Row:
    return Row(
        file=name,
        frame=finding.frame,
        region=finding.region,
        region_probability=round(finding.region_probability, 4),
        fracture_probability=round(finding.fracture_probability, 4),
        assessment=finding.assessment,
        score=None if finding.score is None else shown_score(finding.score),
        severity=finding.extent,
        abstention=finding.abstention or None,
        abstention_detail=finding.abstention_detail or None,
        abstention_words=abstention_words(finding.abstention, finding.abstention_detail, finding.score) or None,
        bundle=finding.bundle,
    )


def draw(path: Path, preview: UInt8Image, finding: Finding) -> None:
    """Write the preview with its heatmap laid over.

    Args:
        path: of a PNG file; its folder is made.
        preview: (H, W) uint8.
        finding: of the same frame.

    Raises:
        OsteonError: The picture cannot be encoded.
        OSError: The file cannot be written.
    """
    height, width = preview.shape
    gray = preview.astype(np.float32)
    share_x, share_y, wide, high = finding.field.shares if finding.field else (0.0, 0.0, 1.0, 1.0)
    begin_x, begin_y = round(share_x * width), round(share_y * height)
    end_x, end_y = max(begin_x + 1, round((share_x + wide) * width)), max(begin_y + 1, round((share_y + high) * height))
    side = max(end_x - begin_x, end_y - begin_y)
    top, left, fitted_h, fitted_w = content_box(end_y - begin_y, end_x - begin_x, side)
    grid = np.frombuffer(finding.heatmap.values, np.uint8).reshape(finding.heatmap.height, finding.heatmap.width)
    square = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
    seen = square[top : top + fitted_h, left : left + fitted_w]
    middle_y, middle_x = (share_y + high / 2) * height, (share_x + wide / 2) * width
    lies = RotatedRectangle(middle_y, middle_x, fitted_h, fitted_w, finding.field.turn / 1000 if finding.field else 0.0)
    heat = np.asarray(cv2.warpAffine(seen, lies.matrix, (width, height)), np.uint8)  # 0 outside of the field
    strength = (heat.astype(np.float32) / 255)[..., None] * 0.6
    amber = np.array([30, 120, 255], np.float32)  # blue, green, red
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = gray[..., None] * (1 - strength) + amber * strength
    written, encoded = cv2.imencode(".png", picture.astype(np.uint8))
    if not written:
        raise OsteonError(f"{printable(str(path))} cannot be written")
    path.write_bytes(encoded.tobytes())


# -- a table that can be gone on with


class Table:
    """The CSV: COLUMNS as header, one line a frame, on the disk as soon as a file is read.

    A table that is there already is gone on with: `kept` are its rows, and the files that they are of need not be read
    again. Left out of it are a last line that was cut off, the rows of the last file, of which some may be missing, and
    errors that can heal.
    Raises OsteonError for a file that is no such table, holds another bundle's rows, or is being written by another
    process; OSError.
    """

    def __init__(self, path: Path, bundle: str, *, fresh: bool) -> None:
        """Open a table, and keep what is there.

        Args:
            path: of the CSV file.
            bundle: name of the one whose rows are written.
            fresh: forget what is there.
        """
        self.path = path
        try:
            content = b"" if fresh else path.read_bytes()
        except FileNotFoundError:
            content = b""
        self.kept = _parse(path, content, bundle)
        head = io.StringIO(newline="")
        table = csv.DictWriter(head, COLUMNS)
        table.writeheader()
        table.writerows(self.kept)
        begun = head.getvalue().encode("utf-8", "surrogateescape")
        self._file = _open(path)
        try:
            if begun != content:
                self._replace(begun)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, rows: Sequence[Row]) -> None:
        """Add the rows of one file, all or none; raises OSError."""
        text = io.StringIO(newline="")
        csv.DictWriter(text, COLUMNS).writerows(asdict(row) for row in rows)
        left = memoryview(text.getvalue().encode("utf-8", "surrogateescape"))
        end = self._file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[self._file.write(left) or 0 :]
        except OSError:
            self._file.truncate(end)  # a full disk may have taken some of it
            raise

    def _replace(self, content: bytes) -> None:
        """Put a new file in the place of the old one, which stays whole until then."""
        partial = self.path.with_name(f"{self.path.name}.partial")
        partial.unlink(missing_ok=True)
        new = _open(partial)
        try:
            new.write(content)
            os.fsync(new.fileno())
            partial.replace(self.path)
        except BaseException:
            new.close()
            partial.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file = new


def _open(path: Path) -> io.FileIO:
    """Open and lock a file; raises OsteonError while another process holds it, OSError."""
    file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise OsteonError(f"Another osteon predict is writing {path}; wait for its end, or name another file") from None
    return file


def _parse(path: Path, content: bytes, bundle: str) -> list[dict[str, str]]:
    """Read the rows to keep."""
    if HEADER.startswith(content):
        return []
    lines = csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""), strict=True)
    records: list[list[str]] = []
    cut = not content.endswith(b"\n")
    try:
        records.extend(lines)
    except csv.Error:  # within quotes, or bytes that a crash left behind
        cut = True
    else:
        if cut:
            records.pop()
    if records[:1] != [list(COLUMNS)] or any(len(record) != len(COLUMNS) for record in records):
        raise OsteonError(
            f"{path} is no table of this version of osteon predict; name another file, or write over it with --fresh"
        )
    rows = [dict(zip(COLUMNS, record, strict=True)) for record in records[1:]]
    others = {row["bundle"] for row in rows} - {bundle, ""}
    if others:
        raise OsteonError(
            f"{path} holds what {', '.join(sorted(others))} said, and this is {bundle}; name another file, or write "
            "over it with --fresh"
        )
    unsure = rows[-1]["file"] if rows else ""
    rows = [row for row in rows if row["file"] != unsure]
    return [row for row in rows if row["error"].split(":")[0] not in CAN_HEAL]


def as_row(texts: Mapping[str, str]) -> Row:
    """Make a row of what a table holds."""
    return ROW.validate_python({name: texts[name] or None for name in COLUMNS})
