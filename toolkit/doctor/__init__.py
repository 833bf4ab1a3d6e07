"""What the toolkit needs of its host, and whether it is there."""
