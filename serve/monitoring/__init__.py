"""A Grafana dashboard and Prometheus alert rules for the metrics of `serve.telemetry.metrics`."""
