"""Workers under test, as a user would write them."""
