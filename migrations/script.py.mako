"""${message}

Before you commit this: is it safe while the old code still runs? Add columns as nullable or with a server default;
make indexes of large tables with postgresql_concurrently=True in a migration of their own; drop a column only one
release after the last code that reads it. `pytest tests/integration/test_migrations.py` checks schema and downgrade.
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """${message}."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Undo it."""
    ${downgrades if downgrades else "pass"}
