"""From the socket to the inbox: connections, tokens, limits, and the answers to posts."""
