"""A worker written in the usual way, to compare with: one Celery task an image, and every step as in its tutorial.

`python -m benchmarks.naive_worker` is its worker process. Nothing is slowed down on purpose: torch runs with all cores.
"""

import os
from pathlib import Path

import cv2
import numpy as np
import psycopg2
import torch
from celery import Celery
from pydicom import dcmread
from pydicom.pixels.processing import apply_voi_lut

from shared.model.bundle import load_bundle
from shared.model.network import BoneNet

QUEUE, TASK = "usual", "usual.analyse"
app = Celery("usual", broker=os.environ["OSTEON_BROKER_URL"])
app.conf.update(task_ignore_result=True, task_default_queue=QUEUE)
_loaded: list[tuple[BoneNet, int]] = []


def network() -> tuple[BoneNet, int]:
    """Load the shipped network in float32, and its input size, once."""
    if not _loaded:
        made, manifest = load_bundle(Path(os.environ["USUAL_BUNDLE"]).read_bytes())
        _loaded.append((made.float().eval(), manifest.input_size))
    return _loaded[0]


@app.task(name=TASK)  # type: ignore[untyped-decorator]
def analyse(path: str, number: int) -> None:
    """Decode with pydicom, run forward and backward for Grad-CAM, insert a row.

    Args:
        path: of a DICOM file with one frame.
        number: of the row.
    """
    dataset = dcmread(path)
    image = np.asarray(apply_voi_lut(dataset.pixel_array, dataset), np.float32)
    low, high = np.percentile(image, (1, 99))
    model, size = network()
    scaled = cv2.resize(np.clip((image - low) / (high - low), 0, 1), (size, size), interpolation=cv2.INTER_AREA)
    pixels = torch.from_numpy(np.rint(scaled * 255).astype(np.uint8))[None, None]
    _, fine, coarse = model.features(pixels)
    coarse.retain_grad()
    region, fracture, _, _ = model.heads(fine, coarse)
    model.zero_grad()
    fracture.sum().backward()
    assert coarse.grad is not None
    weights = coarse.grad.mean((2, 3), keepdim=True)
    heatmap = torch.relu((weights * coarse).sum(1))[0].detach()
    levels = (heatmap / heatmap.max().clamp_min(1e-6) * 255).to(torch.uint8).numpy()
    probability = float(torch.sigmoid(fracture)[0])
    connection = psycopg2.connect(os.environ["OSTEON_DATABASE_URL"].replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO usual (number, region, probability, heatmap) VALUES (%s, %s, %s, %s)",
                (number, int(region[0].argmax()), probability, levels.tobytes()),
            )
    finally:
        connection.close()


if __name__ == "__main__":
    app.worker_main(["worker", "--pool=solo", f"--queues={QUEUE}", "--loglevel=WARNING"])
