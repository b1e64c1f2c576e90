"""The network: bundles, engines, and from frames to findings."""

import sys
from types import ModuleType
from typing import cast

# OpenVINO's package of this name reports each import and each conversion to an analytics host, and keeps an id for that
# in the user's home. Where it cannot be loaded, OpenVINO does without. Images and .venv lack it (pyproject.toml); who
# installs a wheel has it.
sys.modules["openvino_telemetry"] = cast("ModuleType", None)
