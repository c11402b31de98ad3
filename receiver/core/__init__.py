"""The decisions: notifications, sessions, verdicts, routes and records. Pure."""
