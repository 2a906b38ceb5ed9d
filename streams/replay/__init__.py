"""Replay: events out of the topic or the outbox into the projection again, or into one built anew beside it."""
