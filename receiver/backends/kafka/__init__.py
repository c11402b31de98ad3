"""Storage in Apache Kafka: the inbox, the output topics, and the sessions as a compacted topic.

Surprising behaviour of aiokafka is described where the code depends on it.
"""
