"""The places where notifications and messages are kept, each behind the contracts of `inbox.py` and `reader.py`."""
