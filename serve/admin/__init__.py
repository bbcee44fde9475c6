"""The operators' listener: HTTP routes that read and change the settings, run batch jobs and return the metrics."""
