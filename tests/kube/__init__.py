"""What needs Helm or an API server: `make helm` and `make operator-test`. Not a part of `make test`."""
