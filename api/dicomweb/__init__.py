"""DICOMweb under /dicom-web: STOW-RS, QIDO-RS and WADO-RS. Source: PS3.18 10."""
