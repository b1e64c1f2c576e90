"""Figures of model bundles count radiographs; the manifests that are stored called them films.

The bundle files stay as they are: whoever reads one takes both keys.

Revision ID: 0022
Revises: 0021
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A bundle has one row, so that this takes moments whatever was analysed."""
    _rename("films", "radiographs")


def downgrade() -> None:
    """The keys of before."""
    _rename("radiographs", "films")


def _rename(old: str, new: str) -> None:
    connection = op.get_bind()
    for name, manifest in connection.execute(sa.text("SELECT name, manifest FROM bundles")).all():
        if isinstance(manifest.get("metrics"), dict):
            told = json.dumps(manifest | {"metrics": _renamed(manifest["metrics"], old, new)})
            connection.execute(
                sa.text("UPDATE bundles SET manifest = CAST(:told AS jsonb) WHERE name = :name"),
                {"told": told, "name": name},
            )


def _renamed(figures: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Overall, and in each group."""
    found = {(new if key == old else key): value for key, value in figures.items()}
    if isinstance(found.get("groups"), dict):
        found["groups"] = {name: _renamed(group, old, new) for name, group in found["groups"].items()}
    return found
