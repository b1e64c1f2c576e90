"""From bytes to findings as the API and the worker go, with everything watched that must not happen."""

import asyncio
import io
import json
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from api.intake.archives import unpack_archive
from api.spool import Spool, open_spool, receive
from shared.archives import starts_as_archive
from shared.dicom.header import read_header
from shared.dicom.image import ImageLimits
from shared.domain.findings import AbstentionReason, Assessment, Finding
from shared.domain.manifest import Manifest
from shared.domain.study import Header
from shared.errors import BadRequest, CannotUnderstand, Rejected, UndecodablePixels
from shared.model.engines import EngineOutput
from shared.model.predictor import Predictor
from shared.pixels.decode import PixelSource
from shared.pixels.frames import PREVIEW_SIDE, open_image
from tests.fuzz.sound import MARKERS
from tests.pace import slowness
from worker.decoder_pool import preview

# small enough that a case that reaches a limit is over soon; the ratios between them are those of the defaults
LIMITS = ImageLimits(max_header_bytes=2**20, max_frame_pixels=1_000_000, max_frames=20, max_decoded_bytes=2**24)
MAX_MIB = 192  # of memory for a case, beyond what the process and the file itself take
MAX_CPU_S = 5.0  # on the machine that limits were written on
MAX_FILES, MAX_BYTES, MAX_RATIO = 50, 2**24, 200
MAX_MESSAGE_LENGTH = 400
SIZE = 64
REASONS = {kind.reason for kind in Rejected.__subclasses__()} | {Rejected.reason}
FAILURES = {0x0122, 0xA900, 0xA700, 0xC122, *range(0xC000, 0xC100)}


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    result: str  # "findings", or the error classes, e.g. "TooLarge" or "TruncatedPixels (worker)"
    wrong: str = ""  # what must not have happened; empty for a case that holds
    wall_s: float = 0.0
    cpu_s: float = 0.0
    mib: float = 0.0  # peak memory beyond that before the case


class WrongOutcome(Exception):
    """Something that must not happen."""


def predictor() -> Predictor:
    """A predictor whose network is arithmetic on the square: any input reaches every output, at no cost."""
    manifest = Manifest(
        name="hostile-1", regions=["hand", "elbow"], input_size=SIZE, sensitive=0.2, specific=0.6,
        modalities=["CR", "DX"], other_body_parts=["CHEST"], least_region_probability=0.4, most_ood_score=2.0,
        hardware=0.8, heatmap_full=0.5,
    )  # fmt: skip

    def engine(squares: np.ndarray) -> EngineOutput:
        level = squares.reshape(len(squares), -1).astype(np.float32).mean(1) / 64 - 2
        cells = squares.reshape(len(squares), 8, SIZE // 8, 8, SIZE // 8).mean((2, 4), dtype=np.float32) / 32 - 4
        return EngineOutput(
            np.stack([level, -level], 1), level, np.stack([level, level - 1, level - 2], 1), cells, level**2, level - 3
        )

    return Predictor(None, manifest, engine)  # type: ignore[arg-type]


class ChildSystem:
    """One child's view of the system: a spool folder and a predictor."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        self.predictor = predictor()
        self.sink = OutputCapture()

    def file(self, data: bytes) -> Outcome:
        """An uploaded file, an archive or not."""
        return self._watched(lambda: self._file(data), len(data))

    def request(self, body: bytes, content_type: str) -> Outcome:
        """A multipart request."""
        return self._watched(lambda: self._request(body, content_type), len(body))

    def probe(self, name: str) -> Outcome:
        """Something that must not happen, to see that it would be seen."""
        return self._watched(PROBES[name], 0)

    def _watched(self, case: Any, size: int) -> Outcome:
        outcome = self._once(case, size)
        for _ in range(
            2
        ):  # a neighbour on the same core can multiply a case's processor time; three times in a row it would not
            if outcome.wrong or outcome.cpu_s <= MAX_CPU_S:
                return outcome
            outcome = min(outcome, self._once(case, size), key=lambda one: (not one.wrong, one.cpu_s))
        if not outcome.wrong and outcome.cpu_s > MAX_CPU_S * slowness():
            return replace(outcome, wrong=f"took {outcome.cpu_s:.1f} s of processor time")
        return outcome

    def _once(self, case: Any, size: int) -> Outcome:
        reset_peak()
        before = rss_mib()
        wall, cpu = time.perf_counter(), time.process_time()
        wrong = ""
        with self.sink.caught() as said, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                result = case()
            except WrongOutcome as error:
                result, wrong = "wrong", str(error)
            except BaseException as error:  # an unnamed error, which is what all this looks for
                result = "wrong"
                wrong = f"unnamed {type(error).__name__}: {error}\n" + "".join(
                    traceback.format_tb(error.__traceback__)[-4:]
                )
        spent, used = time.process_time() - cpu, peak_mib() - before
        wrong = wrong or _noise(said.text, [str(warning.message) for warning in warned])
        if not wrong and used > MAX_MIB + 4 * size / 2**20:
            wrong = f"took {used:.0f} MiB"
        return Outcome(result, wrong, time.perf_counter() - wall, spent, used)

    def _file(self, data: bytes) -> str:
        with open_spool(None) as spool:
            spooled = spool.append("name.dcm", iter([data]))
            if not starts_as_archive(spooled.start):
                return self._instance(data)
            return self._archive(spool, spooled)

    def _archive(self, spool: Spool, spooled: Any) -> str:
        results = set()
        try:
            for member in unpack_archive(spool, spooled, MAX_FILES, MAX_BYTES, MAX_RATIO):
                if isinstance(member, tuple):
                    name, why = member
                    results.add(named(why))
                else:
                    name = member.name
                    with spool.open(member) as file:
                        results.add(self._instance(file.read()))
                name.encode()  # it stands in the receipt
        except Rejected as error:
            results.add(named(error))
        if not results:
            raise WrongOutcome("an archive was passed over in silence")
        if spool.end - spooled.size_bytes > MAX_BYTES * 1.2:
            raise WrongOutcome(f"an archive was unpacked to {spool.end} bytes")
        return "archive: " + " + ".join(sorted(results)[:2])

    def _instance(self, data: bytes) -> str:
        """A file that is no archive. The worker is shown what the API refuses, too: it may have been stored before."""
        header, refused = None, ""
        try:
            read = read_header(io.BytesIO(data), len(data), LIMITS)
            check_header(read)
            if read.kept:  # no worker gets it
                refused = f"kept: {read.kept}"
            else:
                header = read
        except Rejected as error:
            refused = named(error)
        try:
            findings = self._analyse(data, header)
        except Rejected as error:
            if header and not isinstance(error, UndecodablePixels):  # damage inside a stream shows when it is decoded
                raise WrongOutcome(f"intake took what the decoder refuses: {named(error)}") from None
            return refused or f"{named(error)} (worker)"
        return refused or ("findings" if findings else "nothing")

    def _analyse(self, data: bytes, header: Header | None) -> list[Finding]:
        try:
            opened = open_image(data, LIMITS)
        except Rejected as error:
            if header:
                raise WrongOutcome(f"intake took what the decoder refuses for its header: {named(error)}") from None
            raise
        source = opened.source
        if header and isinstance(source, PixelSource):
            agree(header, source)
        squares = []
        for frame in opened.frames(SIZE):
            index = frame.number - 1
            if isinstance(source, PixelSource):
                image = source.frame(index)
                if image.shape != (source.rows, source.columns) or not np.isfinite(image).all():
                    raise WrongOutcome(f"frame {index + 1} is {image.shape} or not finite")
            squares.append(frame.square)
            picture = preview(frame.preview())
            shown = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_UNCHANGED)
            if shown is None or shown.ndim != 2 or max(shown.shape) > PREVIEW_SIDE:
                raise WrongOutcome(f"the preview of frame {index + 1} is no gray image of a size that was asked for")
        outputs = self.predictor.predict(squares)
        findings = [
            self.predictor.finding(output, number, opened.modality, opened.body_part)
            for number, output in enumerate(outputs, start=1)
        ]
        for finding in findings:
            check_finding(finding)
        return findings

    def _request(self, body: bytes, content_type: str) -> str:
        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 5000):
                yield body[at : at + 5000]

        with open_spool(None) as spool:
            try:
                files, fields = asyncio.run(receive(chunks(), content_type, spool, MAX_BYTES, MAX_FILES))
            except BadRequest as error:
                check_message(str(error), error)
                return f"request: {type(error).__name__}"
            json.dumps([[file.name for file in files], fields]).encode()
            for file in files:
                file.name.encode()
                with spool.open(file) as opened:
                    data = opened.read()
                if len(data) != file.size_bytes:
                    raise WrongOutcome("a spooled file is not as long as it says")
                if not starts_as_archive(file.start):
                    self._instance(data)
                else:
                    self._archive(spool, file)
            return f"request: {len(files)} file(s)"


# -- what must hold ------------------------------------------------------------------------------------------------


def named(why: Rejected) -> str:
    """The error's class name. Raises WrongOutcome for one that is not named as it should be."""
    if type(why) is Rejected or why.reason not in REASONS or why.failure not in FAILURES:
        raise WrongOutcome(f"{type(why).__name__} has reason {why.reason!r} and failure {why.failure:#x}")
    check_message(str(why), why)
    return type(why).__name__


def check_message(text: str, why: BaseException) -> None:
    """Raises WrongOutcome for a message that names the patient, quotes another exception, or rambles."""
    for marker in MARKERS:
        if marker.lower() in text.lower():
            raise WrongOutcome(f"{type(why).__name__} names the patient: {text[:200]}")
    if not 15 <= len(text) <= MAX_MESSAGE_LENGTH or not text.isprintable() or not text.isascii():
        raise WrongOutcome(f"{type(why).__name__} has an odd message of {len(text)} characters: {text[:200]!r}")
    context = why.__context__
    for _ in range(20):
        if context is None:
            break
        quoted = str(context)
        if not isinstance(context, Rejected | BadRequest) and len(quoted) > 3 and quoted in text:
            raise WrongOutcome(f"{type(why).__name__} quotes {type(context).__name__}: {text[:200]}")
        if isinstance(context, MemoryError) or "memory" in quoted.lower():
            raise WrongOutcome(f"memory ran out: {type(context).__name__}: {quoted[:200]}")
        context = context.__context__


def check_header(header: Header) -> None:
    """Raises WrongOutcome for a header that Postgres or JSON could not hold."""
    for name, value in {**asdict(header), **asdict(header.identity)}.items():
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise WrongOutcome(f"{name} holds half a character, which no database stores") from None
            if "\0" in value or len(value) > 324:
                raise WrongOutcome(f"{name} holds a NUL, or {len(value)} characters")
    if max(len(header.modality), len(header.body_part)) > 16 or not header.sop_instance_uid.isascii():
        raise WrongOutcome("modality, body part or UID is not as its column")
    if not header.kept and not (
        1 <= header.rows * header.columns <= LIMITS.max_frame_pixels and 1 <= header.frames <= 20
    ):
        raise WrongOutcome(f"{header.frames} x {header.rows} x {header.columns} is over the limits")


def agree(header: Header, source: PixelSource) -> None:
    """Raises WrongOutcome where API and worker read different things from the same bytes."""
    first = (header.rows, header.columns, header.frames, header.transfer_syntax_uid)
    second = (source.rows, source.columns, source.frames, source.transfer_syntax)
    if first != second:
        raise WrongOutcome(f"the API reads {first}, the worker {second}")


def check_finding(finding: Finding) -> None:
    """Raises WrongOutcome for a finding that is none."""
    for value in (finding.fracture_probability, finding.region_probability):
        if not 0 <= value <= 1:
            raise WrongOutcome(f"{value} is no probability")
    if (
        finding.assessment not in Assessment
        or len(finding.heatmap.values) != finding.heatmap.height * finding.heatmap.width
    ):
        raise WrongOutcome("a finding's assessment or heatmap is none")
    caveat = finding.assessment is Assessment.POSITIVE and finding.abstention is AbstentionReason.METAL
    if (finding.assessment is Assessment.ABSTAINED or caveat) != (finding.abstention is not None):
        raise WrongOutcome(f"{finding.assessment}, and the reason {finding.abstention}")
    if not finding.abstention_detail.isprintable():
        raise WrongOutcome(f"the detail {finding.abstention_detail!r} cannot be stored")
    finding.abstention_detail.encode()


def _noise(output: str, warned: list[str]) -> str:
    for text in (output, *warned):
        if any(marker in text for marker in MARKERS):
            return f"what was printed or warned names the patient: {text[:300]}"
    return f"a warning: {warned[0][:300]}" if warned else ""


def _quote() -> str:
    try:
        int("value of the file")
    except ValueError as error:
        quoting = CannotUnderstand(f"The header is damaged: {error}")
        quoting.__context__ = error
    return named(quoting)


def _use(mib: int) -> str:
    held = bytearray(mib * 2**20)
    for at in range(0, len(held), 4096):
        held[at] = 1
    return "findings"


def _burn() -> str:
    end = time.process_time() + MAX_CPU_S + 1
    while time.process_time() < end:
        pass
    return "findings"


PROBES: dict[str, Any] = {
    "abort": os.abort,
    "hang": lambda: time.sleep(3600),
    "slow": _burn,
    "memory": lambda: _use(MAX_MIB + 50),
    "all memory": lambda: _use(4000),
    "unnamed": lambda: dict[str, str]()["x"],
    "patient": lambda: named(CannotUnderstand(f"There is something wrong with {MARKERS[0]}")),
    "quote": _quote,
    "print": lambda: os.write(2, MARKERS[0].encode()) and "findings",
    "warn": lambda: warnings.warn("odd", stacklevel=1) or "findings",
}


# -- instruments ---------------------------------------------------------------------------------------------------


class OutputCapture:
    """Takes what this process prints, C code included."""

    text = ""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()
        self._kept = [os.dup(1), os.dup(2)]

    @contextmanager
    def caught(self) -> Iterator["OutputCapture"]:
        """Output of the block goes to `text`."""
        self._file.seek(0)
        self._file.truncate()
        os.dup2(self._file.fileno(), 1)
        os.dup2(self._file.fileno(), 2)
        try:
            yield self
        finally:
            os.dup2(self._kept[0], 1)
            os.dup2(self._kept[1], 2)
            self._file.seek(0)
            self.text = self._file.read(20_000).decode("utf-8", "replace")


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def rss_mib() -> float:
    """Memory in use, MiB."""
    return _status("VmRSS")


def peak_mib() -> float:
    """Its peak since reset_peak, MiB."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Start the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")
