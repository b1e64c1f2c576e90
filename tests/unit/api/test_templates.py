"""The pages' templates: what no type checker sees of them."""

import pytest
from jinja2 import nodes

from api.pages.render import _PAGES

TEMPLATES = sorted(_PAGES.list_templates())


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_filter_that_a_template_names_is_there(name: str) -> None:
    """Jinja looks for those within a condition only when it is met: a renamed one would break one page in one state."""
    assert _PAGES.loader is not None
    tree = _PAGES.parse(_PAGES.loader.get_source(_PAGES, name)[0])
    assert {one.name for one in tree.find_all(nodes.Filter)} <= _PAGES.filters.keys()
    assert {one.name for one in tree.find_all(nodes.Test)} <= _PAGES.tests.keys()
