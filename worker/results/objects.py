"""From what is known of a study to the objects that leave: each made once, the same inputs to the same bytes."""

from collections.abc import Callable, Collection, Iterator, Sequence

from pydicom.dataset import Dataset

from shared.dicom.elements import count
from shared.domain.findings import ExposedField
from shared.domain.results import DOCUMENTS, ResultInput, ResultKind, ResultObject
from worker.results.captures import Radiographs, Shown, make_overlay, make_summary
from worker.results.envelope import write_object
from worker.results.outlines import find_outlines
from worker.results.pdf import make_pdf
from worker.results.presentation import make_presentation
from worker.results.source import Source, open_source, read_header
from worker.results.structured import DrawnFrame, make_document

Read = Callable[[str], bytes]


def build(
    inputs: ResultInput,
    kinds: Collection[ResultKind],
    read: Read,
    shown: Shown,
) -> list[ResultObject]:
    """Make a study's objects. No pixel is decoded here: `shown` does that.

    Args:
        inputs: everything that they are made of.
        kinds: which ones.
        read: gives the bytes of a stored original by its SHA-256.
        shown: gives the picture of a frame.

    Returns:
        The objects, kind by kind. A kind has none where there is nothing to tell: no outline, no image with a finding.

    Raises:
        Rejected: the header of an original is damaged. What `read` and `shown` raise passes through.
    """
    decided = read_header(read(inputs.patient)) if inputs.patient else None
    sources = [open_source(image, read(image.sha256), decided) for image in inputs.images]
    frames = [frame for source in sources for frame in find_drawn_frames(inputs, source)]
    radiographs = Radiographs(shown)
    return [
        write_object(kind, number, made)
        for kind in ResultKind
        if kind in kinds
        for number, made in _of_kind(inputs, kind, sources, frames, radiographs)
    ]


def _of_kind(
    inputs: ResultInput,
    kind: ResultKind,
    sources: Sequence[Source],
    frames: Sequence[DrawnFrame],
    radiographs: Radiographs,
) -> Iterator[tuple[int, Dataset]]:
    """The objects of one kind, each with the number of its image."""
    if kind in DOCUMENTS:
        if (report := make_document(inputs, kind, sources, frames)) is not None:
            yield 1, report
    elif kind is ResultKind.SC_SUMMARY:
        yield 1, make_summary(inputs, sources, frames, radiographs)
    elif kind is ResultKind.PDF:
        yield 1, make_pdf(inputs, sources, frames, radiographs)
    else:
        for source in sources:
            frames_of_source = [frame for frame in frames if frame.source is source]
            outlined = [frame for frame in frames_of_source if frame.outlines]
            if kind is ResultKind.SC_OVERLAY and frames_of_source:
                yield source.image.number, make_overlay(inputs, frames_of_source, radiographs)
            elif kind is ResultKind.GSPS and outlined:
                yield source.image.number, make_presentation(inputs, outlined)


def find_drawn_frames(inputs: ResultInput, source: Source) -> list[DrawnFrame]:
    """Find the outlines of an image's frames.

    Args:
        inputs: the inputs.
        source: the image.

    Returns:
        Its frames with findings, in their order.

    Raises:
        Rejected: its header is damaged.
    """
    frames = []
    for finding in sorted(source.image.findings, key=lambda one: one.frame):
        rows, columns = count(source.header, "Rows"), count(source.header, "Columns")
        field = finding.field or ExposedField.whole(rows, columns)
        model = next(model for model in inputs.models if model.name == finding.bundle)
        scale = columns / field.columns, rows / field.rows
        frames.append(DrawnFrame(source, finding, find_outlines(finding, model, field), scale))
    return frames
