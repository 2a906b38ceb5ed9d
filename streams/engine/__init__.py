"""The engine: chunk delivery, the commit protocol (plan -> write -> commit), recovery, and how they sit in Faust."""
