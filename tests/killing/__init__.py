"""Receivers on a real Kafka, killed and cut off at random, and an oracle that judges them from outside.

`python -m tests.kill_kafka` runs it. The site is the brokers, the proxies and the processes; chaos does things to
them; the load posts and keeps the ledger; the oracle compares ledger, inbox and topics.
"""
