"""Real workers under attack, checked by programs that read only the input and what came out (docs/proof.md)."""
