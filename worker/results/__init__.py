"""Results as DICOM objects: pure functions from what is known of a study to the bytes that leave."""
