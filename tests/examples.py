"""Properties whose examples are costly: a few in the quick suite, all of them in the slow one."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy


def examples(few: int, many: int, **drawn: SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test of a property, which is a function of fixtures and of what is drawn.

    Args:
        few: examples in the quick suite.
        many: examples in the slow suite.
        **drawn: parameters of the function that are no fixtures, and where their values come from.

    Returns:
        A decorator.
    """

    def decorate(holds: Callable[..., None]) -> Callable[..., None]:
        def test(examples: int, **fixtures: Any) -> None:
            def on_one(**values: Any) -> None:
                holds(**fixtures, **values)

            settings(max_examples=examples, suppress_health_check=list(HealthCheck))(given(**drawn)(on_one))()

        asked = [one for name, one in inspect.signature(holds).parameters.items() if name not in drawn]
        count = inspect.Parameter("examples", inspect.Parameter.KEYWORD_ONLY)
        own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in asked]
        vars(test)["__signature__"] = inspect.Signature([count, *own])
        test.__name__, test.__doc__, test.__module__ = holds.__name__, holds.__doc__, holds.__module__
        marked: Callable[..., None] = pytest.mark.parametrize(
            "examples", [few, pytest.param(many, marks=pytest.mark.slow)]
        )(test)
        return marked

    return decorate
