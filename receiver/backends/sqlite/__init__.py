"""One directory with one SQLite file as the place where things are kept: the inbox, the topics, the sessions."""
