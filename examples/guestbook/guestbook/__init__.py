"""A guestbook: the small, real service that the toolkit bakes, rolls and tests."""
