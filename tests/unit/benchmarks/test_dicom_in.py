"""What the benchmark of DICOM sends and searches."""

from pathlib import Path

import pydicom

from benchmarks.dicom_in import Folder, _names
from benchmarks.upload import Instances, Load, megabytes


def test_each_repeat_sends_new_instances_once(tmp_path: Path) -> None:
    """Senders share the files of a repeat, and none of them was sent before: known ones would cost less."""
    folder = Folder(tmp_path / "sent", Instances(Load("small", 5, 64, 64, "MB/s", megabytes)))
    seen: set[str] = set()
    for _ in range(2):
        parts = folder.fill(2)
        assert [len(part) for part in parts] == [3, 2]
        uids = [str(pydicom.dcmread(name).SOPInstanceUID) for part in parts for name in part]
        assert len(set(uids) - seen) == 5
        seen |= set(uids)


def test_few_patients_share_a_family_name() -> None:
    """As in a hospital, a family name stands for some patients, and a search for it returns few."""
    names = _names(20_000)
    families = [name.partition("^")[0] for name in names]
    most = max(map(families.count, set(families[:200])))
    assert names == _names(20_000)
    assert 1 < most < 101
