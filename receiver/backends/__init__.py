"""The stores of notifications and messages, each behind the contracts of `inbox.py` and `reader.py`."""
