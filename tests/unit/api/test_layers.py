"""The API installs and starts without anything that touches pixels."""

import subprocess
import sys

from shared.settings import ROOT

HEAVY = ("torch", "torchvision", "cv2", "openvino", "imagecodecs", "shared.pixels", "shared.model")
SAMPLE = ROOT / "samples/studies/01-hand/1-pa.dcm"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_api_loads_no_pixel_library() -> None:
    """A fresh interpreter that imports api.app has loaded neither torch nor any other pixel library."""
    code = f"import sys, api.app; print([name for name in {HEAVY!r} if name in sys.modules], 'api.app' in sys.modules)"
    assert python(code).strip() == "[] True"


def test_api_needs_no_numpy() -> None:
    """Where numpy is not installed, as in the API's container, the API imports and reads headers all the same.

    pydicom loads numpy by itself where it finds it; that is why numpy is taken away here instead of looked for.
    """
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {(*HEAVY[:-1], "numpy")!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import api.app, io
from shared.dicom.header import read_header
from shared.dicom.image import ImageLimits
data = open({str(SAMPLE)!r}, "rb").read()
print("numpy" in sys.modules, read_header(io.BytesIO(data), len(data), ImageLimits()).modality)
"""
    assert python(code).strip() == "False CR"
