"""Results as FHIR R4 resources, to read alone."""
