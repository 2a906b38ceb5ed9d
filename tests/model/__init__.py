"""The protocol simulated: real workers' code on one deterministic machine. See docs/proof.md."""
