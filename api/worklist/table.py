"""GET /api/v1/worklist.csv: the list as a table for other programs, with patients' identities."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

from fastapi import Query, Response
from fastapi.responses import StreamingResponse

from api.dependencies import PRINTABLE, LoginId, PartsDep, Radiologist
from api.requests import API, Router
from api.schemas import WorklistRow
from api.worklist.filters import Column, ListingDep, chosen_columns
from api.worklist.routes import Place, rows_page
from shared.domain.findings import RESEARCH_USE
from shared.domain.security import EventKind
from shared.domain.study import Identity
from shared.queries.audit import record

router = Router(prefix=API, tags=["read"])
MAX_ROWS = 10_000
PAGE = 500  # rows a transaction: a slow client holds none open
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}",
           "\N{FULLWIDTH HYPHEN-MINUS}", "\N{FULLWIDTH COMMERCIAL AT}")  # fmt: skip
Cell = Callable[[WorklistRow, Identity], object]
BEFORE: Mapping[str, Cell] = {  # the due time and the patient, which are always shown
    "due_at": lambda row, _: row.due_at.isoformat(timespec="seconds"),
    "overdue": lambda row, _: "yes" if row.overdue else "no",
    "read_at": lambda row, _: row.read_at.isoformat(timespec="seconds") if row.read_at else "",
    "patient_name": lambda _, who: who.patient_name,
    "patient_id": lambda _, who: who.patient_id,
    "sex": lambda row, _: row.sex,
    "age_years": lambda row, _: row.age_years,
}
CELLS: Mapping[Column, Mapping[str, Cell]] = {
    Column.PICTURE: {},
    Column.ASSESSMENT: {
        "assessment": lambda row, _: row.assessment,
        "score": lambda row, _: row.score,
        "abstention": lambda row, _: row.abstention,
    },
    Column.EXAMINATION: {
        "description": lambda _, who: who.study_description,
        "body_part": lambda row, _: row.body_part,
        "views": lambda row, _: row.views,
        "laterality": lambda row, _: row.laterality,
        "study_date": lambda row, _: row.study_date,
        "study_time": lambda row, _: row.study_time,
        "modality": lambda row, _: row.modality,
    },
    Column.REGION: {"region": lambda row, _: row.region},
    Column.SEVERITY: {"severity": lambda row, _: row.severity},
    Column.PRIORITY: {"priority": lambda row, _: row.priority},
    Column.READING: {"reader": lambda row, _: row.reader},
    Column.ACCESSION: {"accession_number": lambda _, who: who.accession_number},
    Column.ARRIVED: {"received_at": lambda row, _: row.received_at.isoformat(timespec="seconds")},
    Column.IMAGES: {"images": lambda row, _: row.images, "failed_images": lambda row, _: row.failed_images},
}
BEHIND: Mapping[str, Cell] = {"status": lambda row, _: row.status, "study_id": lambda row, _: row.study_id}


def as_cell(value: object) -> str:
    """A value as a cell. Before what a program for tables would take for a formula stands an apostrophe."""
    text = "" if value is None else str(value).replace("\0", "")
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) else text


@router.get(
    "/worklist.csv",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {}}, "description": "UTF-8 with a mark at its beginning"}},
)
def worklist_csv(
    parts: PartsDep,
    key: Radiologist,
    login: LoginId,
    listing: ListingDep,
    columns: Annotated[
        str | None,
        Query(
            max_length=200,
            pattern=PRINTABLE,
            description=f"with `,` between: {', '.join(f'`{column}`' for column in Column)}; default: the usual ones",
        ),
    ] = None,
) -> Response:
    """Export the list as CSV: the same filters, order and columns, at most 10,000 rows, with patients' identities.

    The first line says that it is for research use, the second one names the columns. Where there are more rows, the
    last line says so. What begins like a formula has an apostrophe before it. Each identity is recorded as read, and
    the export as one.
    """
    shown = {name: cell for column in chosen_columns(columns) for name, cell in CELLS[column].items()}
    cells = {**BEFORE, **shown, **BEHIND}
    with parts.database.transaction() as session:
        record(session, EventKind.EXPORT, key, what="worklist")

    def lines() -> Iterator[list[str]]:
        yield [RESEARCH_USE]
        yield list(cells)
        after, left = None, MAX_ROWS
        while True:
            with parts.database.transaction() as session:
                page = rows_page(session, key, login, listing, Place(after), min(PAGE, left))
                whose = parts.vault.identities(session, key, [row.study_id for row in page.entries])
            for row in page.entries:
                who = whose.get(row.study_id, Identity())
                yield [as_cell(cell(row, who)) for cell in cells.values()]
            after, left = page.next, left - len(page.entries)
            if after is None:
                return
            if left == 0:
                yield [f"There are more than {MAX_ROWS} rows. Filter the list, and export it again."]
                return

    def texts() -> Iterator[str]:
        yield "\N{ZERO WIDTH NO-BREAK SPACE}"  # without it Excel takes UTF-8 for another coding
        for line in lines():
            out = io.StringIO()
            csv.writer(out).writerow(line)
            yield out.getvalue()

    return StreamingResponse(
        texts(), media_type="text/csv", headers={"Content-Disposition": 'attachment; filename="worklist.csv"'}
    )
