"""DICOM data sets, read within bounds and without decoding a pixel; no module here needs numpy."""
