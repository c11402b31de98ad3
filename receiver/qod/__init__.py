"""The operator's QoD API, as its client sees it: `model.py` has what is told and asked, `client.py` asks.

A device's identifiers are personal data. What holds them here has a repr without them, and no error quotes them.
"""
