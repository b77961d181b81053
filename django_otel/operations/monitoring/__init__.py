"""Generated files for monitoring: Grafana dashboards, Prometheus rules. Imported by the command line only."""
