"""Receive a mobile operator's QoD notifications and route them to topics, each exactly once."""
