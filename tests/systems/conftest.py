"""Tests of whole systems, marked `systems`: containers, network namespaces, DICOM peers."""
