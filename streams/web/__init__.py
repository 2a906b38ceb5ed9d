"""What a running process shows over HTTP: metrics, health checks, and a page for people."""
