"""From labelled films to a model bundle; never imports the worker."""
