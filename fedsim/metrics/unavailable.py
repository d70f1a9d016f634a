"""What a metric raises where it has no value."""


class MetricUnavailableError(Exception):
    """This metric cannot be computed here; the message says why, and goes into the record."""
