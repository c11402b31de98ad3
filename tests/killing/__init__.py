"""Receivers on a real Kafka, killed and cut off at random, and an oracle that judges them from outside.

`python -m tests.kill_kafka` runs it. The site has the brokers, the proxies and the processes. The chaos makes faults,
the load posts and keeps the ledger, and the oracle compares ledger, inbox and topics.
"""
