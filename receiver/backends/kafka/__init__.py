"""Apache Kafka as the place where things are kept: the inbox, the output topics, and the sessions as a compacted topic.

What this client does otherwise than one would think is told where the code depends on it.
"""
