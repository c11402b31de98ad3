"""A client of the operator's QoD API: `model.py` has its requests and answers, `client.py` makes the requests.

A device's identifiers are personal data. Objects that hold them have a repr without them, and no error quotes them.
"""
