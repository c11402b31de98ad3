"""What decides, and nothing else: notifications, sessions, verdicts, routes and records. Pure."""
