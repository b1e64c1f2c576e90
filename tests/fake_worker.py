"""The worker as it is, but for its model: that is a pause of MODEL_S seconds an image and a ready output.

It is neither compiled nor run. The worker dies of the study POISON, raises at each radiograph whose left half is black, and
hangs once where the file HANG stands.
"""

import faulthandler
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

STACKS = signal.SIGUSR2  # writes what every thread does to the log


def main() -> None:
    """Until SIGTERM, as worker.main."""
    faulthandler.register(STACKS)
    sys.modules["openvino"] = cast("ModuleType", None)  # none is found
    if "FAKETIME_TIMESTAMP_FILE" in os.environ:  # under that library time.sleep is an invalid argument now and then
        vars(time)["sleep"] = lambda seconds: select.select([], [], [], seconds)

    import numpy as np

    import worker.analysis
    import worker.main
    import worker.tasks
    from shared.domain.analysis import Claim
    from shared.domain.findings import InstanceResult
    from shared.model.predictor import ModelOutput, Predictor, QualityFlag
    from shared.pixels.tensors import UInt8Image

    def analyse_or_die(claim: Claim, *rest: Any, **more: Any) -> list[InstanceResult]:
        if str(claim.study_id) == os.environ.get("POISON"):
            os.abort()
        return worker.analysis.analyse(claim, *rest, **more)

    def predict(items: Sequence[tuple[Predictor, UInt8Image]]) -> list[ModelOutput]:
        flag = Path(os.environ.get("HANG", "/nonexistent"))
        if flag.exists() and any(square.any() for _, square in items):  # the warm-up's are blank
            flag.unlink()
            time.sleep(1000)
        if any(square.any() and not square[:, : len(square) // 4].any() for _, square in items):
            raise FloatingPointError
        time.sleep(float(os.environ["MODEL_S"]) * len(items))
        regions = np.eye(1, len(items[0][0].manifest.regions), dtype=np.float32)[0]
        nothing = np.zeros((8, 8), np.float32)
        return [ModelOutput(regions, 0.1, nothing[0, :3], nothing, 1.0, 0.0, QualityFlag.NONE)] * len(items)

    vars(worker.tasks).update(analyse=analyse_or_die, predict=predict)
    worker.main.main()


if __name__ == "__main__":
    main()
