"""jaxdl: an experiment is a value, and training is the fold of one pure function over batches."""

__version__ = "0.1.0"
