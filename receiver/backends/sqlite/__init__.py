"""The store in one directory with one SQLite file: the inbox, the topics, the sessions."""
