"""The example service, and what shows the toolkit at work on it."""
