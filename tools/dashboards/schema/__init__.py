"""The dashboards held against Grafana's own types: `make dashboards-check`, with npm and tsc --strict."""
