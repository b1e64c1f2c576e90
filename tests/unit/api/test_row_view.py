"""Response models are filled from rows by name, and nothing is left out in silence."""

from dataclasses import dataclass, make_dataclass
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError, create_model

from api.schemas import RowView


class Colour(StrEnum):
    """A stored code."""

    RED = "red"


class ExampleView(RowView):
    """As a route returns it."""

    name: str
    colour: Colour
    age: int | None = None
    words: str = ""
    notice: str = "for research"


@dataclass
class Row:
    """As a query returns it."""

    name: str
    colour: str
    age: int | None
    secret: str = "hash"

    def words(self) -> str:
        """No value: the call has to name it."""
        return "said"


def test_fields_come_from_the_row_and_the_call() -> None:
    """The call goes before the row, a code becomes its enum, and what the model does not have is not shown."""
    shown = ExampleView.of_row(Row("a", "red", 7), words="b", age=8)
    assert shown == ExampleView(name="a", colour=Colour.RED, age=8, words="b")
    assert "hash" not in shown.model_dump_json()


@pytest.mark.parametrize("missing", ["name", "colour", "age", "words"])
def test_a_field_that_nobody_has_is_an_error(missing: str) -> None:
    """Also one with a default: a renamed column would empty it, and nobody would see that."""
    values = {"name": "a", "colour": "red", "age": 7, "words": "b"}
    values.pop(missing)
    with pytest.raises(ValidationError, match=missing):
        ExampleView.of_row(make_dataclass("Other", values)(**values))


def test_an_unknown_code_or_a_method_is_no_value() -> None:
    """Neither is shown as it is."""
    with pytest.raises(ValidationError, match="colour"):
        ExampleView.of_row(Row("a", "blue", 7), words="b")
    with pytest.raises(ValidationError, match="words"):
        ExampleView.of_row(Row("a", "red", 7))


NAMES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(), min_size=1)


@given(row=NAMES, more=NAMES)
def test_whatever_the_names_each_field_has_its_value(row: dict[str, int], more: dict[str, int]) -> None:
    """Of any model: `more` first, then the row."""
    fields: dict[str, Any] = dict.fromkeys(row | more, (int, -1))
    model = create_model("Any", __base__=RowView, **fields)
    assert model.of_row(make_dataclass("Given", row)(**row), **more).model_dump() == row | more
