"""The DICOM listener: C-ECHO, C-STORE and storage commitment over associations; `osteon dicom` (docs/run/dicom.md)."""
