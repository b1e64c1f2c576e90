"""From labelled radiographs to a model bundle; never imports the worker."""
